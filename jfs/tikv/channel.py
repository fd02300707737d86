"""Calls to one server, over a connection that is made when it is wanted and made anew when it is lost."""

import ssl
from collections.abc import Callable
from typing import Any

import trio

from jfs.tikv.connection import Connection, connect
from jfs.tikv.errors import DEADLINE_EXCEEDED, RpcError
from jfs.tikv.http2 import Http2, Stream
from jfs.tikv.parallel import Together


class Call(Stream):
    """A unary call, awaited by the task that made it."""

    __slots__ = ("_done", "_error", "_http", "_parts", "_task")

    def __init__(self, http: Http2) -> None:
        super().__init__()
        self._http = http
        self._parts: list[bytes] = []
        self._task: trio.lowlevel.Task | None = None
        self._done = False
        self._error: RpcError | None = None

    async def answer(self) -> bytes:
        """The message.  RpcError; if it is cancelled, the server is told so."""
        if not self._done:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abandon)
        if self._error is not None:
            raise self._error
        parts = self._parts
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(message) < 5 or message[0] or int.from_bytes(message[1:5], "big") != len(message) - 5:
            raise RpcError("an answer that is not one message")
        return message[5:]

    def received(self, content: bytes) -> None:
        self._parts.append(content)

    def ended(self, error: RpcError | None) -> None:
        self._done = True
        self._error = error
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    def _abandon(self, _: Callable[[], Any]) -> trio.lowlevel.Abort:
        self._task = None
        self._http.reset(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Channel:
    """The server at HOST:PORT."""

    def __init__(self, address: str, context: ssl.SSLContext | None = None) -> None:
        self.address = address
        self._context = context
        self._connection: Connection | None = None
        self._connecting: Together[Connection] = Together()

    async def call(self, path: str, message: bytes, timeout_s: float) -> bytes:
        """The answer to one message.  RpcError."""
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self.connection()
        call = Call(connection.http)
        with trio.move_on_after(timeout_s):
            connection.http.open(path, call, message)
            return await call.answer()
        error = RpcError(f"{self.address} does not answer within {timeout_s:g} s", code=DEADLINE_EXCEEDED)
        if trio.current_time() - connection.heard >= timeout_s:
            connection.close(error)  # not a word to anybody for so long: it may hang for ever
        raise error

    async def connection(self) -> Connection:
        """The connection as it is, or a new one.  RpcError."""
        return await self._connecting.get(self._usable, self._connect)

    def _usable(self) -> Connection | None:
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def _connect(self) -> Connection:
        self._connection = await connect(self.address, self._context)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close(RpcError("the client is closed"))
            self._connection = None
