"""`jfs fsck META-URL`: the metadata obeys its rules, and every block of every slice is in the store, at its size, and (with
--verify) decrypts and decompresses to the bytes that it should have, by its fingerprint where the volume keeps them.

The blocks are listed once; what a block's absence says is asked again of the store and of the records, so that a volume in
use gives no false alarm.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from jfs.commands import arguments
from jfs.commands.progress import Progress
from jfs.errors import CorruptRecord, FsError, ObjectMissing, StoreError, UserError

if TYPE_CHECKING:
    from jfs.commands.verify import Use
    from jfs.meta.check import Finding
    from jfs.meta.client import MetaClient
    from jfs.meta.transaction import Transaction
    from jfs.meta.types import Ino, Slice
    from jfs.volume import Volume

log = logging.getLogger(__name__)

PAGE: Final = 1000
DRIFT: Final = frozenset({"usage", "dir stat", "session"})
"""Findings that a killed client leaves behind: its last second of bookkeeping, its session.  Nothing is lost by them."""


@arguments.command("fsck", "META-URL", (1, 1))
@arguments.value("--path", text="check this directory or file of the volume only (an absolute path in it)")
@arguments.switch("--repair", text="repair the metadata where that can be done")
@arguments.switch("--recursive", "-r", text="with --path: check all that is below it too")
@arguments.switch("--verify", text="read every block too: decrypt, decompress, measure and compare it")
@arguments.value(
    "--cache-dir",
    text="cache folders of this machine: blocks that are staged there are told from lost ones; with --verify right copies of bad "
    "blocks are looked for there, and with --repair put back",
)
@arguments.switch("--sync-dir-stat", text="take wrong directory statistics for errors; with --repair, repair only them")
@arguments.not_yet("--repair-dir-mode")
def command(
    arguments: tuple[str, ...],
    *,
    path: str | None,
    repair: bool,
    recursive: bool,
    sync_dir_stat: bool,
    verify: bool,
    cache_dir: str | None,
) -> int:
    """Check that the metadata is sound and that every block is there."""
    import trio

    if path is not None and not path.startswith("/"):
        raise UserError(f'Invalid value "{path}" for "path": an absolute path in the volume is wanted')
    if recursive and path is None:
        log.warning("option --recursive has no effect without --path: the whole volume is checked")
    _check_folders(cache_dir or "")
    repairs = frozenset[str]() if not repair else frozenset({"dir stat"}) if sync_dir_stat else None
    drift = DRIFT - {"dir stat"} if sync_dir_stat else DRIFT
    return trio.run(_check, arguments[0], path, recursive, verify, cache_dir or "", repairs, drift)


def _check_folders(cache_dir: str) -> None:
    """UserError where a folder that shall have copies of blocks is none."""
    from jfs.chunk.cache import parse_cache_dirs

    for folder in parse_cache_dirs(cache_dir):
        if not os.path.isdir(folder):
            why = "is not a folder" if os.path.lexists(folder) else "does not exist"
            raise UserError(f"cache folder {folder} {why}: name one that a mount has cached or staged blocks in")


async def _check(
    url: str,
    path: str | None,
    recursive: bool,
    verify: bool,
    cache_dir: str,
    repairs: frozenset[str] | None,
    drift: frozenset[str],
) -> int:
    from jfs.meta.client import ClientOptions
    from jfs.volume import open_volume

    options = ClientOptions(read_only=repairs == frozenset(), bgjob=False)
    # The cache is no part of the check: its folders are only looked into for copies.
    mends = repairs is None
    async with open_volume(url, options, cache_dir=cache_dir, cache_size=0, read_only=not mends) as volume:
        with Progress() as progress:
            checker = Checker(volume, progress, repairs, drift, verify=verify, cache_dir=cache_dir)
            async with checker.verifying():
                if path is None:
                    await checker.check_volume()
                else:
                    await checker.check_path(path, recursive=recursive)
        await volume.meta.close_session()
    return checker.verdict()


class Checker:
    """One check of one volume.

    `repairs`: the kinds of findings to repair; None means all.  `drift`: the kinds that are told, and are no failure.
    """

    def __init__(
        self,
        volume: "Volume",
        progress: Progress,
        repairs: frozenset[str] | None,
        drift: frozenset[str],
        *,
        verify: bool = False,
        cache_dir: str = "",
    ) -> None:
        from jfs.chunk.cache import parse_cache_dirs
        from jfs.commands.scan import SliceSet
        from jfs.commands.verify import Verifier
        from jfs.volume import default_cache_dir

        self._volume = volume
        self._meta: MetaClient = volume.meta
        self._progress = progress
        self._repairs = repairs
        self._drift = drift
        self._problems = 0
        self._sizes: dict[str, int] = {}
        """The blocks that were found, by key."""
        self._used = SliceSet()
        self._lost: dict[str, int] = {}
        self._caches = list(dict.fromkeys([*parse_cache_dirs(cache_dir), default_cache_dir()]))
        self._bad: dict[str, int] = {}
        self._broken: dict[Ino, str] = {}
        self._verifier = Verifier(volume.blocks, self._found_bad) if verify else None
        self._marks: dict[int, bytes] = {}
        """The fingerprints of the slices that are being checked, by slice id."""
        self._sharers: dict[str, set[Ino]] = {}
        """Who else uses a block that is being verified, by its key."""
        self._unread: list[tuple[Use, StoreError]] = []

    def verdict(self) -> int:
        """Say what was found; the exit code."""
        self._tell_staged()
        if self._lost or self._bad:
            rows = "".join(f"\n{ino:>13}: {path}" for ino, path in sorted(self._broken.items()))
            counts = [
                f"{len(each)} objects are {what} ({sum(each.values())} bytes)"
                for what, each in (("lost", self._lost), ("bad", self._bad))
                if each
            ]
            log.critical("%s, %d broken files:\n%13s: PATH%s", ", ".join(counts), len(self._broken), "INODE", rows)
        if self._problems:
            log.critical("%d problems in the metadata are left", self._problems)
        return 1 if self._lost or self._bad or self._problems else 0

    def _tell_staged(self) -> None:
        """What is called lost may be on its way to the store."""
        from jfs.volume import staging_path

        for folder in self._caches:
            place = staging_path(folder, self._volume.settings.uuid)
            count = sum(os.path.exists(place + key) for key in self._lost)
            if count:
                log.warning(
                    "%d of the blocks that the store lacks are staged in %s and not uploaded yet: "
                    "have a mount with --cache-dir %s upload them first (see umount --flush)",
                    *(count, place, folder),
                )

    # -- metadata

    async def _report(self, findings: "AsyncIterator[Finding]") -> None:
        from jfs.meta import check

        found = [finding async for finding in findings]
        for finding in found:
            if finding.repairable and (self._repairs is None or finding.kind in self._repairs):
                await check.repair(self._meta, finding)
                log.warning("%s: repaired", finding.message)
                continue
            advice = " (--repair can put it right)" if finding.repairable else ""
            if finding.kind in self._drift:
                log.warning("%s%s", finding.message, advice)
                continue
            self._problems += 1
            log.error("%s%s", finding.message, advice)
        if any(finding.kind == "stray chunks" for finding in found) and self._repairs is None:
            log.info("chunks that are left go with the next clean-up of deleted files")

    # -- everything

    async def check_volume(self) -> None:
        """All metadata, all blocks."""
        from jfs.chunk.layout import parse_name
        from jfs.commands.scan import all_blocks, all_chunks
        from jfs.meta import check

        await self._report(check.check(self._meta))
        step = self._progress.count("Listed blocks")
        async for page in all_blocks(self._volume.objects):
            step(len(page))
            self._sizes.update((info.key, info.size) for info in page if parse_name(info.key) is not None)
        self._say_found()
        step = self._progress.count("Checked chunks")
        async for chunks in all_chunks(self._meta.engine):
            step(len(chunks))
            await self._learn([record for _, _, records in chunks for record in records])
            for ino, index, records in chunks:
                for record in records:
                    await self._check_slice(ino, index, record)
        self._say_used()

    def _say_found(self) -> None:
        log.info("Found %d blocks (%d bytes)", len(self._sizes), sum(self._sizes.values()))

    def _say_used(self) -> None:
        log.info("Used by %d slices (%d bytes)", len(self._used), self._used.bytes)

    async def _check_slice(self, ino: "Ino", index: int, record: "Slice") -> None:
        """Every block of one record's slice; a hole has none."""
        from jfs.chunk.layout import block_keys, block_length

        if not record.id:
            return
        fresh = self._used.add(record.id, record.size)
        options = self._volume.blocks.options
        keys = block_keys(record.id, record.size, options.block_size, hash_prefix=options.hash_prefix)
        for number, key in enumerate(keys):
            wanted = block_length(record.size, number, options.block_size)
            size = self._sizes.get(key)
            if not self._fits(size, wanted):
                size = await self._head(key)
                if size is not None:
                    self._sizes[key] = size
            if self._fits(size, wanted):
                await self._verify(ino, record.id, number, key, wanted, fresh=fresh)
            elif await self._is_used(ino, index, record):
                await self._report_lost(ino, key, size, wanted)

    async def _report_lost(self, ino: "Ino", key: str, size: int | None, wanted: int) -> None:
        """A block that is missing (`size` None), or whose object has the wrong size."""
        path = await self._path(ino)
        self._lost[key] = wanted
        self._broken[ino] = path
        name = key.removeprefix("chunks/")
        if size is None:
            log.error("can't find block %s for file %s: no such object", name, path)
        else:
            right = self._volume.object_size(wanted) or wanted
            log.error("block %s of file %s has %d bytes instead of %d", name, path, size, right)

    def _fits(self, size: int | None, wanted: int) -> bool:
        """Whether an object of this size can be the block; a compressed one's size tells nothing but that it is there."""
        if size is None:
            return False
        right = self._volume.object_size(wanted)
        return size > 0 if right is None else size == right

    async def _head(self, key: str) -> int | None:
        import trio

        try:
            return (await trio.to_thread.run_sync(self._volume.objects.head, key)).size
        except ObjectMissing:
            return None

    async def _is_used(self, ino: "Ino", index: int, record: "Slice") -> bool:
        """Whether a file that exists still refers to the slice there."""
        from jfs.meta.run import read

        async def look(tx: "Transaction") -> bool:
            return record in await tx.slices(ino, index) and await tx.attr(ino) is not None

        return await read(self._meta.engine, look)

    async def _path(self, ino: "Ino") -> str:
        from jfs.meta import check
        from jfs.meta.run import read

        if ino not in self._broken:
            return (await read(self._meta.engine, check.path_of, ino)).decode(errors="backslashreplace")
        return self._broken[ino]

    # -- the bytes of blocks

    @asynccontextmanager
    async def verifying(self) -> AsyncIterator[None]:
        """`async with`: at its end the blocks that were found are read, if that is wanted."""
        if self._verifier is None:
            yield
            return
        async with self._verifier.running():
            yield
        log.info("Verified %d blocks (%d bytes)", self._verifier.count, self._verifier.bytes)
        if self._meta.fingerprinting:
            log.info(
                "Compared %d blocks with their fingerprints, %d have none; %d differed, %d were mended",
                self._verifier.marked,
                self._verifier.count - self._verifier.marked,
                self._volume.blocks.stats.fingerprints_wrong,
                self._volume.blocks.stats.fingerprints_mended,
            )
        for use, error in self._unread:
            for ino in self._sharers.get(use.key, ()):
                if ino != use.ino and await self._uses(ino, use.slice_id):
                    await self._report_bad(ino, use, error)

    async def _learn(self, records: "list[Slice]") -> None:
        """Get the fingerprints of the slices that are checked next."""
        from jfs.meta.slices import referred

        if self._verifier is None:
            return
        try:
            self._marks = await self._meta.fingerprints(referred(records))
        except CorruptRecord as error:
            self._problems += 1
            self._marks = {}
            log.error("%s: blocks are not compared with the fingerprints of this part of the volume", error)

    async def _verify(self, ino: "Ino", slice_id: int, number: int, key: str, size: int, *, fresh: bool) -> None:
        """Have a block read once, whoever else uses it."""
        from jfs.chunk.fingerprint import part_of
        from jfs.commands.verify import Use

        if self._verifier is None:
            return
        if fresh:
            mark = part_of(self._marks.get(slice_id, b""), number)
            await self._verifier.put(Use(ino, slice_id, key, size, mark))
        else:
            self._sharers.setdefault(key, set()).add(ino)

    async def _found_bad(self, use: "Use", error: StoreError) -> None:
        """A block that cannot be read matters if a file that exists still needs it."""
        self._unread.append((use, error))
        if await self._uses(use.ino, use.slice_id):
            await self._report_bad(use.ino, use, error)

    async def _report_bad(self, ino: "Ino", use: "Use", error: StoreError) -> None:
        self._bad[use.key] = use.size
        self._broken[ino] = path = await self._path(ino)
        why = str(error).removeprefix(f"{use.key}: ")
        log.error("block %s of file %s cannot be read: %s", use.key.removeprefix("chunks/"), path, why)

    async def _uses(self, ino: "Ino", slice_id: int) -> bool:
        """Whether the file exists and some record of it refers to the slice."""
        from jfs.meta.run import read

        async def look(tx: "Transaction") -> bool:
            records = [record for _, each in await tx.chunks(ino) for record in each]
            return any(record.id == slice_id for record in records) and await tx.attr(ino) is not None

        return await read(self._meta.engine, look)

    # -- one path

    async def check_path(self, path: str, *, recursive: bool) -> None:
        """One file; or one directory and the files in it, with `recursive` all that is below it."""
        from jfs.meta import check
        from jfs.meta.types import ROOT, ROOT_INO, TYPE_DIR

        ino = ROOT_INO
        attr = await self._meta.getattr(ino)
        for name in path.encode(errors="surrogateescape").split(b"/"):
            if not name:
                continue
            try:
                entry = await self._meta.lookup(ROOT, ino, name)
            except FsError as error:
                raise UserError(f"path {path}: {error}") from None
            ino, attr = entry.ino, entry.attr
        step = self._progress.count("Checked nodes")
        if attr.type != TYPE_DIR:
            step(1)
            await self._check_file(ino)
            log.info("Checked 1 nodes")
        else:
            await self._report(check.check_tree(self._meta, ino, recursive=recursive))
            log.info("Checked %d nodes", await self._check_files(ino, step, recursive=recursive))
        self._say_found()
        self._say_used()

    async def _check_files(self, ino: "Ino", step: Any, *, recursive: bool) -> int:
        from jfs.meta.types import ROOT, TYPE_DIR, TYPE_FILE

        nodes = 1
        waiting = [ino]
        while waiting:
            directory = waiting.pop()
            after: bytes | None = None
            while True:
                page = await self._meta.readdir(ROOT, directory, after, PAGE)
                nodes += len(page)
                step(len(page))
                for entry in page:
                    if entry.dentry.type == TYPE_FILE:
                        await self._check_file(entry.dentry.ino)
                    elif entry.dentry.type == TYPE_DIR and recursive:
                        waiting.append(entry.dentry.ino)
                if len(page) < PAGE:
                    break
                after = page[-1].name
        return nodes

    async def _check_file(self, ino: "Ino") -> None:
        from jfs.meta.run import read

        async def chunks(tx: "Transaction") -> "list[tuple[int, list[Slice]]]":
            return await tx.chunks(ino)

        found = await read(self._meta.engine, chunks)
        await self._learn([record for _, records in found for record in records])
        for index, records in found:
            for record in records:
                await self._check_slice(ino, index, record)
