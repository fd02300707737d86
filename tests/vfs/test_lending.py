"""Reads that are answered with a range of a local file, and those that must not be."""

import errno
import os
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jfs.chunk.cache import DiskCache
from jfs.chunk.file_range import FileRange
from jfs.chunk.options import ChunkOptions
from jfs.errors import FsError
from jfs.object.file import FileStore
from jfs.object.store import ObjectStore
from jfs.vfs.handles import Handle
from jfs.vfs.reader import LEND_FROM
from tests.deadline import eventually_async
from tests.pages import drop_pages
from tests.vfs.mounted import BLOCK, KIB, MIB, RDONLY, Mounted, ScriptedStore, mounted, pattern

SIZE = 5 * BLOCK + 100
DATA = pattern(SIZE)


@asynccontextmanager
async def lending(
    tmp_path: Path, store: ObjectStore | None = None, **options: Any
) -> AsyncGenerator[tuple[Mounted, Handle], None]:
    """A file whose reader may lend, on a `file` store if no other is given."""
    if store is None:
        store = FileStore(f"{tmp_path}/objects/")
        store.create()
    async with mounted(store=store, **options) as m:
        m.vfs.reader.lend_most = MIB
        handle = await m.create(b"f")
        await m.write(handle, 0, DATA)
        await m.close(handle)
        handle = await m.open(b"f", RDONLY)
        yield m, handle
        await m.close(handle)


def cached(tmp_path: Path, level: str, **options: Any) -> tuple[DiskCache, dict[str, Any]]:
    """A disk cache, and the options that it was made with."""
    folder = {"cache_dirs": [str(tmp_path / "cache")], "free_space_ratio": 0.0}
    chosen = {**folder, "uuid": "u", "verify_cache_checksum": level}
    return DiskCache(ChunkOptions(block_size=BLOCK, **options, **chosen)), chosen  # type: ignore[arg-type]


def loaded(data: Any) -> bytes:
    return os.pread(data.file.fd, len(data), data.offset) if isinstance(data, FileRange) else bytes(data)


def objects(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "objects").rglob("*") if path.is_file())


async def test_a_range_of_one_block_is_lent(tmp_path: Path) -> None:
    async with lending(tmp_path) as (m, handle):
        for offset, size in ((0, BLOCK), (BLOCK, LEND_FROM), (3 * BLOCK + 17, LEND_FROM + 1)):
            data = await m.vfs.read(handle.fh, offset, size)
            assert isinstance(data, FileRange)
            assert loaded(data) == DATA[offset : offset + size]


@pytest.mark.parametrize(
    ("offset", "size"), [(0, LEND_FROM - 1), (BLOCK - 1, LEND_FROM), (0, SIZE), (SIZE - 50, MIB)], ids=str
)
async def test_small_reads_and_those_of_several_blocks_are_bytes(tmp_path: Path, offset: int, size: int) -> None:
    async with lending(tmp_path) as (m, handle):
        data = await m.vfs.read(handle.fh, offset, size)
        assert not isinstance(data, FileRange)
        assert bytes(data) == DATA[offset : offset + size]


async def test_what_the_disk_has_is_brought_in_and_lent(tmp_path: Path) -> None:
    async with lending(tmp_path) as (m, handle):
        drop_pages(*objects(tmp_path))
        data = await m.vfs.read(handle.fh, 2 * BLOCK, BLOCK)
        assert isinstance(data, FileRange)
        assert loaded(data) == DATA[2 * BLOCK : 3 * BLOCK]


