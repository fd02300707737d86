"""A proxy before a real S3 server that fails as a test tells it to, and changes its mind while mounts work through it.

    with Proxy(server.port) as proxy:
        with proxy.failing(Fault.AWAY, seconds=20): ...
        proxy.resumed("bucket")  # seconds from the end of that to the first good answer

Each connection has a thread and a connection to the server.  Bodies pass in pieces, so that faults strike half-way.
"""

import contextlib
import http.client
import io
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from tests.deadline import eventually
from tests.faults.black_hole import Cable

PIECE = 64 << 10
SLOW_PIECE = 16 << 10
SLOW_PAUSE_S = 0.01
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class Fault(StrEnum):
    """What can be wrong with the server."""

    AWAY = "nobody listens and open connections are reset"
    HANG = "nothing passes, and everything passes afterwards"
    SILENT = "requests are swallowed and never answered"
    BUSY = "503 SlowDown is answered"
    RESET_REQUEST = "connections are reset half-way through a request's body"
    RESET_ANSWER = "connections are reset half-way through an answer's body"
    CUT = "answers end half-way through the body that they announce"
    SHORT = "answers have half of their body, and say that this is all"
    LOST = "packets vanish"
    WRONG = "a bit of an answer's body is flipped"
    SLOW = "bodies trickle"


ON_READS = {Fault.RESET_ANSWER, Fault.CUT, Fault.SHORT, Fault.WRONG}
"""These strike answers to GET only: others have no body worth it."""


WHOLE = {Fault.AWAY, Fault.HANG, Fault.LOST}
"""These strike everybody, whoever asks."""


class Reset(Exception):
    """The connection is to be reset."""


class HungUp(Exception):
    """The connection is to be closed."""


@dataclass
class Request:
    """A request's head, as it came, and what of it the proxy has to know."""

    head: bytes
    method: str
    target: str
    length: int

    @property
    def bucket(self) -> str:
        return self.target.lstrip("/").partition("/")[0].partition("?")[0]


