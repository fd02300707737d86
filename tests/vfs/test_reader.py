"""The read path: holes, ends, other clients, compaction."""

import pytest

from jfs.errors import FsError
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import CHUNK_SIZE, ROOT, ROOT_INO, SliceRef
from jfs.vfs import compactor as compactor_module
from jfs.vfs import reader as reader_module
from jfs.vfs import streams as streams_module
from jfs.vfs import vfs as vfs_module
from tests.deadline import eventually_async
from tests.vfs.mounted import BLOCK, RDONLY, RDWR, ScriptedStore, mount, mounted, pattern


async def test_holes_and_ends() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        assert await m.read(handle, 0, 100) == b""
        await m.write(handle, CHUNK_SIZE * 3 + 10, b"end")
        for flushed in (False, True):
            assert await m.read(handle, 0, 5) == bytes(5)
            assert await m.read(handle, CHUNK_SIZE - 2, 4) == bytes(4)
            assert await m.read(handle, CHUNK_SIZE * 3 + 8, 100) == bytes(2) + b"end"
            assert await m.read(handle, CHUNK_SIZE * 3 + 13, 100) == b""
            assert await m.read(handle, CHUNK_SIZE * 9, 100) == b""
            if not flushed:
                await m.vfs.flush(handle.fh)
        assert len(m.store.blocks()) == 1
        await m.close(handle)


async def test_a_range_of_many_segments_is_fetched_whole() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        model = bytearray()
        for i in range(9):
            data = pattern(BLOCK + 11 * i, i)
            await m.write(handle, i * (BLOCK // 2), data)
            model[i * (BLOCK // 2) :] = data
            await m.vfs.flush(handle.fh)
        assert await m.read(handle, 5, 1 << 30) == bytes(model[5:])
        await m.close(handle)


async def test_what_another_client_closed_is_seen_at_open() -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    changed: list[int] = []
    async with mounted(engine=engine, store=store) as m, mount(engine, store) as other:
        m.vfs.on_changed = changed.append
        handle = await m.create(b"f")
        await m.write(handle, 0, b"ours")
        await m.vfs.flush(handle.fh)
        assert await m.read(handle, 0, 10) == b"ours"
        theirs = await other.open(b"f")
        await other.write(theirs, 0, b"theirs")
        await other.close(theirs)
        again = await m.open(b"f", RDONLY)
        assert await m.read(again, 0, 10) == b"theirs"
        assert await m.read(handle, 0, 10) == b"theirs"
        assert changed
        await m.close(again)
        await m.close(handle)


async def test_an_own_write_does_not_hide_what_another_client_closed() -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store) as m, mount(engine, store) as other:
        handle = await m.create(b"f")
        await m.write(handle, CHUNK_SIZE, b"x" * 10)
        await m.write(handle, 0, b"old")
        await m.vfs.flush(handle.fh)
        assert await m.read(handle, 0, 3) == b"old"
        theirs = await other.open(b"f")
        await other.write(theirs, 0, b"new")
        await other.close(theirs)
        await m.write(handle, CHUNK_SIZE, b"y")
        await m.vfs.flush(handle.fh)
        again = await m.open(b"f", RDONLY)
        assert await m.read(again, 0, 3) == b"new"
        await m.close(again)
        await m.close(handle)


async def test_an_own_write_takes_over_where_another_client_cut_the_file() -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store) as m, mount(engine, store) as other:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"a" * 1000)
        await m.vfs.flush(handle.fh)
        assert handle.file is not None
        await other.vfs.setattr(ROOT, handle.file.ino, None, AttrChange(), 0)
        await m.write(handle, 0, b"new")
        await m.vfs.flush(handle.fh)
        assert await m.read(handle, 0, 2000) == b"new"
        assert (await m.vfs.getattr(handle.file.ino)).length == 3
        await m.close(handle)


async def test_a_change_of_mode_does_not_hide_what_another_client_added() -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store) as m, mount(engine, store) as other:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"ours")
        await m.vfs.flush(handle.fh)
        theirs = await other.open(b"f")
        await other.write(theirs, 4, b" and theirs")
        await other.close(theirs)
        assert handle.file is not None
        attr = await m.vfs.setattr(ROOT, handle.file.ino, handle.fh, AttrChange(mode=0o600), None)
        assert attr.length == 15
        assert await m.read(handle, 0, 100) == b"ours and theirs"
        await m.close(handle)


