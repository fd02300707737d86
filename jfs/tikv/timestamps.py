"""Timestamps: a conversation with PD's leader that goes on for as long as the connection.

Who asks while few requests are under way is served by one of its own; the others share the next one.  A timestamp is handed
out by a request that was sent after it was asked for: it is later than everything that was committed before.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from jfs.tikv.connection import Connection
from jfs.tikv.errors import RpcError
from jfs.tikv.http2 import Stream
from jfs.tikv.messages import PHYSICAL_SHIFT
from jfs.tikv.wire import Malformed, number, parse

TSO: Final = "/pdpb.PD/Tso"
AT_ONCE: Final = 4
"""Requests under way, beyond which timestamps are asked for together."""


class Waiter:
    """A task that waits for a timestamp."""

    __slots__ = ("_conversation", "deadline", "error", "task", "timestamp")

    def __init__(self, conversation: "Timestamps") -> None:
        self._conversation = conversation
        self.deadline = 0.0
        self.task: trio.lowlevel.Task | None = None
        self.timestamp = 0
        self.error: RpcError | None = None

    async def wait(self) -> int:
        if not self.timestamp and self.error is None:
            self.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abandon)
        if self.error is not None:
            raise self.error
        return self.timestamp

    def _abandon(self, _: Callable[[], Any]) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def settle(self, timestamp: int, error: RpcError | None = None) -> None:
        self.timestamp, self.error = timestamp, error
        self._conversation.connection.came(self)
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)

    def late(self, error: RpcError) -> None:
        self._conversation.close(error)


class Timestamps(Stream):
    """The conversation on one connection."""

    __slots__ = ("_asked", "_head", "_opened", "_rest", "_waiting", "connection", "over")

    def __init__(self, connection: Connection, head: bytes) -> None:
        super().__init__()
        self.connection = connection
        self._head = head
        self._opened = False
        self._rest = b""
        self._asked: deque[list[Waiter]] = deque()
        self._waiting: list[Waiter] = []
        self.over = False

    async def next(self) -> int:
        """RpcError."""
        waiter = Waiter(self)
        self.connection.expect(waiter)
        if len(self._asked) < AT_ONCE:
            self._ask([waiter])
        else:
            self._waiting.append(waiter)
        return await waiter.wait()

    def _ask(self, waiters: list[Waiter]) -> None:
        self._asked.append(waiters)
        message = self._head + number(2, len(waiters))
        if self._opened:
            self.connection.http.send(self, message)
        else:
            self._opened = True
            self.connection.http.open(TSO, self, message, last=False)

    def received(self, content: bytes) -> None:
        rest = self._rest + content if self._rest else content
        while len(rest) >= 5:
            end = 5 + int.from_bytes(rest[1:5], "big")
            if len(rest) < end:
                break
            self._answer(rest[5:end])
            rest = rest[end:]
        self._rest = rest

    def _answer(self, message: bytes) -> None:
        if not self._asked:
            return
        waiters = self._asked.popleft()
        try:
            answer = parse(message)
            why = parse(answer.get(1, b"")).get(2)
            stamp = parse(answer.get(3, b""))
            if why is not None:
                raise RpcError(f"PD: {parse(why).get(2, b'').decode(errors='replace')}")
            if answer.get(2, 0) != len(waiters):
                raise RpcError(f"PD hands out {answer.get(2, 0)} timestamps where {len(waiters)} were wanted")
        except (RpcError, Malformed) as error:
            for waiter in waiters:
                waiter.settle(0, RpcError(str(error)))
        else:
            step = 1 << stamp.get(3, 0)
            last = (stamp.get(1, 0) << PHYSICAL_SHIFT) + stamp.get(2, 0)
            for back, waiter in enumerate(reversed(waiters)):
                waiter.settle(last - back * step)
        if self._waiting:
            waiters, self._waiting = self._waiting, []
            self._ask(waiters)

    def ended(self, error: RpcError | None) -> None:
        self.over = True
        why = error or RpcError("PD ended the conversation")
        waiters = [waiter for each in self._asked for waiter in each] + self._waiting
        self._asked.clear()
        self._waiting = []
        for waiter in waiters:
            waiter.settle(0, why)

    def close(self, why: RpcError) -> None:
        """Whoever waits is told to ask elsewhere."""
        if not self.over:
            self.connection.http.reset(self)
            self.ended(why)
