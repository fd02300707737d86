"""`jfs gc META-URL`: find objects that no slice needs; with --delete remove them and what else waits for removal.

Objects are listed before the slices are read, and objects younger than an hour are left alone: a block is put before its
record is committed, so what a mount is writing right now looks leaked.  Before anything is deleted the slices are read
once more.
"""

import logging
import os
import time
from typing import Any, Final

import trio

from jfs.chunk.layout import BlockName, block_count, block_length
from jfs.commands import arguments, volume_scan
from jfs.commands.progress import counting
from jfs.errors import StoreError
from jfs.meta import jobs
from jfs.meta.client import ClientOptions
from jfs.meta.run import read
from jfs.object.store import ObjectInfo
from jfs.vfs.vfs import Vfs, VfsOptions
from jfs.volume import Volume, open_volume

log = logging.getLogger(__name__)

SKIPPED_S: Final = 3600
DAY_S: Final = 24 * 3600

Block = tuple[ObjectInfo, BlockName]


@arguments.command("gc", "META-URL", (1, 1))
@arguments.switch("--delete", text="delete leaked objects and what waits for removal")
@arguments.switch("--compact", text="compact all chunks that are worth it")
@arguments.value("--threads", "-p", kind=arguments.Whole(1, 1000), default=10, text="deletions at once")
def command(arguments: tuple[str, ...], **options: Any) -> None:
    """Find, and with --delete remove, leaked objects."""
    trio.run(_gc, arguments[0], options)


async def _gc(url: str, options: dict[str, Any]) -> None:
    client = ClientOptions(max_deletes=options["threads"], read_only=not (options["delete"] or options["compact"]))
    async with open_volume(url, client, io_retries=3, max_uploads=options["threads"]) as volume:
        collection = Collection(volume, options)
        await collection.run()
        log.info("flush session 0:")
        await volume.meta.flush_usage() if not client.read_only else None
        log.info("close session 0: <nil>")


