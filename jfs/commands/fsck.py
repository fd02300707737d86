"""`jfs fsck META-URL`: is every block of every slice there and as long as it should be, and are the records sound?

Exit 0 where all is well, 1 where something is lost or wrong.  Safe beside live mounts: what looks lost is looked at again,
since blocks may have been put, or slices replaced, after the store was listed.
"""

import logging
from typing import Any

import trio

from jfs.chunk.layout import block_keys, block_length
from jfs.commands import arguments, volume_scan
from jfs.commands.progress import counting
from jfs.errors import ObjectMissing, UserError
from jfs.meta import check
from jfs.meta.client import ClientOptions
from jfs.meta.run import read
from jfs.meta.types import ROOT, ROOT_INO, TYPE_DIR, Attr, Ino, Slice
from jfs.volume import Volume, open_volume

log = logging.getLogger(__name__)


@arguments.command("fsck", "META-URL", (1, 1))
@arguments.value("--path", text="check only what is there (absolute path in the volume)")
@arguments.switch("--recursive", "-r", text="with --path: and everything below")
@arguments.switch("--repair", text="repair what can be repaired")
@arguments.switch("--sync-dir-stat", text="count the statistics of directories again and store them")
@arguments.not_yet("--repair-dir-mode")
def command(arguments: tuple[str, ...], **options: Any) -> None:
    """Check that the metadata is sound and every block is there."""
    trio.run(_fsck, arguments[0], options)


async def _fsck(url: str, options: dict[str, Any]) -> None:
    repair = options["repair"] or options["sync_dir_stat"]
    client = ClientOptions(read_only=not repair)
    async with open_volume(url, client, io_retries=3) as volume:
        run = Check(volume, repair=options["repair"], dir_stats=options["sync_dir_stat"])
        if options["path"] is not None:
            await run.path(options["path"], recursive=options["recursive"])
        else:
            await run.everything()
        run.conclude()


class Check:
    """One run and what it found."""

    def __init__(self, volume: Volume, *, repair: bool, dir_stats: bool) -> None:
        self._volume = volume
        self._meta = volume.meta
        self._repair = repair
        self._dir_stats = dir_stats
        self._wrong = 0
        self._lost = 0
        self._lost_bytes = 0
        self._broken: dict[Ino, str] = {}

    async def everything(self) -> None:
        blocks = await volume_scan.blocks(self._volume.objects)
        log.info("Found %d blocks (%d bytes)", len(blocks), sum(info.size for info, _ in blocks))
        sizes = {info.key: info.size for info, _ in blocks}
        deleted = {each.ino for each in await read(self._meta.engine, volume_scan.deleted_files)}
        slices: dict[int, int] = {}
        with counting("Checked slices") as seen:
            async for ino, index, records in volume_scan.chunks(self._meta):
                if ino in deleted:
                    continue
                for record in records:
                    if record.id and record.id not in slices:
                        slices[record.id] = record.size
                        await self._check_slice(ino, index, record, sizes)
                        seen()
        log.info("Used by %d slices (%d bytes)", len(slices), sum(slices.values()))
        async for finding in check.check(self._meta):
            await self._report(finding)

    async def path(self, path: str, *, recursive: bool) -> None:
        """Check one file or directory, or a tree."""
        if not path.startswith("/"):
            raise UserError(f"--path {path}: an absolute path in the volume is wanted, as in /dir/file")
        ino, attr = await self._resolve(path)
        nodes = 0
        if attr.type == TYPE_DIR:
            async for finding in check.check_tree(self._meta, ino, recursive=recursive):
                await self._report(finding)
        waiting = [(ino, attr)]
        while waiting:
            ino, attr = waiting.pop()
            nodes += 1
            if attr.type != TYPE_DIR:
                await self._check_file(ino)
            elif recursive or nodes == 1:
                waiting += await self._children(ino)
        log.info("Checked %d nodes", nodes)

    async def _resolve(self, path: str) -> tuple[Ino, Attr]:
        ino, attr = ROOT_INO, await self._meta.getattr(ROOT_INO)
        for name in path.encode(errors="surrogateescape").split(b"/"):
            if name:
                entry = await self._meta.lookup(ROOT, ino, name)
                ino, attr = entry.ino, entry.attr
        return ino, attr

    async def _children(self, ino: Ino) -> list[tuple[Ino, Attr]]:
        found: list[tuple[Ino, Attr]] = []
        after: bytes | None = None
        while True:
            page = await self._meta.readdir(ROOT, ino, after, volume_scan.PAGE)
            found += [(each.dentry.ino, each.attr) for each in page if each.attr is not None]
            if len(page) < volume_scan.PAGE:
                return found
            after = page[-1].name

    async def _check_file(self, ino: Ino) -> None:
        for index, records in await read(self._meta.engine, _chunks_of, ino):
            for record in records:
                if record.id:
                    await self._check_slice(ino, index, record, {})

    async def _check_slice(self, ino: Ino, index: int, record: Slice, sizes: dict[str, int]) -> None:
        """Every block: there, and (on a volume without compression) as long as its name says."""
        options = self._volume.blocks.options
        plain = options.compression == "none"
        keys = block_keys(record.id, record.size, options.block_size, hash_prefix=options.hash_prefix)
        for number, key in enumerate(keys):
            wanted = block_length(record.size, number, options.block_size)
            found = sizes.get(key)
            if found is None or (plain and found != wanted):
                await self._look_again(ino, index, record, key, wanted if plain else None)

    async def _look_again(self, ino: Ino, index: int, record: Slice, key: str, wanted: int | None) -> None:
        try:
            info = await trio.to_thread.run_sync(self._volume.objects.head, key)
            if wanted is None or info.size == wanted:
                return
            why = f"it has {info.size} bytes"
        except ObjectMissing:
            why = "it does not exist"
        if record.id not in {each.id for each in await self._meta.read_chunk(ino, index)}:
            return  # replaced meanwhile
        path = (await read(self._meta.engine, check.path_of, ino)).decode(errors="replace")
        log.error("can't find block %s for file %s: %s", key.removeprefix("chunks/"), path, why)
        self._lost += 1
        self._lost_bytes += block_length(
            record.size, int(key.rsplit("_", 2)[1]), self._volume.blocks.options.block_size
        )
        self._broken[ino] = path

    async def _report(self, finding: check.Finding) -> None:
        wanted = self._repair or (self._dir_stats and finding.kind == "dir stat")
        if wanted and await check.repair(self._meta, finding):
            log.warning("%s: repaired", finding.message)
            return
        hint = "; --repair can mend it" if finding.repairable else ""
        log.error("%s%s", finding.message, hint)
        self._wrong += 1

    def conclude(self) -> None:
        """UserError where something is lost or wrong: one line says what, the rows after it where."""
        problems = []
        if self._lost:
            rows = "".join(f"\n        {ino:>11}: {path}" for ino, path in sorted(self._broken.items()))
            problems.append(
                f"{self._lost} objects are lost ({self._lost_bytes} bytes), {len(self._broken)} broken files:\n"
                f"        {'INODE':>11}: PATH{rows}"
            )
        if self._wrong:
            problems.append(f"{self._wrong} metadata records are wrong, see above")
        if problems:
            raise UserError("\n".join(problems))


async def _chunks_of(tx: Any, ino: Ino) -> list[tuple[int, list[Slice]]]:
    found: list[tuple[int, list[Slice]]] = await tx.chunks(ino)
    return found
