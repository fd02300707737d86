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
DAY_S: Final = 24 * 3600
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
                warn_of_staged(volume)
                await collector.compact()
            if delete:
                await collector.delete_pending()
            await collector.collect(delete=delete)
        log.info("flush session 0:")
        await volume.meta.close_session()
        log.info("close session 0: <nil>")


def warn_of_staged(volume: "Volume") -> None:
    """Of blocks that this machine has, and the store has not: chunks that need them cannot be read here."""
    from jfs.volume import default_cache_dir, is_staged_in, staging_path

    folder, uuid = default_cache_dir(), volume.settings.uuid
    if is_staged_in(folder, uuid):
        log.warning(
            "blocks of this volume are staged in %s and not uploaded yet; chunks with such blocks are left as they are: "
            "have a mount with --cache-dir %s upload them first (see umount --flush)",
            *(staging_path(folder, uuid), folder),
        )


class Tally(msgspec.Struct):
    """So many, and their bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size

    def words(self) -> tuple[str, str]:
        return f"{self.count}", f" ({self.bytes} bytes)"


def _left_behind(key: str) -> bool:
    """Is it what a put of a killed process left?"""
    from jfs.object.file import is_temporary

    return is_temporary(key.rpartition("/")[2])


class Census:
    """The objects of a store by what they are to the volume."""

    def __init__(self, block_size: int, oldest_young: float) -> None:
        from jfs.commands.scan import SliceSet

        self._block_size = block_size
        self._oldest_young = oldest_young
        self.used, self.dead, self.kept = SliceSet(), SliceSet(), SliceSet()
        self.valid, self.pending, self.compacted, self.skipped = Tally(), Tally(), Tally(), Tally()
        self.scanned = 0
        self.leaked: list[ObjectInfo] = []

    def see(self, info: "ObjectInfo") -> None:
        """One listed object.  An old one is none of gc's business if it is named neither like a block nor like a put's
        temporary file."""
        from jfs.chunk.layout import parse_name

        block = parse_name(info.key)
        if info.mtime > self._oldest_young:
            self.skipped.add(info.size)
        elif block is None:
            if not _left_behind(info.key):
                return
            self.leaked.append(info)
        elif self.used.holds(block, self._block_size):
            self.valid.add(info.size)
        elif self.dead.holds(block, self._block_size):
            self.pending.add(info.size)
        elif self.kept.holds(block, self._block_size):
            self.compacted.add(info.size)
        else:
            self.leaked.append(info)
        self.scanned += 1


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
        self._files, self._replaced = Tally(), Tally()
        """Deleted files, and slices replaced by compactions, whose time had come in this run."""

    # -- what waits for its time

    async def expire(self) -> None:
        """Empty the trash of what is older than trash-days, and drop unfinished clones and replaced slices."""
        from jfs.meta import jobs

        meta = self._meta
        now_s = meta.now_s()
        days_s = meta.settings.trash_days * DAY_S
        await jobs.expire_trash(meta, now_s - days_s)  # without the grace that the hourly job gives
        await jobs.remove_detached(meta, now_s - DAY_S)
        async for ref in jobs.expire_delayed(meta, now_s - days_s):
            self._replaced.add(ref.size)
            await self._queue(ref)
        await self._cleaner.work_off()

    async def _queue(self, item: "DeletedFile | SliceRef") -> None:
        if not self._meta.deleted.put(item):
            await self._cleaner.work_off()
            self._meta.deleted.put(item)

    async def delete_pending(self) -> None:
        """Delete the data of deleted files and of slices without references."""
        step = self._progress.count("Deleted pending")
        files, dead, _ = await self._waiting()
        for file in files:
            self._files.add(file.length)
            await self._queue(file)
            step(1)
        await self._cleaner.work_off()
        for ref in dead:
            await self._queue(ref)
            step(1)
        await self._cleaner.work_off()
        log.info("Deleted %d pending slices", self._cleaner.removed)

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
        from jfs.vfs.compact_tree import rounds_for
        from jfs.vfs.compactor import Compactor

        compactor = Compactor(self._meta, self._volume.blocks, None, self._durability)
        step = self._progress.count("Compacted chunks")
        gone = {each.ino for each in (await self._waiting())[0]}
        chunks = slices = size = 0
        limiter = trio.CapacityLimiter(self._threads)

        async def one(ino: int, index: int, records: int, length: int) -> None:
            nonlocal chunks, slices, size
            async with limiter:
                if not await compactor.compact(ino, index, eager=True):
                    return
                chunks += 1
                slices += records
                size += length
                step(1)
                for _ in range(rounds_for(records) - 1):
                    await compactor.compact(ino, index, eager=True)

        async for page in all_chunks(self._meta.engine):
            async with trio.open_nursery() as nursery:
                for ino, index, records in page:
                    if len(records) > 1 and ino not in gone:
                        length = max(record.pos + record.length for record in records)
                        nursery.start_soon(one, ino, index, len(records), length)
            await self._cleaner.work_off()  # without trash the old slices go at once
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

    async def _used_or_kept(self) -> "SliceSet":
        """Those, and what is kept after compactions."""
        used = await self._used()
        for each in (await self._waiting())[2]:
            for ref in each.slices:
                used.add(ref.id, ref.size)
        return used

    async def collect(self, *, delete: bool) -> None:
        """Compare the objects with the records."""
        from jfs.commands.scan import all_blocks

        _, dead, delayed = await self._waiting()
        census = Census(self._volume.blocks.options.block_size, time.time() - self._young_s)
        census.used = await self._used()
        for ref in dead:
            census.dead.add(ref.id, ref.size)
        for each in delayed:
            for ref in each.slices:
                census.kept.add(ref.id, ref.size)
        slices, size = len(census.used) + len(census.kept), census.used.bytes + census.kept.bytes
        log.info("using %d slices (%d bytes)", slices, size)
        step = self._progress.count("Scanned objects")
        async for page in all_blocks(self._volume.objects):
            step(len(page))
            for info in page:
                census.see(info)
        leaked = await self._still_leaked(census.leaked) if census.leaked else []
        log.info(
            "scanned %d objects, %d valid, %s pending delete%s, %s compacted%s, %s leaked%s, "
            "%s delslices%s, %s delfiles%s, %s skipped%s",
            *(census.scanned, census.valid.count),
            *census.pending.words(),
            *census.compacted.words(),
            *Tally(len(leaked), sum(info.size for info in leaked)).words(),
            *self._replaced.words(),
            *self._files.words(),
            *census.skipped.words(),
        )
        if leaked and delete:
            await self._delete(leaked)
        elif leaked:
            log.info("Please add `--delete` to clean leaked objects")
        if self._meta.fingerprinting:
            await self._collect_fingerprints(census, delete=delete)

    async def _collect_fingerprints(self, census: Census, *, delete: bool) -> None:
        """The peer removes slices and leaves their fingerprints."""
        from jfs.meta import fingerprints

        known = (census.used, census.dead, census.kept)
        engine = self._meta.engine
        suspects = [
            ref
            async for page in fingerprints.all_slices(engine)
            for ref in page
            if not any(ref in each for each in known)
        ]
        if suspects:  # or were written since the records were read
            used = await self._used_or_kept()
            suspects = [ref for ref in suspects if ref not in used]
        if suspects and delete:
            await fingerprints.drop(engine, suspects)
            log.info("Deleted %d fingerprints of slices that are gone", len(suspects))
        elif suspects:
            log.info("%d fingerprints are of slices that are gone: add `--delete` to drop them", len(suspects))

    async def _still_leaked(self, suspects: "list[ObjectInfo]") -> "list[ObjectInfo]":
        """Those that no record refers to now, after the listing, either."""
        from jfs.chunk.layout import parse_name

        used = await self._used_or_kept()
        block_size = self._volume.blocks.options.block_size
        named = ((info, parse_name(info.key)) for info in suspects)
        return [info for info, block in named if block is None or not used.holds(block, block_size)]

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
