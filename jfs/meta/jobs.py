"""What some client of a volume does every hour: data of deleted files, dead slices, old trash.

The engine's job counters choose the client that does it.  Blocks are not deleted here: what may go is put on the
client's queue of deleted files and slices, which the cleaner empties.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from errno import ENOENT, ENOTEMPTY
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import FsError
from jfs.meta import files, trash
from jfs.meta.run import read
from jfs.meta.transaction import Transaction
from jfs.meta.types import ROOT, TYPE_DIR, DelayedSlices, DeletedFile, DirEntry, Ino, SliceRef, charged_space

if TYPE_CHECKING:
    from jfs.meta.client import MetaClient

log = logging.getLogger(__name__)

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
TRASH_GRACE_S: Final = 2 * HOUR_S
JOB_LIMIT_S: Final = 50 * 60
"""So long one job may take; the rest waits for its next turn."""

PATIENCE_S: Final = 30.0
QUEUE_LIMIT: Final = 100_000
_PAGE: Final = 1000

Deleted = DeletedFile | SliceRef


class DeletedQueue:
    """Deleted files and dead slices whose data is to be removed.  Bounded: what does not fit is found again by a job."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        self._items: deque[Deleted] = deque()
        self._limit = limit
        self._waiting = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Deleted) -> bool:
        """Whether there was room."""
        if len(self._items) >= self._limit:
            return False
        self._items.append(item)
        self._waiting.unpark()
        return True

    def take(self) -> Deleted | None:
        """The oldest one, if there is any."""
        return self._items.popleft() if self._items else None

    async def get(self) -> Deleted:
        """The oldest one, once there is any; whoever calls this has dealt with those that it got before."""
        while not self._items:
            self._emptied.unpark_all()
            await self._waiting.park()
        return self._items.popleft()

    async def emptied(self) -> None:
        """Return once `get` finds nothing."""
        await self._emptied.park()


# -- operations


async def claim_job(tx: Transaction, counter: str, period_s: float, now_s: int) -> bool:
    """Whether the caller shall do the job now: nobody has begun it within nine tenths of its period."""
    if await tx.counter(counter) > now_s - period_s * 0.9:
        return False
    tx.put_counter(counter, now_s)
    return True


async def deleted_files(tx: Transaction, before: int, limit: int) -> list[DeletedFile]:
    return await tx.deleted_files(before, limit)


async def dead_slices(tx: Transaction, limit: int) -> list[SliceRef]:
    return await tx.dead_slices(limit)


async def delayed_slices(tx: Transaction, before: int, limit: int) -> list[DelayedSlices]:
    return await tx.delayed_slices(before, limit)


async def detached_dirs(tx: Transaction, before: int) -> list[Ino]:
    return await tx.detached(before)


async def drop_detached(tx: Transaction, ino: Ino) -> None:
    """Remove the emptied top directory of a clone that was never finished.  Raises ENOTEMPTY."""
    if await tx.dentries(ino, None, 1):
        raise FsError(ENOTEMPTY)
    if await tx.attr(ino) is not None:
        tx.guard_names(ino)
        await tx.delete_xattrs(ino)
        tx.delete_attr(ino)
        tx.delete_dir_stat(ino)
        tx.charge(-charged_space(0), -1)
    tx.delete_detached(ino)


async def _trash_page(tx: Transaction, ino: Ino, after: bytes | None) -> list[DirEntry]:
    return await tx.entries(ino, after, _PAGE)


# -- jobs


async def find_deleted_files(client: "MetaClient", before: int) -> int:
    """Queue files that were deleted before `before` and whose data is still there; how many were queued."""
    return await _queue_all(client, lambda: read(client.engine, deleted_files, before, QUEUE_LIMIT))


async def find_dead_slices(client: "MetaClient") -> int:
    """Queue slices that lost their last reference and whose blocks were left; how many were queued."""
    return await _queue_all(client, lambda: read(client.engine, dead_slices, QUEUE_LIMIT))


