"""Inode and slice ids: drawn from the volume's counters in batches, handed out from memory."""

from collections.abc import Awaitable, Callable


class Ids:
    """One kind of id.  `fetch` gives the next batch, [first, end); ids that are left at the end are lost."""

    __slots__ = ("_ahead", "_end", "_fetch", "_low", "_next", "on_low")

    def __init__(self, fetch: Callable[[], Awaitable[tuple[int, int]]], batch: int) -> None:
        self._fetch = fetch
        self._low = batch // 10
        self._next = self._end = 0
        self._ahead: tuple[int, int] | None = None
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
            self._ahead = await self._fetch()

    async def _advance(self) -> None:
        while self._next == self._end:
            batch = self._ahead or await self._fetch()
            self._ahead = None
            if self._next == self._end:  # nobody else has advanced while this waited
                self._next, self._end = batch
