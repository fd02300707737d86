"""HTTP/1.1 connections to one server, kept open between requests.

Requests are written and answers read here; http.client makes the connections and reads what is not plain: chunks, TLS.  A small
request costs a tenth of the processor time that it costs in botocore.  Every request has a deadline that covers all of it, so a
server that trickles holds nobody longer than one that is silent.
"""

import collections
import http.client
import io
import select
import socket
import ssl
import struct
import threading
import time
import urllib.request
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from jfs.errors import UserError
from jfs.object.store import Buffer

CONNECT_S: Final = 5.0
"""Longest wait for a connection to be made."""

DEAD_S: Final = 5
"""A connection whose other end has acknowledged nothing for so long (data, or a probe while an answer is awaited) is given up.

The kernel sends again after pauses that double: after an outage of 20 s the next try may come 6 s late, and a lost answer never
does.  A new connection is made within a second.  A server that only takes its time acknowledges all the same.
"""

IDLE_S: Final = 30.0
"""A connection that has been idle for longer is not trusted: servers and firewalls drop them, often without a word."""

WATCHED: Final = (
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_S * 1000),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
)
"""DEAD_S, and probes from the second second of silence on."""

HEAD: Final = 4096
"""The head of an answer is looked for in its first so many bytes; one that is longer goes to http.client."""

LARGE: Final = 256 << 20
"""No more memory than this is set aside on an answer's word for its length."""


class Answer(msgspec.Struct, frozen=True):
    """A server's answer, read whole; the names of its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Reader(io.RawIOBase):
    """The socket's read side, under the request's deadline."""

    def __init__(self, link: "_Link") -> None:
        super().__init__()
        self._link = link

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._link.sock.settimeout(self._link.left())
        return self._link.sock.recv_into(buffer)


class _Link:
    """One connection; every call ends at `deadline`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = 0.0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def readable(self) -> bool:
        """A server that has something to say between requests says goodbye."""
        return bool(self._poll.poll(0))

    def send(self, head: bytes, body: Buffer | None) -> None:
        for part in (head, body):
            if part:
                self.sock.settimeout(self.left())
                self.sock.sendall(part)

    def receive(self, method: str) -> tuple[Answer, bool]:
        """The answer, and whether the server keeps the connection."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]  # `makefile` is all that it wants
        try:
            response.begin()
            if method != "HEAD" and response.length is None and not response.chunked:
                raise http.client.HTTPException("the answer does not tell its length")
            data = response.read()
        finally:
            response.close()
        found = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, found, data), not response.will_close

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), 65536)

    def close(self) -> None:
        self.sock.close()


class _PlainLink(_Link):
    """One without TLS: as few calls as can be, for after each a thread waits for the interpreter; the kernel keeps the time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        super().__init__(sock)

    def _limit(self, option: int) -> None:
        seconds, part = divmod(max(int(self.left() * 1e6), 1), 1_000_000)
        self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, part))

    def send(self, head: bytes, body: Buffer | None) -> None:
        parts = [memoryview(part) for part in (head, body) if part]
        while parts:
            self._limit(socket.SO_SNDTIMEO)
            try:
                sent = self.sock.sendmsg(parts)
            except BlockingIOError as error:
                raise TimeoutError("timed out") from error
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self, method: str) -> tuple[Answer, bool]:
        seen = self._recv(HEAD, socket.MSG_PEEK)
        if not seen:
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        end = seen.find(b"\r\n\r\n") + 4
        head = parse_head(seen[: end - 4]) if end >= 4 else None
        if head is None:
            try:
                return super().receive(method)
            finally:
                self.sock.settimeout(None)
        status, headers = head
        self._recv(end)
        length = 0 if method == "HEAD" or status == 204 else int(headers["content-length"])
        body = self._body(length) if length else b""
        return Answer(status, headers, body), "close" not in headers.get("connection", "").lower()

    def _recv(self, size: int, flags: int = 0) -> bytes:
        self._limit(socket.SO_RCVTIMEO)
        try:
            return self.sock.recv(size, flags)
        except BlockingIOError as error:
            raise TimeoutError("timed out") from error

    def _body(self, length: int) -> bytes:
        data = self._recv(length, socket.MSG_WAITALL)
        while len(data) < length:  # a signal, or the deadline
            more = self._recv(length - len(data), socket.MSG_WAITALL)
            if not more:
                raise http.client.IncompleteRead(data, length - len(data))
            data += more
        return data