async def test_a_file_system_that_cannot_tell_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS knows no RWF_NOWAIT: to bring blocks in for nothing would be a trip to a thread for each read."""

    def refuse(fd: int, offset: int, length: int) -> bool:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("jfs.chunk.descriptors.is_in_memory", refuse)
    async with lending(tmp_path) as (m, handle):
        for _ in range(2):
            assert await m.vfs.read(handle.fh, 0, BLOCK) == DATA[:BLOCK]
            assert not m.vfs.blocks.brings_in


async def test_any_read_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(3)
    async with lending(tmp_path) as (m, handle):
        kinds = set()
        for _ in range(300):
            offset, size = rng.randrange(SIZE), rng.randrange(1, 2 * BLOCK)
            if rng.random() < 0.1:
                drop_pages(*objects(tmp_path))
            data = await m.vfs.read(handle.fh, offset, size)
            assert loaded(data) == DATA[offset : offset + size]
            kinds.add(isinstance(data, FileRange))
        assert kinds == {True, False}


async def test_holes_and_overwrites_are_seen(tmp_path: Path) -> None:
    async with lending(tmp_path) as (m, handle):
        writer = await m.open(b"f")
        await m.write(writer, BLOCK, b"x" * BLOCK)
        assert loaded(await m.vfs.read(handle.fh, BLOCK, BLOCK)) == b"x" * BLOCK
        assert loaded(await m.vfs.read(handle.fh, 0, BLOCK)) == DATA[:BLOCK]
        await m.write(writer, 9 * BLOCK, b"end")
        assert loaded(await m.vfs.read(handle.fh, 7 * BLOCK, BLOCK)) == bytes(BLOCK)
        await m.close(writer)


@pytest.mark.logs("65535 bytes instead of 65536")
async def test_an_object_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    async with lending(tmp_path) as (m, handle):
        assert loaded(await m.vfs.read(handle.fh, 0, BLOCK)) == DATA[:BLOCK]
        first = next(path for path in objects(tmp_path) if path.name.split("_")[1] == "0")
        os.truncate(first, BLOCK - 1)
        with pytest.raises(FsError, match="Input/output"):
            await m.vfs.read(handle.fh, 0, BLOCK)


async def test_a_file_that_could_not_be_handed_on_is_read(tmp_path: Path) -> None:
    async with lending(tmp_path) as (m, handle):
        data = await m.vfs.read(handle.fh, 0, BLOCK)
        assert isinstance(data, FileRange)
        data.file.sound = False
        for offset in (0, 1):
            assert await m.vfs.read(handle.fh, offset, LEND_FROM) == DATA[offset : offset + LEND_FROM]
        assert isinstance(await m.vfs.read(handle.fh, BLOCK, BLOCK), FileRange)


async def test_compressed_blocks_are_not_lent(tmp_path: Path) -> None:
    async with lending(tmp_path / "a", compression="lz4", chunk={"compression": "lz4"}) as (m, handle):
        assert not m.vfs.blocks.lends
        assert bytes(await m.vfs.read(handle.fh, 0, BLOCK)) == DATA[:BLOCK]  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "lent"), [("none", True), ("full", False), ("shrink", False), ("extend", False)])
async def test_cached_blocks_are_lent_where_they_need_no_check(tmp_path: Path, level: str, *, lent: bool) -> None:
    cache, options = cached(tmp_path, level)
    async with lending(tmp_path, ScriptedStore(), cache=cache, chunk=options) as (m, handle):
        assert loaded(await m.vfs.read(handle.fh, 0, BLOCK)) == DATA[:BLOCK]
        cache.wait_written()
        data = await m.vfs.read(handle.fh, 0, BLOCK)
        assert loaded(data) == DATA[:BLOCK]
        assert isinstance(data, FileRange) == lent
        assert m.vfs.blocks.lends == (level != "extend")


async def test_what_was_read_ahead_goes_once_it_was_read(tmp_path: Path) -> None:
    """Were a cache's copy lent in its place it would keep its room, and reading ahead would end for want of some."""
    cache, options = cached(tmp_path, "none")
    async with lending(tmp_path, ScriptedStore(), cache=cache, chunk=options) as (m, handle):
        cache.dirs[0].scan()
        (record,) = await m.records(handle)
        ahead = m.vfs.reader.ahead
        assert ahead.want(record.id, record.size, 1)
        await eventually_async(lambda: ahead.read_now(record.id, record.size, BLOCK, 0) is not None)
        cache.wait_written()
        assert ahead.used == BLOCK
        for offset in (BLOCK, BLOCK + BLOCK // 2):
            assert loaded(await m.vfs.read(handle.fh, offset, BLOCK // 2)) == DATA[offset : offset + BLOCK // 2]
        assert ahead.used == 0
        assert isinstance(await m.vfs.read(handle.fh, BLOCK, BLOCK), FileRange)


@pytest.mark.parametrize("level", ["none", "extend"])
async def test_a_cache_keeps_its_part_before_a_store_of_files(
    tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given because the store is slow: what the disk has to be asked for comes from there, or goes into it."""
    cache, options = cached(tmp_path, level, cache_large_write=False)
    async with lending(tmp_path, cache=cache, chunk=options) as (m, handle):
        cache.dirs[0].scan()
        (record,) = await m.records(handle)
        # a quick disk may have read what is not in memory by the time that the kernel looks
        monkeypatch.setattr(m.vfs.blocks._descriptors, "read", lambda *_: None)
        monkeypatch.setattr(m.vfs.blocks._descriptors, "lend", lambda *_: None)
        assert not m.vfs.blocks.holds(record.id, record.size, 1)
        assert loaded(await m.vfs.read(handle.fh, BLOCK, BLOCK)) == DATA[BLOCK : 2 * BLOCK]
        cache.wait_written()
        assert m.vfs.blocks.holds(record.id, record.size, 1)
        hits = m.vfs.blocks.stats.hits
        assert loaded(await m.vfs.read(handle.fh, BLOCK, BLOCK)) == DATA[BLOCK : 2 * BLOCK]
        assert m.vfs.blocks.stats.hits == hits + 1


async def test_nothing_is_lent_to_whoever_did_not_ask_for_it(tmp_path: Path) -> None:
    async with lending(tmp_path) as (m, handle):
        m.vfs.reader.lend_most = 0
        assert await m.vfs.read(handle.fh, 0, 64 * KIB) == DATA[: 64 * KIB]