async def _queue_all(client: "MetaClient", find: Callable[[], Awaitable[Sequence[Deleted]]]) -> int:
    """Queue what is found, and where that fills a queue, what is found once it is worked off."""
    count = 0
    before: Deleted | None = None
    while True:
        found = await find()
        count += sum(client.deleted.put(item) for item in found)
        if len(found) < QUEUE_LIMIT or found[0] == before:  # what could not be removed is found again
            return count
        before = found[0]
        await client.deleted.emptied()


async def expire_trash(client: "MetaClient", before: int) -> int:
    """Remove for good what was thrown away in hours that began before `before` (unix seconds); how many entries."""
    count = 0
    for name, ino in await read(client.engine, trash.expired_hours, before):
        count += await _empty(client, ino)
        try:
            await client.remove_trash_hour(name)
        except FsError as error:
            if error.errno not in (ENOENT, ENOTEMPTY):  # another client was faster, or could not remove an entry
                raise
            log.info("trash directory %s stays for now: %s", name.decode(errors="replace"), error)
    return count


async def _empty(client: "MetaClient", ino: Ino) -> int:
    """Remove every entry of a trash directory; trees in it from their leaves up."""
    count = 0
    after: bytes | None = None
    while True:
        page = await read(client.engine, _trash_page, ino, after)
        for entry in page:
            try:
                if entry.dentry.type == TYPE_DIR:
                    count += await _empty(client, entry.dentry.ino)
                await _remove(client, ino, entry)
                count += 1
            except FsError as error:
                if error.errno != ENOENT:
                    log.warning("cannot remove %s: %s", entry.name.decode(errors="replace"), error)
            await trio.lowlevel.checkpoint()
        if len(page) < _PAGE:
            return count
        after = page[-1].name


async def _remove(client: "MetaClient", ino: Ino, entry: DirEntry) -> None:
    """Not to be cut short between its commit and the booking of what it freed, unless the database does not answer."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE_S):
        if entry.dentry.type == TYPE_DIR:
            await client.rmdir(ROOT, ino, entry.name, skip_trash=True)
        else:
            await client.unlink(ROOT, ino, entry.name, skip_trash=True)


async def remove_detached(client: "MetaClient", before: int) -> int:
    """Remove the trees that clones left unfinished before `before` (unix seconds); how many trees."""
    found = await read(client.engine, detached_dirs, before)
    for ino in found:
        await _empty(client, ino)
        await client.write(drop_detached, ino)
    return len(found)


async def expire_delayed(client: "MetaClient", before: int) -> AsyncIterator[SliceRef]:
    """Slices replaced by compactions before `before` lose their references; those that are dead now."""
    before = max(before, 0)  # the peer takes any number of trash days, and integers of databases end somewhere
    while True:
        page = await read(client.engine, delayed_slices, before, _PAGE)
        for delayed in page:
            for ref in await client.write(files.expire_delayed, delayed):
                yield ref
        if len(page) < _PAGE:
            return


async def hourly(client: "MetaClient") -> None:
    """Do what is due in this hour and what no other client does."""
    for counter, job in (
        ("lastCleanupFiles", _clean_files),
        ("nextCleanupSlices", _clean_slices),
        ("lastCleanupTrash", _clean_trash),
    ):
        if not await client.claim(counter, HOUR_S):
            continue
        with trio.move_on_after(JOB_LIMIT_S) as scope:
            await job(client)
        if scope.cancelled_caught:
            log.info("the clean-up that %s counts goes on in an hour", counter)


async def _clean_files(client: "MetaClient") -> None:
    await find_deleted_files(client, client.now_s() - HOUR_S)


async def _clean_slices(client: "MetaClient") -> None:
    await find_dead_slices(client)
    await client.engine.collect(client.now_s())


async def _clean_trash(client: "MetaClient") -> None:
    now_s = client.now_s()
    days_s = client.settings.trash_days * DAY_S
    await expire_trash(client, now_s - days_s - TRASH_GRACE_S)
    async for ref in expire_delayed(client, now_s - days_s):
        client.deleted.put(ref)