def parse_head(head: bytes) -> tuple[int, dict[str, str]] | None:
    """Status and headers of a plain answer: HTTP/1.1, of a length that is told once.  None: http.client shall read it."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or words[0] != "HTTP/1.1" or len(words[1]) != 3 or not words[1].isdecimal():
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or name in headers or name != name.strip():  # lines that go on, and headers that come again
            return None
        headers[name] = value.strip()
    status = int(words[1])
    if status < 200 or status == 304 or "transfer-encoding" in headers:
        return None
    length = headers.get("content-length", "0" if status == 204 else "")
    return (status, headers) if length.isdecimal() and int(length) <= LARGE else None


class Tls(msgspec.Struct, frozen=True):
    """How to trust a server, and how to show who one is: paths of PEM files, empty for none."""

    skip_verify: bool = False
    ca_certs: str = ""
    cert: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """UserError for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_certs or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except OSError as error:
            names = ", ".join(name for name in (self.ca_certs, self.cert, self.key) if name)
            raise UserError(f"the certificates {names} cannot be used: {error}") from error
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Connections:
    """A pool of connections to `origin` (`https://host[:port]`); as many are in use as there are threads that ask.

    Proxies are taken from the environment (http_proxy, https_proxy, no_proxy).
    """

    def __init__(self, origin: str, *, keep: int = 16, tls: Tls | None = None) -> None:
        parts = urlsplit(origin)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._context = (tls or Tls()).context() if self._secure else None
        self._keep = keep
        self._idle: collections.deque[tuple[_Link, float]] = collections.deque()
        self._lock = threading.Lock()
        self._closed = False
        self._proxy = _proxy_for(parts.scheme, self._host)
        plain = self._proxy is not None and not self._secure
        self._target = f"http://{parts.netloc}" if plain else ""
        self._more = self._proxy[2] if plain and self._proxy else {}

    def request(
        self, method: str, target: str, headers: dict[str, str], body: Buffer | None = None, *, timeout: float
    ) -> Answer:
        """One request and its whole answer, within `timeout` seconds.

        It may be sent twice, where a kept connection turns out to be dead: requests must be idempotent.  Raises OSError,
        http.client.HTTPException.
        """
        deadline = time.monotonic() + timeout
        head = request_head(method, self._target + target, headers | self._more, body)
        while True:
            link = self._take()
            kept = link is not None
            if link is None:
                link = self._connect(timeout)
            link.deadline = deadline
            try:
                answer, reusable = _exchange(link, method, head, body)
            except (ConnectionError, http.client.BadStatusLine):  # RemoteDisconnected is both
                link.close()
                if not kept:
                    raise
            except BaseException:
                link.close()
                raise
            else:
                if reusable:
                    self._give_back(link)
                else:
                    link.close()
                return answer

    def _take(self) -> _Link | None:
        """A connection that was used before."""
        now = time.monotonic()
        while True:
            with self._lock:
                last = self._idle.pop() if self._idle else None
            if last is None:
                return None
            link, since = last
            if now - since < IDLE_S and not link.readable():
                return link
            link.close()

    def _connect(self, timeout: float) -> _Link:
        connection = self._new(min(timeout, CONNECT_S))
        try:
            connection.connect()
        except TimeoutError as error:
            connection.close()
            raise OSError(f"no connection within {connection.timeout:g} s") from error
        except BaseException:
            connection.close()
            raise
        for level, option, value in WATCHED:
            connection.sock.setsockopt(level, option, value)
        return _PlainLink(connection.sock) if self._context is None else _Link(connection.sock)

    def _new(self, wait: float) -> http.client.HTTPConnection:
        host, port = (self._host, self._port) if self._proxy is None else self._proxy[:2]
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=wait)
        connection = http.client.HTTPSConnection(host, port, timeout=wait, context=self._context)
        if self._proxy is not None:
            connection.set_tunnel(self._host, self._port, headers=self._proxy[2])
        return connection

    def _give_back(self, link: _Link) -> None:
        """Keep it, and let go of those that nobody has needed for a while: the oldest are on the left."""
        now = time.monotonic()
        surplus = []
        with self._lock:
            while self._idle and now - self._idle[0][1] > IDLE_S:
                surplus.append(self._idle.popleft()[0])
            if not self._closed and len(self._idle) < self._keep:
                self._idle.append((link, now))
            else:
                surplus.append(link)
        for each in surplus:
            each.close()

    def close(self) -> None:
        """Close what is idle; what is in use closes when its request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, collections.deque()
        for link, _ in idle:
            link.close()


def request_head(method: str, target: str, headers: dict[str, str], body: Buffer | None) -> bytes:
    """A request up to its body."""
    lines = [f"{method} {target} HTTP/1.1", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    text = "\r\n".join(lines)
    if text.count("\n") + text.count("\r") != 2 * (len(lines) - 1):
        raise ValueError("a request with a line break in one of its headers")
    return f"{text}\r\n\r\n".encode("latin-1")


def _exchange(link: _Link, method: str, head: bytes, body: Buffer | None) -> tuple[Answer, bool]:
    """Send, then read the answer; whether the connection can be used again."""
    sent = True
    try:
        link.send(head, body)
    except (BrokenPipeError, ConnectionResetError):
        # A server that refuses a put closes before it has read all of it; what it said may still be there to read.
        if body is None:
            raise
        sent = False
    answer, kept = link.receive(method)
    return answer, sent and kept


def _proxy_for(scheme: str, host: str) -> tuple[str, int, dict[str, str]] | None:
    """Host, port and headers of the proxy that the environment names for this server; this machine needs none."""
    found = urllib.request.getproxies().get(scheme)
    if not found or urllib.request.proxy_bypass(host) or host in ("localhost", "::1") or host.startswith("127."):
        return None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    if parts.scheme != "http" or not parts.hostname:
        raise UserError(f"the proxy for {scheme} must be an http:// address, not {parts.scheme}://")
    headers = {}
    if parts.username:
        import base64

        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return parts.hostname, parts.port or 80, headers
