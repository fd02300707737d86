"""One HTTP/1.1 connection: requests are written and answers read here.

http.client reads what is not plain: chunks, and all that comes over TLS.  A small request costs a tenth of the processor time that
it costs in botocore.  Every request has a deadline that covers all of it, so a server that trickles holds nobody longer than
one that is silent.
"""

import errno
import http.client
import io
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from jfs.object.store import Buffer

HEAD: Final = 4096
"""The head of an answer is looked for in its first so many bytes; one that is longer goes to http.client."""

LARGE: Final = 256 << 20
"""No answer is longer: no more memory than this is set aside on its word for its length."""

DEAD_S: Final = 5
"""A connection whose other end has acknowledged nothing for so long (data, or a probe while an answer is awaited) is given up.

The kernel sends again after pauses that double: after an outage of 20 s the next try may come 6 s late, and a lost answer never
does.  A new connection is made within a second.  A server that only takes its time acknowledges all the same.
"""

LOOK_S: Final = 1.0
"""So long a call waits in which nothing moves, before it looks why."""

TCP_INFO: Final = struct.Struct("=3xB20xI116xI")
"""Of the kernel's tcp_info: probes that were not answered, packets that were not acknowledged, bytes that were not sent."""


class Answer(msgspec.Struct, frozen=True):
    """A server's answer, read whole; the names of its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Reader(io.RawIOBase):
    """The socket's read side, under the request's deadline."""

    def __init__(self, link: "Link") -> None:
        super().__init__()
        self._link = link

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        link = self._link
        while True:
            link.sock.settimeout(min(link.left(), LOOK_S))
            try:
                return link.sock.recv_into(buffer)
            except TimeoutError as error:
                link.look(error)


class Link:
    """One connection; every call ends at `deadline`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = 0.0
        self.lenient = False
        """Whether the kernel was told to bear with the other end."""
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

    def look(self, error: OSError) -> None:
        """Nothing has moved for a while.  Raises the error if it is the kernel's, for whom the connection is dead.

        A server that has acknowledged all that was sent, and takes no more, is busy: it may be for as long as the request.  The
        kernel would count that time as time without a sign of life, though its probes are answered.
        """
        if error.errno == errno.ETIMEDOUT:
            raise error
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        unanswered, unacknowledged, unsent = TCP_INFO.unpack(info)
        busy = unsent > 0 and not unacknowledged and unanswered < 2  # one may be on its way
        if busy is not self.lenient:
            self.lenient = busy
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0 if busy else DEAD_S * 1000)

    def send(self, head: bytes, body: Buffer | None) -> None:
        self.sock.settimeout(min(self.left(), LOOK_S))
        for part in (head, body or b""):
            rest = memoryview(part)
            while rest:
                self.left()
                try:
                    rest = rest[self.sock.send(rest) :]
                except TimeoutError as error:
                    self.look(error)

    def receive(self, method: str) -> tuple[Answer, bool]:
        """The answer, and whether the server keeps the connection."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]  # `makefile` is all that it wants
        try:
            response.begin()
            if method != "HEAD" and response.length is None and not response.chunked:
                raise http.client.HTTPException("the answer does not tell its length")
            if response.length is not None and response.length > LARGE:
                raise http.client.HTTPException(f"an answer of {response.length} bytes is not taken")
            data = response.read(LARGE + 1) if response.chunked else response.read()
            if len(data) > LARGE:
                raise http.client.HTTPException(f"an answer of more than {LARGE} bytes is not taken")
        finally:
            response.close()
        found = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, found, data), not response.will_close

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), 65536)

    def close(self) -> None:
        self.sock.close()


class PlainLink(Link):
    """One without TLS: as few calls as can be, for after each a thread waits for the interpreter; the kernel keeps the time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        super().__init__(sock)

    def _limit(self, option: int) -> None:
        seconds, part = divmod(max(int(min(self.left(), LOOK_S) * 1e6), 1), 1_000_000)
        self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, part))

    def send(self, head: bytes, body: Buffer | None) -> None:
        parts = [memoryview(part) for part in (head, body) if part]
        while parts:
            self._limit(socket.SO_SNDTIMEO)
            try:
                sent = self.sock.sendmsg(parts)
            except BlockingIOError as error:
                self.look(error)
                continue
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
        return Answer(status, headers, body), not closes(headers)

    def _recv(self, size: int, flags: int = 0) -> bytes:
        while True:
            self._limit(socket.SO_RCVTIMEO)
            try:
                return self.sock.recv(size, flags)
            except BlockingIOError as error:
                self.look(error)

    def _body(self, length: int) -> bytes:
        data = self._recv(length, socket.MSG_WAITALL)
        while len(data) < length:  # a signal, or the deadline
            more = self._recv(length - len(data), socket.MSG_WAITALL)
            if not more:
                raise http.client.IncompleteRead(data, length - len(data))
            data += more
        return data


def closes(headers: dict[str, str]) -> bool:
    """Whether the server closes the connection behind its answer."""
    return "close" in headers.get("connection", "").lower()


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


class Exchange:
    """A request that was sent on a kept connection; its answer is taken as it comes, without waiting.

    One that fails, or is not plain, fails for good: the connection may have died between requests.
    """

    def __init__(self, link: Link, give_back: Callable[[Link], None], room: int) -> None:
        self.deadline = link.deadline
        self._link = link
        self._give_back = give_back
        self._room = room
        self._seen = b""
        self._head: tuple[int, dict[str, str]] | None = None
        self._start = self._end = 0

    def fileno(self) -> int:
        return self._link.sock.fileno()

    def go_on(self) -> Answer | None:
        """The answer, or None while there is more to come.  Raises OSError, http.client.HTTPException."""
        try:
            answer = self._take()
        except BaseException:
            self.drop()
            raise
        if answer is not None:
            if len(self._seen) == self._end and not closes(answer.headers):
                self._give_back(self._link)
            else:
                self.drop()
        return answer

    def _take(self) -> Answer | None:
        try:
            part = self._link.sock.recv(self._room, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        seen = self._seen = self._seen + part if self._seen else part
        if self._head is None:
            end = seen.find(b"\r\n\r\n")
            if end >= 0:
                self._head = parse_head(seen[:end])
                if self._head is None:
                    raise http.client.HTTPException("the answer is not plain")
                self._start = end + 4
                self._end = self._start + int(self._head[1].get("content-length", "0"))
        if self._head is not None and len(seen) >= self._end:
            return Answer(*self._head, seen[self._start : self._end])
        if not part:
            raise http.client.IncompleteRead(seen)
        return None

    def drop(self) -> None:
        self._link.close()
