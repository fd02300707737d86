"""`jfs gc META-URL`: find objects that no metadata refers to, and with --delete remove them.

What a mount is writing now must survive.  Its blocks are put before their slice's record is committed, so a block without
a record may be one of those: objects younger than an hour are passed over.  Older ones that looked leaked are compared
with the records once more, read after the listing ended, before anything is deleted.
"""

import logging
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from jfs.commands import arguments
from jfs.commands.progress import Progress
from jfs.errors import StoreError, UserError

if TYPE_CHECKING:
    from jfs.commands.scan import SliceSet
    from jfs.meta.types import DelayedSlices, DeletedFile, SliceRef
    from jfs.object.store import ObjectInfo
    from jfs.volume import Volume

log = logging.getLogger(__name__)

YOUNG_S: Final = 3600
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
FOREVER: Final = 1 << 62
MANY: Final = 1 << 30


@arguments.command("gc", "META-URL", (1, 1))
@arguments.switch("--compact", text="rewrite chunks of many slices as one slice first")
@arguments.switch("--delete", text="delete what is leaked, and what waits for deletion")
@arguments.value("--threads", "-p", kind=arguments.Whole(1, 1000), default=10, text="how many at a time")
def command(arguments: tuple[str, ...], *, compact: bool, delete: bool, threads: int) -> None:
    """Find, and with --delete remove, objects that no metadata refers to."""
    import trio

    trio.run(_collect, arguments[0], compact, delete, threads)


def young_seconds() -> int:
    """Objects younger than this are passed over."""
    text = os.environ.get("JFS_GC_SKIPPEDTIME", "")
    if not text:
        return YOUNG_S
    if not text.isdecimal():
        raise UserError(f"JFS_GC_SKIPPEDTIME must be a number of seconds, not {text!r}")
    return int(text)


async def _collect(url: str, compact: bool, delete: bool, threads: int) -> None:
    from jfs.meta.client import ClientOptions
    from jfs.volume import open_volume

    young_s = young_seconds()
    options = ClientOptions(read_only=not (compact or delete), bgjob=False, max_deletes=threads)
    async with open_volume(url, options, max_uploads=threads) as volume:
        with Progress() as progress:
            collector = Collector(volume, progress, threads=threads, young_s=young_s)
            if delete:
                await collector.expire()
            if compact:
                await collector.compact()
            if delete:
                await collector.delete_pending()
            await collector.collect(delete=delete)
        log.info("flush session 0:")
        await volume.meta.close_session()
        log.info("close session 0: <nil>")


