"""One flight per block: whoever wants bytes that are being fetched already waits for them instead of fetching them too."""

from collections.abc import Awaitable, Callable

import trio

from jfs.errors import StoreError
from jfs.object.store import Buffer

FlightKey = tuple[str, int, int, bytes]
"""Object, offset, length, and the fingerprint to hold the bytes against."""


class _Flight:
    __slots__ = ("done", "error", "result")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: Buffer | None = None
        self.error: StoreError | None = None


class Flights:
    """Fetches under way, by what they fetch."""

    def __init__(self) -> None:
        self._under_way: dict[FlightKey, _Flight] = {}

    async def run(self, what: FlightKey, fetch: Callable[[], Awaitable[Buffer]]) -> Buffer:
        """The result of `fetch`, or of the same fetch under way.  Raises StoreError, to all who wait."""
        while True:
            flight = self._under_way.get(what)
            if flight is None:
                return await self._lead(what, fetch)
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.result is not None:
                return flight.result
            # The leader was cancelled: somebody else has to lead.

    async def _lead(self, what: FlightKey, fetch: Callable[[], Awaitable[Buffer]]) -> Buffer:
        flight = self._under_way[what] = _Flight()
        try:
            flight.result = await fetch()
        except StoreError as error:
            flight.error = error
            raise
        finally:
            del self._under_way[what]
            flight.done.set()
        return flight.result
