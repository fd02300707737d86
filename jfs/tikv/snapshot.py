"""Reading the keys as they were at one time."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from jfs.tikv import messages
from jfs.tikv.backoff import Backoff
from jfs.tikv.cluster import Cluster
from jfs.tikv.locks import Locks, lock_of
from jfs.tikv.messages import Lock
from jfs.tikv.parallel import in_parallel
from jfs.tikv.regions import Region
from jfs.tikv.wire import parse

Pair = tuple[bytes, bytes]

PAGE: Final = 4096
"""Pairs asked for in one request."""
BATCH: Final = 4096
"""Keys asked for in one request."""


class Snapshot:
    """What was committed up to `timestamp`; with LATEST each key as it is when the store gets to it."""

    __slots__ = ("_cluster", "_committed", "_locks", "_passed", "timestamp")

    def __init__(self, cluster: Cluster, locks: Locks, timestamp: int) -> None:
        self._cluster = cluster
        self._locks = locks
        self.timestamp = timestamp
        self._passed: set[int] = set()
        self._committed: set[int] = set()

    async def get(self, key: bytes) -> bytes | None:
        """The value, or None.  Unavailable, Conflict."""
        request = messages.get(key, self.timestamp)
        backoff = self._cluster.backoff()
        cluster = self._cluster
        while True:
            region = cluster.regions.known(key) or await cluster.regions.of(key, backoff)
            answer = await cluster.ask(region, messages.GET, request, backoff, seen=self._seen())
            if answer is None:
                continue
            found = parse(answer)
            if 2 in found:
                await self._make_way([found[2]], backoff)
                continue
            if 4 in found:
                return None
            value: bytes = found.get(3, b"")
            return value

    async def batch_get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that exist; each region is asked at once.  Unavailable, Conflict."""
        wanted = list(keys)
        if len(wanted) == 1:
            value = await self.get(wanted[0])
            return {} if value is None else {wanted[0]: value}
        found: dict[bytes, bytes] = {}
        backoff = self._cluster.backoff()
        while wanted:
            groups = await self._cluster.regions.group(wanted, backoff)
            parts = [
                (region, mine[first : first + BATCH])
                for region, mine in groups.items()
                for first in range(0, len(mine), BATCH)
            ]
            later: list[bytes] = []
            if len(parts) == 1:
                await self._fetch(*parts[0], found, later, backoff)
            else:
                await in_parallel([partial(self._fetch, region, mine, found, later, backoff) for region, mine in parts])
            wanted = later
        return found

    async def _fetch(
        self, region: Region, keys: list[bytes], found: dict[bytes, bytes], later: list[bytes], backoff: Backoff
    ) -> None:
        """One request: what it finds is added to `found`, what is to be asked for again to `later`."""
        request = messages.batch_get(keys, self.timestamp)
        answer = await self._cluster.ask(region, messages.BATCH_GET, request, backoff, seen=self._seen())
        if answer is None:
            later += keys
            return
        pairs, errors = messages.pairs(answer)
        whole = parse(answer).get(5) if errors or not pairs else None
        if whole is not None:
            # One lock in the store's memory: nothing was read.  Servers repeat it as a pair, which is not the only key.
            await self._make_way([whole], backoff)
            later += keys
            return
        found.update(pairs)
        if errors:
            later += [lock.key for lock in await self._make_way(errors, backoff)]

    async def scan(self, start: bytes, end: bytes, limit: int | None = None) -> list[Pair]:
        """The first `limit` pairs of [start, end), in order; an empty `end` is no bound.  Unavailable, Conflict."""
        found: list[Pair] = []
        backoff = self._cluster.backoff()
        while (not end or start < end) and (limit is None or len(found) < limit):
            region = await self._cluster.regions.of(start, backoff)
            wanted = PAGE if limit is None else min(PAGE, limit - len(found))
            stop = region.end if region.end and (not end or region.end < end) else end
            request = messages.scan(start, stop, wanted, self.timestamp)
            answer = await self._cluster.ask(region, messages.SCAN, request, backoff, seen=self._seen())
            if answer is None:
                continue
            pairs, errors = messages.pairs(answer)
            if not pairs and not errors and 3 in (whole := parse(answer)):
                errors = [whole[3]]
            if errors:
                await self._make_way(errors, backoff)
                continue
            found += pairs
            backoff = self._cluster.backoff()
            if len(pairs) == wanted:
                start = pairs[-1][0] + b"\0"
            elif stop == end:
                break
            else:
                start = stop
        return found

    def _seen(self) -> bytes:
        if not self._passed and not self._committed:
            return b""
        return messages.seen_locks(self._passed, self._committed)

    async def _make_way(self, errors: Sequence[bytes], backoff: Backoff) -> list[Lock]:
        """Errors of keys, which should be locks: see to it that the next try gets past them, or wait."""
        locks = [lock_of(error) for error in errors]
        verdict = await self._locks.for_reader(locks, self.timestamp, backoff)
        self._passed |= verdict.passed
        self._committed |= verdict.committed
        if verdict.wait_ms:
            await backoff.wait_for_others("a transaction under way holds a lock")
        return locks
