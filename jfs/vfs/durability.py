"""What makes fsync true: rounds that put blocks and metadata on stable storage, in that order.

A record must never reach the disk before the blocks that it points at.  Blocks are put before their record is committed,
so a round that syncs first the blocks and then the metadata log keeps that order, unless a record is committed between
the two: the log's sync would carry it to the disk ahead of its blocks, and if it overwrites older data a power cut would
lose both.  So commits of records hold still while a round runs, and checkpoints of the embedded engine, which make
committed records durable too, are rounds as well.

Callers share rounds: whoever asks while one runs is served by the next, together with all who ask meanwhile.

A flush of blocks that failed is not made good by a later one: the kernel has dropped the pages that it could not write.  So
`failures` counts them, whoever began the round, and each open handle's next fsync reports them once.
"""

from types import TracebackType
from typing import Protocol

import trio

from jfs.errors import StoreError


class Blocks(Protocol):
    """The part of the block store that a round needs."""

    async def sync(self) -> None: ...


class Log(Protocol):
    """The part of the metadata client that a round needs."""

    async def sync(self) -> None: ...

    async def checkpoint(self) -> None: ...


class Durability:
    """One mount's rounds, and the gate that commits of records pass: `async with durability: commit`."""

    def __init__(self, meta: Log, blocks: Blocks) -> None:
        self._meta = meta
        self._blocks = blocks
        self._commits = 0
        self._closed = False
        self._gate = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._round = trio.Lock()
        self._started = 0
        self._done = 0
        """The number of the latest round that succeeded."""
        self.failures = 0
        """Flushes of blocks that failed so far: what was put before may be lost."""

    async def __aenter__(self) -> None:
        while self._closed:
            await self._gate.park()
        self._commits += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._commits -= 1
        if self._commits == 0:
            self._drained.unpark_all()

    async def sync(self, failures: int | None = None) -> None:
        """Return once every block put and every record committed before this call is durable.

        Raises StoreError if blocks were lost meanwhile, in whoever's round.  Whoever put blocks before this call, which an
        earlier round may have lost, says how many `failures` there were before them.
        """
        if failures is None:
            failures = self.failures
        enough = self._started + 1
        while self._done < enough:
            async with self._round:
                if self._done < enough:
                    await self._run(checkpoint=False)
        if self.failures != failures:
            raise StoreError("an earlier flush of blocks failed")

    async def checkpoint(self) -> None:
        """Move the embedded engine's log into its database, as a round."""
        async with self._round:
            await self._run(checkpoint=True)

    async def _run(self, *, checkpoint: bool) -> None:
        self._started += 1
        number = self._started
        self._closed = True
        try:
            while self._commits:
                await self._drained.park()
            try:
                await self._blocks.sync()
            except (StoreError, OSError):
                self.failures += 1
                raise
            await (self._meta.checkpoint() if checkpoint else self._meta.sync())
        finally:
            self._closed = False
            self._gate.unpark_all()
        if not checkpoint:
            self._done = number