class Collection:
    """One run."""

    def __init__(self, volume: Volume, options: dict[str, Any]) -> None:
        self._volume = volume
        self._meta = volume.meta
        self._delete: bool = options["delete"]
        self._compact: bool = options["compact"]
        self._threads: int = options["threads"]
        self._vfs = Vfs(volume.meta, volume.blocks, VfsOptions())
        self._skipped_s = int(os.environ.get("JFS_GC_SKIPPEDTIME") or SKIPPED_S)
        self._sizes: dict[int, int] = {}
        self._delayed: set[int] = set()
        self._dead: set[int] = set()
        self._of_deleted: set[int] = set()

    async def run(self) -> None:
        """In the order of the peer."""
        if self._delete:
            await self._expire()
        if self._compact:
            await self._compact_all()
        if self._delete:
            await self._clean_pending()
        blocks = await volume_scan.blocks(self._volume.objects)
        await self._read_slices()
        log.info("using %d slices (%d bytes)", len(self._sizes), sum(self._sizes.values()))
        leaked = self._classify(blocks)
        if leaked and self._delete:
            await self._remove(leaked)
        elif leaked:
            log.info("Please add `--delete` to clean leaked objects")

    async def _expire(self) -> None:
        """What the trash has kept for long enough, and clones that were never finished."""
        now_s = self._meta.now_s()
        gone = await jobs.expire_trash(self._meta, now_s - self._meta.settings.trash_days * DAY_S)
        if gone:
            log.info("Removed %d entries of the trash", gone)
        await jobs.remove_detached(self._meta, now_s - DAY_S)

    async def _compact_all(self) -> None:
        chunks = slices = size = 0
        todo = [(ino, index) async for ino, index, records in volume_scan.chunks(self._meta) if len(records) > 1]
        deleted = {each.ino for each in await read(self._meta.engine, volume_scan.deleted_files)}
        with counting("Compacted chunks") as seen:
            for ino, index in todo:
                plan = None if ino in deleted else await self._meta.compaction_candidate(ino, index)
                if plan is not None and await self._vfs.compactor.compact(ino, index):
                    chunks += 1
                    slices += len(plan.records) - plan.skipped
                    size += plan.size
                    seen()
        log.info("Compacted %d chunks (%d slices, %d bytes).", chunks, slices, size)

    async def _clean_pending(self) -> None:
        """Deleted files, slices without references, and slices whose time in the trash is over."""
        now_s = self._meta.now_s()
        pending = await jobs.find_deleted_files(self._meta, now_s)
        found = await jobs.find_dead_slices(self._meta)
        days_s = self._meta.settings.trash_days * DAY_S
        async for ref in jobs.expire_delayed(self._meta, now_s - days_s):
            found += self._meta.deleted.put(ref)
        await self._vfs.cleaner.drain(float("inf"))
        if pending:
            log.info("Deleted the data of %d files", pending)
        log.info("Deleted %d pending slices", found)

    async def _read_slices(self) -> None:
        """Every slice that has to stay, by why it has to."""
        deleted = {each.ino for each in await read(self._meta.engine, volume_scan.deleted_files)}
        self._sizes.clear()
        with counting("Listed slices") as seen:
            async for ino, _, records in volume_scan.chunks(self._meta):
                for record in records:
                    if record.id:
                        self._sizes[record.id] = record.size
                        if ino in deleted:
                            self._of_deleted.add(record.id)
                        seen()
        for each in await read(self._meta.engine, volume_scan.delayed_slices):
            for ref in each.slices:
                if ref.id not in self._sizes:
                    self._sizes[ref.id] = ref.size
                    self._delayed.add(ref.id)
        for ref in await read(self._meta.engine, volume_scan.dead_slices):
            if ref.id not in self._sizes:
                self._sizes[ref.id] = ref.size
                self._dead.add(ref.id)

    def _needed(self, name: BlockName) -> bool:
        """Whether a slice has this block."""
        size = self._sizes.get(name.id)
        block_size = self._volume.blocks.options.block_size
        if size is None or name.index >= block_count(size, block_size):
            return False
        return block_length(size, name.index, block_size) == name.size

    def _classify(self, blocks: list[Block]) -> list[Block]:
        """Count every kind, say so; those that nothing needs."""
        young = time.time() - self._skipped_s
        kinds = {kind: [0, 0] for kind in ("valid", "compacted", "leaked", "delslices", "delfiles", "skipped")}
        leaked = []
        for info, name in blocks:
            kind = self._kind(info, name, young)
            kinds[kind][0] += 1
            kinds[kind][1] += info.size
            if kind == "leaked":
                leaked.append((info, name))
        shown = ", ".join(
            f"{kinds[kind][0]} {kind} ({kinds[kind][1]} bytes)"
            for kind in ("compacted", "leaked", "delslices", "delfiles", "skipped")
        )
        log.info("scanned %d objects, %d valid, 0 pending delete (0 bytes), %s", len(blocks), kinds["valid"][0], shown)
        return leaked

    def _kind(self, info: ObjectInfo, name: BlockName, young: float) -> str:
        if info.mtime > young:
            return "skipped"
        if not self._needed(name):
            return "leaked"
        for kind, ids in (
            ("compacted", self._delayed),
            ("delslices", self._dead),
            ("delfiles", self._of_deleted),
        ):
            if name.id in ids:
                return kind
        return "valid"

    async def _remove(self, leaked: list[Block]) -> None:
        """Delete what is still not needed after another look."""
        await self._read_slices()
        limiter = trio.CapacityLimiter(self._threads)
        failed = 0

        async def delete(key: str) -> None:
            nonlocal failed
            try:
                await trio.to_thread.run_sync(self._volume.objects.delete, key, limiter=limiter)
            except StoreError as error:
                failed += 1
                log.warning("delete %s: %s", key, error)

        with counting("Deleted leaked objects") as seen:
            for start in range(0, len(leaked), 1000):
                async with trio.open_nursery() as nursery:
                    for info, name in leaked[start : start + 1000]:
                        if not self._needed(name):
                            nursery.start_soon(delete, info.key)
                            seen()
        if failed:
            raise StoreError(f"{failed} of {len(leaked)} leaked objects could not be deleted")