class Proxy:
    """Listens on `port` of this machine, or at the far end of a cable, for the server on `server_port`."""

    def __init__(self, server_port: int, port: int, cable: Cable | None = None) -> None:
        self.port = port
        self.cable = cable
        self.struck: Counter[Fault] = Counter()
        """How often each fault struck a request."""
        self._server_port = server_port
        self._fault: Fault | None = None
        self._share = 1.0
        self.ended = 0.0
        """When the last fault ended, by the monotonic clock."""
        self._dice = random.Random(5)
        self._passed: list[tuple[float, str]] = []  # when a put was answered well, and to which bucket
        self._well = threading.Condition()
        self._closed = threading.Event()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def endpoint(self) -> str:
        return f"http://{self.cable.far if self.cable else '127.0.0.1'}:{self.port}"

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self.mend()
        self._leave()
        for thread in self._threads:
            thread.join(70)  # it may wait for the server, which has its time
            assert not thread.is_alive()

    # -- what tests do

    def fail(self, fault: Fault, share: float = 1.0) -> None:
        """From now on; `share`: the part of the requests that it strikes (those that come in; of WHOLE faults no part)."""
        with self._well:
            self._share = share
            self._fault = fault
        if fault is Fault.AWAY:
            self._leave()
        if fault is Fault.LOST:
            assert self.cable is not None
            self.cable.cut()

    def mend(self) -> None:
        """The end of whatever was wrong."""
        with self._well:
            was, self._fault = self._fault, None
            if was is Fault.LOST and self.cable is not None:
                self.cable.mend()
            self.ended = time.monotonic()
            self._well.notify_all()
        if was is Fault.AWAY and not self._closed.is_set():
            self._listen()

    @contextlib.contextmanager
    def failing(self, fault: Fault, *, share: float = 1.0, seconds: float = 0.0) -> Generator[None, None, None]:
        """For as long as the block takes, and at least so long."""
        until = time.monotonic() + seconds
        self.fail(fault, share)
        try:
            yield
            self._closed.wait(max(0.0, until - time.monotonic()))
        finally:
            self.mend()

    def resumed(self, bucket: str, timeout: float = 60.0) -> float:
        """Seconds from the end of the last fault to the first put into `bucket` that was answered well since."""

        def first() -> float | None:
            return next((when for when, name in list(self._passed) if when >= self.ended and name == bucket), None)

        return (eventually(first, timeout, f"a put into {bucket}") or 0.0) - self.ended

    # -- connections

    def _listen(self) -> None:
        if self.cable is not None:
            listener = self.cable.listen(self.port)
        else:
            listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._listener = listener
        self._start(self._accept, listener)

    def _leave(self) -> None:
        """Nobody listens any more, and nobody is connected."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for client in list(self._open):
            _doom(client)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            self._open.add(client)
            self._start(self._serve, client)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, until somebody has enough of it."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with (
                client,
                client.makefile("rb", buffering=PIECE) as reader,
                socket.create_connection(("127.0.0.1", self._server_port), 60) as server,
            ):
                while (request := _read_request(reader)) is not None:
                    self._exchange(request, client, reader, server)
        except (Reset, HungUp, OSError, http.client.HTTPException):
            pass  # closed by now, in the way that was to be
        finally:
            self._open.discard(client)

    # -- requests

    def _strikes(self, request: Request) -> Fault | None:
        """The fault that is this request's."""
        with self._well:
            fault = self._fault
            if fault is None or fault in WHOLE:
                return None
            wanted = {"GET"} if fault in ON_READS else {"PUT"} if fault is Fault.RESET_REQUEST else {"PUT", "GET"}
            if request.method not in wanted or self._dice.random() >= self._share:
                return None
            self.struck[fault] += 1
            return fault

    def _wait_while_hung(self) -> None:
        with self._well:
            if self._fault is Fault.HANG:
                self.struck[Fault.HANG] += 1
                self._well.wait_for(lambda: self._fault is not Fault.HANG)

    def _exchange(
        self, request: Request, client: socket.socket, reader: io.BufferedReader, server: socket.socket
    ) -> None:
        fault = self._strikes(request)
        if fault is Fault.BUSY:
            _skip(reader, request.length)
            head = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(BUSY)}\r\n\r\n"
            client.sendall(head.encode() + BUSY)
            return
        if fault is Fault.SILENT:
            _skip(reader, request.length)
            reader.read(1)  # until the other end has had enough
            raise HungUp
        self._forward(request, fault, client, reader, server)
        with http.client.HTTPResponse(server, method=request.method) as response:
            response.begin()
            body = response.read()
            self._answer(request, fault, response, body, client)

    def _forward(
        self,
        request: Request,
        fault: Fault | None,
        client: socket.socket,
        reader: io.BufferedReader,
        server: socket.socket,
    ) -> None:
        self._wait_while_hung()
        server.sendall(request.head)
        left = request.length
        while left:
            if fault is Fault.RESET_REQUEST and left <= request.length // 2:
                _doom(client)
                _doom(server)
                raise Reset
            piece = reader.read(min(left, self._pace(fault)))
            if not piece:
                raise HungUp
            self._wait_while_hung()
            server.sendall(piece)
            left -= len(piece)

    def _answer(
        self,
        request: Request,
        fault: Fault | None,
        response: http.client.HTTPResponse,
        body: bytes,
        client: socket.socket,
    ) -> None:
        if fault is Fault.WRONG and body:
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 0x10]) + body[len(body) // 2 + 1 :]
        if fault is Fault.SHORT:
            body = body[: len(body) // 2]
        said = response.headers["content-length"] if request.method == "HEAD" else f"{len(body)}"
        dropped = ("content-length", "transfer-encoding", "connection")
        lines = [f"{name}: {value}" for name, value in response.getheaders() if name.lower() not in dropped]
        head = f"HTTP/1.1 {response.status} {response.reason}\r\n" + "".join(f"{line}\r\n" for line in lines)
        self._wait_while_hung()
        client.sendall(f"{head}Content-Length: {said or 0}\r\n\r\n".encode())
        end = len(body) // 2 if fault in (Fault.CUT, Fault.RESET_ANSWER) else len(body)
        for start in range(0, end, self._pace(fault, pause=False)):
            self._wait_while_hung()
            client.sendall(body[start : min(end, start + self._pace(fault))])
        if fault is Fault.RESET_ANSWER:
            _doom(client)
            raise Reset
        if fault is Fault.CUT:
            raise HungUp
        if request.method == "PUT" and response.status // 100 == 2:
            self._passed.append((time.monotonic(), request.bucket))

    def _pace(self, fault: Fault | None, *, pause: bool = True) -> int:
        """How many bytes pass at once."""
        if fault is not Fault.SLOW:
            return PIECE
        if pause:
            self._closed.wait(SLOW_PAUSE_S)
        return SLOW_PIECE


def _doom(connection: socket.socket) -> None:
    """Its close will be a reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_request(reader: io.BufferedReader) -> Request | None:
    """The head of the next request; None at the connection's end."""
    first = reader.readline()
    if not first:
        return None
    lines = [first]
    length = 0
    while lines[-1] not in (b"\r\n", b""):
        lines.append(reader.readline())
        name, _, value = lines[-1].partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    method, target, _ = first.decode().split(" ", 2)
    return Request(b"".join(lines), method, target, length)


def _skip(reader: io.BufferedReader, length: int) -> None:
    while length and (piece := reader.read(min(length, PIECE))):
        length -= len(piece)
