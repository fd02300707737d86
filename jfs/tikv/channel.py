"""Calls to one server, over a connection that is made when it is wanted and made anew when it is lost."""

import ssl
from collections.abc import Callable
from typing import Any

import trio

from jfs.tikv.connection import Connection, connect
from jfs.tikv.errors import RpcError
from jfs.tikv.http2 import Stream
from jfs.tikv.parallel import Together


class Call(Stream):
    """A unary call, awaited by the task that made it."""

    __slots__ = ("_connection", "_done", "_error", "_parts", "_task", "deadline")

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self.deadline = 0.0
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
        self._connection.came(self)
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    def _abandon(self, _: Callable[[], Any]) -> trio.lowlevel.Abort:
        self._task = None
        self._connection.came(self)
        self._connection.http.reset(self)
        return trio.lowlevel.Abort.SUCCEEDED

    def late(self, error: RpcError) -> None:
        self._connection.http.reset(self)
        self.ended(error)


class Channel:
    """The server at HOST:PORT."""

    def __init__(self, address: str, context: ssl.SSLContext | None, answer_s: float) -> None:
        """A call fails after `answer_s`."""
        self.address = address
        self._context = context
        self._answer_s = answer_s
        self._connection: Connection | None = None
        self._retired = False
        self._connecting: Together[Connection] = Together()

    async def call(self, path: str, message: bytes) -> bytes:
        """The answer to one message.  RpcError."""
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self.connection()
        call = Call(connection)
        connection.expect(call)
        connection.http.open(path, call, message)
        return await call.answer()

    async def connection(self) -> Connection:
        """The connection as it is, or a new one.  RpcError."""
        return await self._connecting.get(self._usable, self._connect)

    def _usable(self) -> Connection | None:
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def _connect(self) -> Connection:
        connection = self._connection = await connect(self.address, self._context, self._answer_s)
        if self._retired:  # of use to the call that wanted it, and to no other
            connection.http.usable = False
        return connection

    def retire(self) -> None:
        """Nobody makes calls here any more: the connection is closed as soon as the last of them has its answer."""
        self._retired = True
        if self._connection is not None:
            self._connection.retire()

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close(RpcError("the client is closed"))
            self._connection = None
