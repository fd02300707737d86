"""How the FUSE workers wait for the next request: poll a little before sleeping.

A round trip through the kernel is mostly sleep and wake-up, not Python.  While requests keep coming, the next one is
usually a few microseconds away, so the waiting worker polls the descriptor for at most 100 us before it goes to epoll.
The polling stops by itself: it takes recent hits to earn it, and a few misses in a row lose it.
"""

import select
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Final

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_task_rescheduled

SPIN_NS: Final = 100_000
"""How long to poll for one request."""

CREDIT_MAX: Final = 16
MISS_COST: Final = 4
"""A run of misses this short of the maximum credit ends the polling."""

WARM_NS: Final = 250_000
"""A request that epoll delivered sooner than this earns credit."""

YIELD_EVERY: Final = 8
"""Requests served in a row before the other tasks of the loop get a turn."""

TURN_NS: Final = 20_000
"""While polling, the other tasks of the loop get a turn this often."""


class Poller:
    """Waits for a descriptor to become readable."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self.credit = 0
        self._streak = 0
        self._closing = False
        self.hits = 0
        self.sleeps = 0

    async def turn(self) -> None:
        """Called before each read: now and then the other tasks of the loop get a turn."""
        self._streak += 1
        if self._streak >= YIELD_EVERY:
            self._streak = 0
            await checkpoint()

    def hit(self) -> None:
        """Something was there at once."""
        self.hits += 1
        if self.credit < CREDIT_MAX:
            self.credit += 1

    async def wait_readable(self, *, eager: bool = True) -> None:
        """As trio's, but if `eager` polls first; may return without a checkpoint.  ClosedResourceError once closed."""
        poll = self._poll
        if poll(0):
            self.hit()
            return
        began = perf_counter_ns()
        if eager and self.credit > 0:
            end = began + SPIN_NS
            self._streak = 0
            turn = began + TURN_NS
            while (now := perf_counter_ns()) < end:
                if poll(0):
                    self.hit()
                    return
                if now >= turn:
                    await checkpoint()
                    turn = perf_counter_ns() + TURN_NS
            self.credit -= MISS_COST
        if self._closing:  # said while nobody was in epoll to hear it
            raise trio.ClosedResourceError
        self._streak = 0
        self.sleeps += 1
        await trio.lowlevel.wait_readable(self._fd)
        if perf_counter_ns() - began < WARM_NS:
            self.credit = min(self.credit + 2, CREDIT_MAX)

    def close(self) -> None:
        """Who waits, and whoever waits from now on, gets ClosedResourceError."""
        self._closing = True
        trio.lowlevel.notify_closing(self._fd)


class ReadLock:
    """Lets one worker at a time wait for a request; the last worker to let go may take it again at once.

    trio's lock hands over in turn, which costs a task switch per request.  Here a worker that served its request without
    waiting goes on with the next one; an idle worker, woken at each release, takes over where the former did have to wait.
    """

    def __init__(self) -> None:
        self._held = False
        self._idle: list[Task] = []
        self._woken = False

    @property
    def has_heir(self) -> bool:
        """Whether somebody would take over if the holder had to wait elsewhere."""
        return self._woken or bool(self._idle)

    @property
    def idle(self) -> int:
        """How many wait for their turn; one of them will have it."""
        return len(self._idle)

    async def __aenter__(self) -> None:
        while self._held:
            await self._park()
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._idle and not self._woken:
            self._woken = True
            reschedule(self._idle.pop())

    async def _park(self) -> None:
        task = current_task()
        self._idle.append(task)

        def abort(_: Any) -> Abort:
            self._idle.remove(task)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)
        self._woken = False
