"""A server that answers as a test tells it to: what no real server can be made to do."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Request:
    """What came in; the names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What goes out.  `length`: what Content-Length says (None: the truth, -1: nothing).  `hang_up`: close afterwards.

    `trickle`: so many seconds between two bytes of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    hang_up: bool = False
    trickle: float = 0.0


def error(status: int, code: str, message: str = "said so", **headers: str) -> Reply:
    """An error as S3 servers word it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def listing(*keys: str, more: str = "", v1: bool = False) -> Reply:
    """A page of a listing; `more` is where the next one starts."""
    items = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>7</Size></Contents>"
        for key in keys
    )
    token = (
        f"<{'NextMarker' if v1 else 'NextContinuationToken'}>{more}</{'NextMarker' if v1 else 'NextContinuationToken'}>"
    )
    body = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token if more else ''}{items}</ListBucketResult>"
    )
    return Reply(200, body.encode())


class FakeS3:
    """Serves on 127.0.0.1 in threads until closed.  `answer` gives a Reply, or None: hang up without a word."""

    def __init__(self, answer: Callable[[Request], Reply | None], tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._stop = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self._listener.close()
        self.drop_all()
        for thread in self._threads[1:]:
            thread.join(10)

    def drop_all(self) -> None:
        """Close every connection."""
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()
        self._open.clear()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection, connection.makefile("rb") as stream:
                while (request := _read(stream)) is not None:
                    self.requests.append(request)
                    reply = self.answer(request)
                    if reply is None or not self._write(connection, request, reply):
                        return
        except OSError:
            return

    def _write(self, connection: socket.socket, request: Request, reply: Reply) -> bool:
        length = len(reply.body) if reply.length is None else reply.length
        head = [f"HTTP/1.1 {reply.status} Said"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        if length >= 0:
            head.append(f"content-length: {length}")
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        if request.method == "HEAD":
            return not reply.hang_up
        if reply.trickle:
            for byte in reply.body:
                connection.sendall(bytes([byte]))
                if self._stop.wait(reply.trickle):
                    return False
        else:
            connection.sendall(reply.body)
        return not reply.hang_up


def _read(stream: "socket.SocketIO") -> Request | None:
    line = stream.readline().decode()
    if not line.strip():
        return None
    method, target, _ = line.split()
    headers = {}
    while (line := stream.readline().decode().rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, target, headers, stream.read(int(headers.get("content-length", "0"))))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, for 127.0.0.1, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file
