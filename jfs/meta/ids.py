"""Inode and slice ids: drawn from the volume's counters in batches, handed out from memory."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio


class Ids:
    """One kind of id.  `fetch` gives the next batch, [first, end); ids that are left at the end are lost."""

    __slots__ = ("_ahead", "_end", "_fetch", "_fetching", "_low", "_next", "_waiting", "on_low")

    def __init__(self, fetch: Callable[[], Awaitable[tuple[int, int]]], batch: int) -> None:
        self._fetch = fetch
        self._low = batch // 10
        self._next = self._end = 0
        self._ahead: tuple[int, int] | None = None
        self._fetching = False
        self._waiting: trio.lowlevel.ParkingLot | None = None
        self.on_low: Callable[[], None] | None = None

    async def draw(self) -> int:
        while (drawn := self.draw_now()) is None:
            await self._advance()
        return drawn

    def draw_now(self) -> int | None:
        """The next one, if it is in memory."""
        if self._next == self._end:
            return None
        drawn = self._next
        self._next = drawn + 1
        if self._end - drawn == self._low and self._ahead is None and self.on_low is not None:
            self.on_low()
        return drawn

    async def refill(self) -> None:
        """Fetch the next batch ahead, if few are left."""
        if self._ahead is None and self._end - self._next <= self._low:
            await self._load()

    async def _advance(self) -> None:
        while self._next == self._end:
            if self._ahead is None:
                await self._load()
            else:
                (self._next, self._end), self._ahead = self._ahead, None

    async def _load(self) -> None:
        """Have one batch ahead.  Whoever comes while it is being fetched waits for it; if it fails, he may try himself."""
        if self._fetching:
            import trio  # not at the top: commands without an event loop draw ids too, one at a time

            self._waiting = self._waiting or trio.lowlevel.ParkingLot()
            await self._waiting.park()
            return
        self._fetching = True
        try:
            self._ahead = await self._fetch()
        finally:
            self._fetching = False
            if self._waiting is not None:
                self._waiting.unpark_all()