async def test_a_chunk_compacted_by_another_client_is_read_from_its_new_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "RECORDS_TTL_S", 1000.0)
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, trash_days=0) as m, mount(engine, store) as other:
        handle = await m.create(b"f")
        for i in range(4):
            await m.write(handle, i * 50, b"%d" % i * 100)
            await m.vfs.flush(handle.fh)
        whole = await m.read(handle, 0, 1000)
        before = set(store.blocks())
        assert await other.vfs.compactor.compact(handle.file.ino, 0)  # type: ignore[union-attr]
        await other.vfs.cleaner.work_off()
        await eventually_async(lambda: not before & set(store.blocks()), what="the old blocks are gone")
        assert await m.read(handle, 0, 1000) == whole
        assert len(store.blocks()) == 1
        await m.close(handle)


async def test_many_small_slices_are_compacted_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor_module, "CALM_S", 0.01)
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        for i in range(20):
            await m.write(handle, i * 1000, pattern(1500, i))
            await m.vfs.flush(handle.fh)
        whole = await m.read(handle, 0, 1 << 20)

        async def compacted() -> bool:
            return len(await m.records(handle)) == 1

        await eventually_async(compacted)
        assert await m.read(handle, 0, 1 << 20) == whole
        await eventually_async(
            lambda: len(m.store.blocks()) == 1, what="old blocks go, references of packed slices too"
        )
        await m.close(handle)


@pytest.mark.logs("goes on")
async def test_a_bug_in_the_background_does_not_end_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfs_module, "RESTART_S", 0.01)
    monkeypatch.setattr(compactor_module, "CALM_S", 0.01)
    asked = 0

    async def buggy(ino: int, index: int, *, count: int) -> bool:
        nonlocal asked
        asked += 1
        raise ZeroDivisionError

    async with mounted() as m:
        monkeypatch.setattr(m.vfs.compactor, "compact", buggy)
        for tries in (1, 2):
            m.vfs.compactor.after_read(5, 0, 9)
            await eventually_async(lambda tries=tries: asked == tries)
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(2 * BLOCK))
        await m.close(handle)


async def test_references_of_a_packed_slice_are_counted() -> None:
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        for i in range(100):
            await m.write(handle, i * 9000 % 500_000, b"x")
        await m.vfs.flush(handle.fh)
        records = await m.records(handle)
        refs = {SliceRef(record.id, record.size) for record in records}
        assert len(refs) < 10 < len(records)
        async with m.meta.engine.transaction(write=False) as tx:
            for ref in refs:
                held = [record for record in records if record.id == ref.id]
                assert await tx.slice_references(ref) == len(held)
        await m.close(handle)
        await m.vfs.unlink(ROOT, ROOT_INO, b"f")
        await eventually_async(lambda: m.store.blocks() == [])


@pytest.mark.logs("read inode", "is missing")
async def test_a_lost_block_is_an_error() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"x" * 100)
        await m.vfs.flush(handle.fh)
        m.store.delete(m.store.blocks()[0])
        with pytest.raises(FsError):
            await m.vfs.read(handle.fh, 0, 10)
        await m.close(handle)


async def test_sequential_reading_asks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(30 * BLOCK))
        await m.close(handle)
        asked: list[int] = []

        def want(slice_id: int, size: int, number: int, fingerprint: bytes) -> bool:
            asked.append(number)
            return True

        monkeypatch.setattr(m.vfs.reader.ahead, "want", want)
        handle = await m.open(b"f", RDONLY)
        for i in range(20):
            await m.read(handle, i * BLOCK // 2, BLOCK // 2)
        assert asked == sorted(set(asked))
        assert max(asked) > 10
        asked.clear()
        scattered = await m.open(b"f", RDONLY)
        monkeypatch.setattr(streams_module, "NEAR", 0)
        for i in (3, 17, 5, 28, 1, 20, 9):
            await m.read(scattered, i * BLOCK, 4096)
        assert asked == []
        await m.close(handle)
        await m.close(scattered)


async def test_the_kernel_keeps_its_pages_only_while_nothing_changed() -> None:
    async with mounted() as m:
        await m.close(await m.create(b"f"))
        first = await m.open(b"f", RDONLY)
        second = await m.open(b"f", RDONLY)
        assert (first.keep_cache, second.keep_cache) == (False, True)
        writing = await m.open(b"f", RDWR)
        await m.write(writing, 0, b"x")
        await m.vfs.flush(writing.fh)
        third = await m.open(b"f", RDONLY)
        assert not third.keep_cache
        for handle in (first, second, third, writing):
            await m.close(handle)
