"""One connection to a server: a socket, TLS where it is wanted, and a task that reads.

Whoever has something to say writes at once to the socket, which never waits; what the socket does not take is left to a
task.  The reading task tells the streams what has come for them.  Both are system tasks: a connection lives until it is
closed, is lost, or the program's event loop ends.
"""

import logging
import socket
import ssl
from typing import Final, Protocol

import trio

from jfs.tikv.errors import DEADLINE_EXCEEDED, ProtocolError, RpcError
from jfs.tikv.http2 import Http2

log = logging.getLogger(__name__)

CONNECT_S: Final = 3.0
BUFFER: Final = 1 << 18
PAY_S: Final = 0.02
"""So long a ping may wait for its answer, which is sent for all that have come meanwhile."""


class Expected(Protocol):
    """An answer that is to come in time."""

    deadline: float

    def late(self, error: RpcError) -> None:
        """It has not."""


class Tls:
    """Encryption of a byte stream, without any input or output."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done.  ssl.SSLError."""
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def encrypt(self, plain: bytes) -> bytes:
        self._session.write(plain)
        return self._outgoing.read()

    def decrypt(self, received: bytes) -> bytes:
        """What has come; empty if it is not complete yet.  ssl.SSLError."""
        self._incoming.write(received)
        parts = []
        try:
            while part := self._session.read(BUFFER):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        return b"".join(parts)

    def take(self, received: bytes) -> None:
        self._incoming.write(received)

    def to_send(self) -> bytes:
        """What the protocol itself has to say."""
        return self._outgoing.read()


async def connect(address: str, context: ssl.SSLContext | None, answer_s: float) -> "Connection":
    """A connection to HOST:PORT, whose answers come within `answer_s`.  RpcError, of a call that was not sent."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    error: object = f"no answer within {CONNECT_S:g} s"
    with trio.move_on_after(CONNECT_S):
        try:
            stream = await trio.open_tcp_stream(host, int(port))
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = socket.socket(fileno=stream.socket.detach())
            sock.setblocking(False)
            tls = None
            if context is not None:
                tls = await _secured(sock, Tls(context, host))
            return Connection(sock, tls, address, answer_s)
        except (OSError, ValueError) as failure:
            error = failure
    raise RpcError(f"cannot connect to {address}: {error}", sent=False)


async def _secured(sock: socket.socket, tls: Tls) -> Tls:
    try:
        while True:
            done = tls.shake()
            if hello := tls.to_send():
                await trio.lowlevel.wait_writable(sock)
                sock.sendall(hello)
            if done:
                return tls
            await trio.lowlevel.wait_readable(sock)
            received = sock.recv(BUFFER)
            if not received:
                raise ConnectionError("the server ended the connection within the TLS handshake")
            tls.take(received)
    except BaseException:
        sock.close()
        raise


class Connection:
    """See the head of the file.  Made within a trio run, and of use only there."""

    def __init__(self, sock: socket.socket, tls: Tls | None, address: str, answer_s: float) -> None:
        self._sock = sock
        self._address = address
        self._answer_s = answer_s
        self._expected: dict[Expected, None] = {}
        """In the order of their deadlines, as all have the same time."""
        self._watched = False
        self._tls = tls
        self._backlog = bytearray()
        self._reading = trio.CancelScope()
        self.closed = False
        self._paying = False
        self._heard = trio.current_time()
        """When the server last said something."""
        self.http = Http2(self._write if tls is None else self._write_secret, address, secure=tls is not None)
        self.http.start()
        trio.lowlevel.spawn_system_task(self._read)

    @property
    def usable(self) -> bool:
        return self.http.usable and not self.closed

    def expect(self, what: Expected) -> None:
        """Tell it when it is late, unless it has come: one task for all, as a timer for each costs as much as its call."""
        what.deadline = trio.current_time() + self._answer_s
        self._expected[what] = None
        if not self._watched:
            self._watched = True
            trio.lowlevel.spawn_system_task(self._watch)

    def came(self, what: Expected) -> None:
        """Or nobody waits for it any more."""
        self._expected.pop(what, None)

    async def _watch(self) -> None:
        expected = self._expected
        while expected:
            first = next(iter(expected))
            now = trio.current_time()
            if first.deadline > now:
                await trio.sleep_until(first.deadline)
                # After a standstill of this process, what has come meanwhile is read first.
                await trio.lowlevel.checkpoint()
                continue
            del expected[first]
            error = RpcError(f"{self._address} does not answer within {self._answer_s:g} s", code=DEADLINE_EXCEEDED)
            first.late(error)
            if now - self._heard >= self._answer_s:
                self.close(error)  # not a word to anybody for so long: it may hang for ever
        self._watched = False

    def retire(self) -> None:
        """Take no more calls; closed at once if there are none, else after the last."""
        self.http.usable = False
        if self.http.idle:
            self.close(RpcError("the connection is not wanted any more", sent=False))

    def close(self, why: RpcError) -> None:
        """End it and whatever is under way on it."""
        if self.closed:
            return
        self.closed = True
        self._reading.cancel()
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self.http.fail(why)

    def _write_secret(self, plain: bytes) -> None:
        assert self._tls is not None
        self._write(self._tls.encrypt(plain))

    def _write(self, content: bytes) -> None:
        if self.closed:
            return
        if self._backlog:
            self._backlog += content
            return
        try:
            sent = self._sock.send(content)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.http.usable = False
            return  # the reading task meets the same error, and tells everybody
        if sent < len(content):
            self._backlog += content[sent:]
            trio.lowlevel.spawn_system_task(self._drain)

    async def _pay(self) -> None:
        await trio.sleep(PAY_S)
        self._paying = False
        self.http.pay()

    async def _drain(self) -> None:
        try:
            while self._backlog and not self.closed:
                await trio.lowlevel.wait_writable(self._sock)
                sent = self._sock.send(self._backlog)
                del self._backlog[:sent]
        except (OSError, trio.ClosedResourceError) as error:
            self.close(RpcError(f"connection lost: {error}"))

    async def _read(self) -> None:
        why = "the connection is closed"
        try:
            with self._reading:
                await self._read_on()
        except (OSError, trio.ClosedResourceError, ProtocolError) as error:
            why = f"connection lost: {error}"
        except Exception as error:
            log.exception("what a server sent is not understood")
            why = f"connection lost: {error}"
        finally:
            self.close(RpcError(why))

    async def _read_on(self) -> None:
        sock, http = self._sock, self.http
        feed = http.feed
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        while not self.closed:
            await trio.lowlevel.wait_readable(sock)
            try:
                size = sock.recv_into(buffer)
            except BlockingIOError:
                continue
            if size == 0:
                raise ConnectionError("the server closed it")
            self._heard = trio.current_time()
            received = bytes(view[:size])
            if self._tls is not None:
                received = self._tls.decrypt(received)
                if answer := self._tls.to_send():
                    self._write(answer)
            feed(received)
            if http.owes and not self._paying:
                self._paying = True
                trio.lowlevel.spawn_system_task(self._pay)
            if http.idle and not http.usable:
                return  # the server asked for that
