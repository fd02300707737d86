"""The volume's books: usage counters, directory statistics, limits and what statfs makes of them.

Operations say what they add (`tx.charge`); it collects here and is flushed every second in a few transactions.
"""

import errno
from collections import deque
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Final

import msgspec

from jfs.errors import FsError
from jfs.meta.access import usage
from jfs.meta.run import read, run
from jfs.meta.settings import Settings
from jfs.meta.transaction import Charges, Engine, Transaction, add_dir_delta
from jfs.meta.types import TRASH_INO, TYPE_DIR, DirStat, Ino, int64

DIRS_AT_ONCE: Final = 20
PATIENCE: Final = 5
"""For how many flushes a directory's statistics may be waiting for what other clients have still to add."""
FREE_INODES: Final = 10 << 20
CHANGES: Final = 4096
_PAGE: Final = 1000

DirDelta = tuple[int, int, int]
"""Change of a directory's children: length, space, inodes."""


class StatFs(msgspec.Struct, frozen=True):
    """What statfs tells, in bytes and inodes."""

    total_space: int
    used_space: int
    available_space: int
    used_inodes: int
    available_inodes: int


def statfs_of(settings: Settings, space: int, inodes: int) -> StatFs:
    """From usage to what `df` shows; a volume without limits looks large and at most 80 % full."""
    space, inodes = max(space, 0), max(inodes, 0)
    if settings.capacity > 0:
        total = max(settings.capacity, space)
    else:
        total = 1 << 50
        while total * 8 < space * 10:
            total *= 2
    if settings.inodes > 0:
        free = max(settings.inodes - inodes, 0)
    else:
        free = FREE_INODES
        while inodes > 4 * free:
            free *= 2
    return StatFs(total, space, total - space, inodes, free)


async def load_usage(tx: Transaction) -> tuple[int, int]:
    """Space and inodes by the volume's counters."""
    return await tx.counter("usedSpace"), await tx.counter("totalInodes")


async def add_usage(tx: Transaction, space: int, inodes: int) -> tuple[int, int]:
    return await tx.add_counter("usedSpace", space), await tx.add_counter("totalInodes", inodes)


async def add_dir_stats(
    tx: Transaction, changes: Sequence[tuple[Ino, DirDelta]], negative_too: bool
) -> tuple[list[Ino], list[Ino]]:
    """Add to directory statistics.  Left alone and returned: those that were missing, those that would become negative.

    Sparse files may add up to more than 64 bits.  Such a sum goes round, is stored as it comes, and is right again when it
    has become small.
    """
    missing, negative = [], []
    for ino, (length, space, inodes) in changes:
        stat = await tx.dir_stat(ino)
        if stat is None:
            missing.append(ino)
            continue
        least, most = min(stat.length, stat.space, stat.inodes), max(stat.length + length, stat.space + space)
        stat.length = int64(stat.length + length)
        stat.space = int64(stat.space + space)
        stat.inodes += inodes
        gone_round = least < 0 or most >= 1 << 63
        if min(stat.length, stat.space, stat.inodes) < 0 and not gone_round and not negative_too:
            negative.append(ino)
        else:
            tx.put_dir_stat(ino, stat)
    return missing, negative


async def count_dir(tx: Transaction, ino: Ino) -> DirStat:
    """What a directory's children add up to, counted."""
    total = DirStat()
    after: bytes | None = None
    while True:
        page = await tx.entries(ino, after, _PAGE)
        for entry in page:
            if entry.attr is not None:
                length, space = usage(entry.attr)
                total.length += length
                total.space += space
                total.inodes += 1
        if len(page) < _PAGE:
            return DirStat(int64(total.length), int64(total.space), total.inodes)
        after = page[-1].name


async def recount_dir(tx: Transaction, ino: Ino, pending: dict[Ino, DirDelta]) -> None:
    """Store a directory's statistics afresh.  What is still pending for it is part of what is counted."""
    pending.pop(ino, None)
    attr = await tx.attr(ino)
    if attr is not None and attr.type == TYPE_DIR:
        tx.put_dir_stat(ino, await count_dir(tx, ino))


class Reservation:
    """Room that an operation which has not committed yet needs."""

    __slots__ = ("inodes", "space")

    def __init__(self) -> None:
        self.space = self.inodes = 0