class Tally(msgspec.Struct):
    """So many, and their bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size

    def __str__(self) -> str:
        return f"{self.count} ({self.bytes} bytes)"


class Collector:
    """One run over one volume."""

    def __init__(self, volume: "Volume", progress: Progress, *, threads: int, young_s: int) -> None:
        from jfs.vfs.cleaner import Cleaner
        from jfs.vfs.durability import Durability

        self._volume = volume
        self._meta = volume.meta
        self._progress = progress
        self._threads = threads
        self._young_s = young_s
        self._durability = Durability(volume.meta, volume.blocks)
        self._cleaner = Cleaner(volume.meta, volume.blocks, self._durability)

    # -- what waits for its time

    async def expire(self) -> None:
        """Empty the trash of what is older than trash-days, and drop unfinished clones and replaced slices."""
        from jfs.meta import jobs

        meta = self._meta
        now_s = meta.now_s()
        days_s = meta.settings.trash_days * DAY_S
        await jobs.expire_trash(meta, now_s - days_s - jobs.TRASH_GRACE_S)
        await jobs.remove_detached(meta, now_s - DAY_S)
        async for ref in jobs.expire_delayed(meta, now_s - days_s):
            if not meta.deleted.put(ref):
                await self._cleaner.work_off()
                meta.deleted.put(ref)

    async def delete_pending(self) -> None:
        """Delete the data of deleted files and of slices without references."""
        from jfs.meta import jobs

        before = self._meta.now_s() - HOUR_S
        step = self._progress.count("Deleted pending")
        deleted = 0
        while found := await jobs.find_deleted_files(self._meta, before):
            await self._cleaner.work_off()
            step(found)
            if found >= await self._count_deleted_files(before):
                break
        while found := await jobs.find_dead_slices(self._meta):
            await self._cleaner.work_off()
            step(found)
            deleted += found
            if found < jobs.QUEUE_LIMIT:
                break
        await self._cleaner.work_off()
        log.info("Deleted %d pending slices", deleted)

    async def _count_deleted_files(self, before: int) -> int:
        return len([each for each in (await self._waiting())[0] if each.when < before])

    async def _waiting(self) -> "tuple[list[DeletedFile], list[SliceRef], list[DelayedSlices]]":
        """Deleted files, slices without references, slices kept after compactions."""
        from jfs.meta import jobs
        from jfs.meta.run import read

        engine = self._meta.engine
        return (
            await read(engine, jobs.deleted_files, FOREVER, MANY),
            await read(engine, jobs.dead_slices, MANY),
            await read(engine, jobs.delayed_slices, FOREVER, MANY),
        )

    # -- compaction

    async def compact(self) -> None:
        """Compact every chunk that has more than one record and is worth it."""
        import trio

        from jfs.commands.scan import all_chunks
        from jfs.vfs.compactor import Compactor

        compactor = Compactor(self._meta, self._volume.blocks, None, self._durability)
        step = self._progress.count("Compacted chunks")
        chunks = slices = size = 0
        limiter = trio.CapacityLimiter(self._threads)

        async def one(ino: int, index: int, records: int, length: int) -> None:
            nonlocal chunks, slices, size
            async with limiter:
                if await compactor.compact(ino, index):
                    chunks += 1
                    slices += records
                    size += length
                    step(1)

        async for page in all_chunks(self._meta.engine):
            async with trio.open_nursery() as nursery:
                for ino, index, records in page:
                    if len(records) > 1:
                        length = max(record.pos + record.length for record in records)
                        nursery.start_soon(one, ino, index, len(records), length)
        await self._durability.sync()
        log.info("Compacted %d chunks (%d slices, %d bytes).", chunks, slices, size)

    # -- objects

    async def _used(self) -> "SliceSet":
        """Every slice that some chunk's record refers to, deleted files' chunks included."""
        from jfs.commands.scan import SliceSet, all_chunks

        used = SliceSet()
        step = self._progress.count("Listed slices")
        async for page in all_chunks(self._meta.engine):
            for _, _, records in page:
                for record in records:
                    if record.id:
                        used.add(record.id, record.size)
            step(len(page))
        return used

    async def collect(self, *, delete: bool) -> None:
        """Compare the objects with the records."""
        from jfs.chunk.layout import parse_name
        from jfs.commands.scan import SliceSet, all_blocks

        files, dead, delayed = await self._waiting()
        used = await self._used()
        log.info("using %d slices (%d bytes)", len(used), used.bytes)
        pending, kept = SliceSet(), SliceSet()
        for ref in dead:
            pending.add(ref.id, ref.size)
        for each in delayed:
            for ref in each.slices:
                kept.add(ref.id, ref.size)
        valid, waiting, compacted, skipped = Tally(), Tally(), Tally(), Tally()
        leaked: list[ObjectInfo] = []
        scanned = 0
        block_size = self._volume.blocks.options.block_size
        oldest_young = time.time() - self._young_s
        step = self._progress.count("Scanned objects")
        async for page in all_blocks(self._volume.objects):
            scanned += len(page)
            step(len(page))
            for info in page:
                block = parse_name(info.key)
                if block is None:
                    continue
                if info.mtime > oldest_young:
                    skipped.add(info.size)
                elif used.holds(block, block_size):
                    valid.add(info.size)
                elif pending.holds(block, block_size):
                    waiting.add(info.size)
                elif kept.holds(block, block_size):
                    compacted.add(info.size)
                else:
                    leaked.append(info)
        leaked = await self._still_leaked(leaked) if leaked else []
        log.info(
            "scanned %d objects, %d valid, %d pending delete (%d bytes), %d compacted (%d bytes), %d leaked (%d bytes), "
            "%d delslices (%d bytes), %d delfiles (%d bytes), %d skipped (%d bytes)",
            *(scanned, valid.count, waiting.count, waiting.bytes, compacted.count, compacted.bytes),
            *(len(leaked), sum(info.size for info in leaked)),
            *(len(kept), kept.bytes),
            *(len(files), sum(each.length for each in files)),
            *(skipped.count, skipped.bytes),
        )
        if leaked and delete:
            await self._delete(leaked)
        elif leaked:
            log.info("Please add `--delete` to clean leaked objects")

    async def _still_leaked(self, suspects: "list[ObjectInfo]") -> "list[ObjectInfo]":
        """Those that no record refers to now, after the listing, either."""
        from jfs.chunk.layout import parse_name

        used = await self._used()
        for each in (await self._waiting())[2]:
            for ref in each.slices:
                used.add(ref.id, ref.size)
        block_size = self._volume.blocks.options.block_size
        named = ((info, parse_name(info.key)) for info in suspects)
        return [info for info, block in named if block is not None and not used.holds(block, block_size)]

    async def _delete(self, leaked: "list[ObjectInfo]") -> None:
        import trio

        limiter = trio.CapacityLimiter(self._threads)
        step = self._progress.count("Deleted leaked objects", len(leaked))
        deleted = Tally()

        async def one(info: "ObjectInfo") -> None:
            try:
                await trio.to_thread.run_sync(self._volume.objects.delete, info.key, limiter=limiter)
                deleted.add(info.size)
            except StoreError as error:
                log.warning("object %s stays: %s", info.key, error)
            step(1)

        for start in range(0, len(leaked), 1000):
            async with trio.open_nursery() as nursery:
                for info in leaked[start : start + 1000]:
                    nursery.start_soon(one, info)
        log.info("Deleted %d leaked objects (%d bytes)", deleted.count, deleted.bytes)