class Changes:
    """Which inodes this client's own commits have changed or renamed lately, in the order of the commits."""

    def __init__(self, limit: int = CHANGES) -> None:
        self._inos: deque[Ino] = deque(maxlen=limit)
        self.number = 0
        """How many there were."""

    def add(self, inos: Collection[Ino]) -> None:
        self._inos.extend(inos)
        self.number += len(inos)

    def since(self, number: int) -> list[Ino] | None:
        """Those after the first `number`; None where they are too many to know."""
        count = self.number - number
        return list(islice(reversed(self._inos), count)) if count <= len(self._inos) else None


class Usage:
    """One client's view of the volume's usage: last known counters, own changes on their way there, reservations."""

    def __init__(self) -> None:
        self.space = self.inodes = 0
        self.pending_space = self.pending_inodes = 0
        self.reserved_space = self.reserved_inodes = 0
        self.dirs: dict[Ino, DirDelta] = {}
        self.changes = Changes()
        self._waited: dict[Ino, int] = {}

    async def load(self, engine: Engine) -> None:
        self.space, self.inodes = await read(engine, load_usage)

    def add(self, charges: Charges) -> None:
        """A transaction has committed."""
        self.pending_space += charges.space
        self.pending_inodes += charges.inodes
        for ino, delta in charges.dirs.items():
            add_dir_delta(self.dirs, ino, *delta)
        self.changes.add(charges.attrs)

    def statfs(self, settings: Settings) -> StatFs:
        return statfs_of(settings, self.space + self.pending_space, self.inodes + self.pending_inodes)

    # -- limits

    def reserve(self, settings: Settings, reservation: Reservation, charges: Charges) -> None:
        """Set room aside for what is about to commit.  Raises ENOSPC; shrinking always succeeds."""
        space, inodes = max(charges.space, 0), max(charges.inodes, 0)
        used_space = self.space + self.pending_space + self.reserved_space
        used_inodes = self.inodes + self.pending_inodes + self.reserved_inodes
        if (space and 0 < settings.capacity < used_space + space) or (
            inodes and 0 < settings.inodes < used_inodes + inodes
        ):
            raise FsError(errno.ENOSPC)
        reservation.space, reservation.inodes = space, inodes
        self.reserved_space += space
        self.reserved_inodes += inodes

    def release(self, reservation: Reservation) -> None:
        self.reserved_space -= reservation.space
        self.reserved_inodes -= reservation.inodes
        reservation.space = reservation.inodes = 0

    # -- to the database

    async def flush(self, engine: Engine, *, dir_stats: bool, last: bool = False) -> None:
        """Store what is pending.  One flush at a time; what fails stays pending.

        Statistics that would come out negative wait a while for other clients' flushes, except in the `last` one.
        """
        space, inodes = self.pending_space, self.pending_inodes
        if space or inodes:
            (self.space, self.inodes), _ = await run(engine, add_usage, space, inodes)
            self.pending_space -= space
            self.pending_inodes -= inodes
        if not dir_stats:
            self.dirs.clear()
            return
        dirs = list(self.dirs)
        for first in range(0, len(dirs), DIRS_AT_ONCE):
            await self._flush_dirs(engine, dirs[first : first + DIRS_AT_ONCE], last=last)

    async def _flush_dirs(self, engine: Engine, dirs: Sequence[Ino], *, last: bool) -> None:
        batch = [(ino, self.dirs.pop(ino)) for ino in dirs if ino in self.dirs]
        changes = [(ino, delta) for ino, delta in batch if delta != (0, 0, 0) and ino != TRASH_INO]
        if not changes:
            return
        try:
            (stale, negative), _ = await run(engine, add_dir_stats, changes, last)
        except BaseException:
            for ino, delta in changes:
                add_dir_delta(self.dirs, ino, *delta)
            raise
        for ino, delta in changes:
            waited = self._waited.pop(ino, 0)
            if ino in negative and waited < PATIENCE:
                self._waited[ino] = waited + 1
                add_dir_delta(self.dirs, ino, *delta)
            elif ino in negative:
                stale.append(ino)
        for ino in stale:
            await run(engine, recount_dir, ino, self.dirs)
