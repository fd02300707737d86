"""The write path: slices, order, memory, errors."""

import errno
import itertools
import os
from collections.abc import Awaitable, Iterable
from typing import Any

import pytest
import trio
import trio.testing

from jfs.errors import FsError, StoreError
from jfs.meta.client import MetaClient
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import CHUNK_SIZE, ROOT, ROOT_INO, TRASH_INO
from jfs.vfs import buffers
from jfs.vfs import writer as writer_module
from jfs.vfs.dirty_slice import MOST_PIECES
from jfs.vfs.vfs import VfsOptions
from tests.deadline import eventually_async
from tests.vfs.mounted import (
    BLOCK,
    MIB,
    RDONLY,
    RDWR,
    WRONLY,
    FarEngine,
    Mounted,
    ScriptedStore,
    mount,
    mounted,
    pattern,
)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "RETRY_PAUSE_S", 0.01)


async def fails(expected: int, call: Awaitable[object]) -> None:
    with pytest.raises(FsError) as caught:
        await call
    assert errno.errorcode[caught.value.errno] == errno.errorcode[expected]


async def test_a_sequential_file_is_one_slice_whose_full_blocks_go_early() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        data = pattern(3 * BLOCK + 100)
        for start in range(0, len(data), 10_000):
            await m.write(handle, start, data[start : start + 10_000])
        await eventually_async(
            lambda: len(m.store.blocks()) == 3, what="full blocks are uploaded while the slice grows"
        )
        assert await m.records(handle) == []
        await m.vfs.flush(handle.fh)
        [record] = await m.records(handle)
        assert (record.pos, record.size, record.offset, record.length) == (0, len(data), 0, len(data))
        assert [key.rsplit("_", 1)[1] for key in m.store.blocks()] == [str(BLOCK)] * 3 + ["100"]
        assert await m.content(b"f") == data
        await m.close(handle)


async def test_a_slice_id_is_drawn_when_its_first_block_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        drawn = []
        draw = m.meta.new_slice_id

        async def counted() -> int:
            drawn.append(await draw())
            return drawn[-1]

        monkeypatch.setattr(m.meta, "new_slice_id", counted)
        monkeypatch.setattr(m.meta, "new_slice_id_now", lambda: None)
        handle = await m.create(b"f")
        await m.write(handle, 0, b"x" * (BLOCK - 1))
        await trio.testing.wait_all_tasks_blocked()
        assert drawn == []
        await m.write(handle, BLOCK - 1, b"xx")
        await m.vfs.flush(handle.fh)
        assert len(drawn) == 1
        await m.close(handle)


async def test_blocks_that_draw_at_once_get_one_slice_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first waits for an id from the database when the second finds one in memory."""
    async with mounted() as m:
        come, at_hand = trio.Event(), iter([None, 77])

        async def late() -> int:
            await come.wait()
            return 99

        monkeypatch.setattr(m.meta, "new_slice_id", late)
        monkeypatch.setattr(m.meta, "new_slice_id_now", lambda: next(at_hand))
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(BLOCK))
        await trio.testing.wait_all_tasks_blocked()
        await m.write(handle, BLOCK, pattern(BLOCK, 1))
        await trio.testing.wait_all_tasks_blocked()
        come.set()
        await m.vfs.flush(handle.fh)
        assert [record.id for record in await m.records(handle)] == [77]
        assert sorted(m.store.blocks()) == [f"chunks/0/0/77_{number}_{BLOCK}" for number in range(2)]
        await m.close(handle)


async def test_rewriting_buffered_bytes_makes_no_new_slice() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"a" * 5000)
        await m.write(handle, 100, b"b" * 50)
        await m.write(handle, 4990, b"c" * 20)
        await m.close(handle)
        handle = await m.open(b"f")
        assert len(await m.records(handle)) == 1
        assert await m.read(handle, 0, 9999) == b"a" * 100 + b"b" * 50 + b"a" * 4840 + b"c" * 20
        await m.close(handle)


async def test_a_write_does_not_join_an_older_slice_under_a_younger_one() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"a" * 1000)  # slice 1
        await m.write(handle, 5000, b"b" * 1000)  # slice 2
        await m.write(handle, 1000, b"a" * 4500)  # slice 1 grows over slice 2's beginning: must not be hidden by it
        await m.close(handle)
        assert await m.content(b"f") == b"a" * 5500 + b"b" * 500


async def test_overlapping_slices_are_committed_in_the_order_of_writing(quick_retries: None) -> None:
    store = ScriptedStore()
    async with mounted(store=store) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"a" * 3000)
        [first] = m.vfs.files.get(handle.file.ino).writer._slices()  # type: ignore[union-attr]
        # The first slice's block hangs, the second's does not.
        store.may_put.clear()
        store.hanging = lambda key: key.endswith("_3000")
        m.vfs.writes.seal_all()
        await m.write(handle, 1000, b"b" * 1000)
        m.vfs.writes.seal_all()
        await eventually_async(lambda: any(key.endswith("_1000") for key in store.blocks()))
        assert await m.records(handle) == []
        assert not first.done
        store.may_put.set()
        await m.vfs.flush(handle.fh)
        assert [record.length for record in await m.records(handle)] == [3000, 1000]
        assert await m.content(b"f") == b"a" * 1000 + b"b" * 1000 + b"a" * 1000
        await m.close(handle)


async def test_random_writes_open_only_a_few_slices() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        model = bytearray(64 * 8192)
        for i in range(64):
            at = (i * 37 % 64) * 8192
            model[at : at + 4096] = pattern(4096, i)
            await m.write(handle, at, pattern(4096, i))
            unsealed = [piece for piece in handle.file.writer._slices() if not piece.sealed]  # type: ignore[union-attr]
            assert len(unsealed) <= writer_module.OPEN_SLICES
        length = max((i * 37 % 64) * 8192 for i in range(64)) + 4096
        assert await m.read(handle, 0, 1 << 30) == bytes(model[:length])
        await m.close(handle)
        assert await m.content(b"f") == bytes(model[:length])


async def test_thousands_of_scattered_writes_are_a_few_full_slices() -> None:
    async with mounted(options=VfsOptions(buffer_size=16 * MIB, compact=False)) as m:
        handle = await m.create(b"f")
        for i in range(2500):
            await m.write(handle, i * 7919 % 5000 * 8192, b"%04d" % i)
        pieces = handle.file.writer._slices()  # type: ignore[union-attr]
        assert max(len(piece.pieces) for piece in pieces) <= MOST_PIECES
        assert [piece.sealed for piece in pieces if len(piece.pieces) == MOST_PIECES] == [True, True]
        await m.vfs.flush(handle.fh)
        assert len(await m.records(handle)) == 2500
        assert len(m.store.blocks()) == 12  # three times: one slice for each of three places, then a packed one
        for i in range(0, 2500, 97):
            assert await m.read(handle, i * 7919 % 5000 * 8192, 4) == b"%04d" % i
        await m.close(handle)


async def test_a_file_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(block_size=4096, options=None) as m:
        handle = await m.create(b"f")
        data = pattern(3 * MIB)
        at = CHUNK_SIZE - 2 * MIB + 12345
        await m.write(handle, at, data)
        assert await m.read(handle, at, len(data)) == data
        await m.close(handle)
        handle = await m.open(b"f")
        assert [len(await m.records(handle, index)) for index in (0, 1, 2)] == [1, 1, 0]
        assert await m.read(handle, at - 10, len(data) + 20) == bytes(10) + data
        await m.close(handle)


async def test_a_small_write_over_the_end_of_a_chunk() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, CHUNK_SIZE - 100, b"a" * 50)
        await m.write(handle, CHUNK_SIZE - 50, b"b" * 100)
        await m.write(handle, CHUNK_SIZE + 50, b"c" * 10)
        await m.vfs.flush(handle.fh)
        assert [(record.pos, record.length) for record in await m.records(handle, 0)] == [(CHUNK_SIZE - 100, 100)]
        assert [(record.pos, record.length) for record in await m.records(handle, 1)] == [(0, 60)]
        assert await m.read(handle, CHUNK_SIZE - 100, 1000) == b"a" * 50 + b"b" * 100 + b"c" * 10
        await m.close(handle)


async def test_old_and_idle_slices_are_sealed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "IDLE_S", 0.1)
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"x" * 100)
        await eventually_async(lambda: not handle.file.writer.dirty, what="the idle slice is committed")  # type: ignore[union-attr]
        assert len(await m.records(handle)) == 1
        await m.close(handle)


async def test_append_goes_to_the_end_whatever_the_kernel_believes() -> None:
    async with mounted() as m:
        one = await m.create(b"f", WRONLY | os.O_APPEND)
        two = await m.open(b"f", WRONLY | os.O_APPEND)
        for i in range(20):
            await m.write(one if i % 2 else two, 0, b"%05d" % i)
        await m.close(one)
        await m.close(two)
        assert await m.content(b"f") == b"".join(b"%05d" % i for i in range(20))


async def test_append_makes_no_hole_where_the_kernel_believes_in_a_longer_file() -> None:
    async with mounted() as m:
        one = await m.create(b"f", WRONLY | os.O_APPEND)
        await m.write(one, 1000, b"first")
        await m.write(one, 5000, b" second")
        await m.close(one)
        assert await m.content(b"f") == b"first second"


async def test_appends_that_wait_for_memory_do_not_overlap() -> None:
    """Also: what a reader sees of a growing file is never zeros that become data."""
    store = ScriptedStore()
    async with mounted(store=store, options=VfsOptions(buffer_size=0)) as m:
        handles = [await m.create(b"f", RDWR | os.O_APPEND)] + [
            await m.open(b"f", RDWR | os.O_APPEND) for _ in range(2)
        ]
        store.may_put.clear()
        parts = [bytes([65 + i]) * (3 * BLOCK + 7 * i) for i in range(3)]
        seen: list[bytes] = []
        async with trio.open_nursery() as nursery:
            for handle, part in zip(handles, parts, strict=True):
                nursery.start_soon(m.write, handle, 0, part)
            await trio.testing.wait_all_tasks_blocked()
            assert m.vfs.pool.used <= m.vfs.pool.capacity

            async def look() -> None:
                seen.append(await m.read(handles[0], 0, 1 << 30))

            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            store.may_put.set()
        assert all(0 not in data for data in seen)
        content = await m.content(b"f")
        assert sorted(content) == sorted(b"".join(parts))
        assert all(part in content for part in parts)
        for handle in handles:
            await m.close(handle)


async def test_writers_wait_while_the_store_hangs_and_memory_stays_bounded() -> None:
    store = ScriptedStore()
    async with mounted(store=store, options=VfsOptions(buffer_size=8 * BLOCK)) as m:
        handles = [await m.create(b"f%d" % i) for i in range(4)]
        store.may_put.clear()
        finished = []

        async def fill(number: int) -> None:
            for i in range(20):
                await m.write(handles[number], i * BLOCK, pattern(BLOCK, i))
            finished.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(fill, number)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert finished == []
            assert m.vfs.pool.used <= m.vfs.pool.capacity
            store.may_put.set()
        for handle in handles:
            await m.close(handle)
        whole = b"".join(pattern(BLOCK, i) for i in range(20))
        assert [await m.content(b"f%d" % i) == whole for i in range(4)] == [True] * 4
        assert m.vfs.pool.used == 0


async def test_more_dirty_small_files_than_buffers() -> None:
    """Nothing is being uploaded and all memory is taken by slices that nobody sealed: they are sealed."""
    async with mounted(options=VfsOptions(buffer_size=0)) as m:
        handles = [await m.create(b"f%d" % i) for i in range(50)]
        for i, handle in enumerate(handles):
            await m.write(handle, 0, pattern(1000, i))
        for handle in handles:
            await m.close(handle)
        assert [await m.content(b"f%d" % i) for i in range(50)] == [pattern(1000, i) for i in range(50)]


async def test_idle_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "IDLE_S", 0.0)
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(5 * BLOCK))
        await m.close(handle)
        assert m.vfs.pool.used == 0
        await eventually_async(lambda: m.vfs.pool._kept == 0, what="unused buffers are freed")


# -- truncate


async def test_write_truncate_write() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        ino = handle.file.ino  # type: ignore[union-attr]
        await m.write(handle, 0, b"a" * 10_000)
        attr = await m.vfs.setattr(ROOT, ino, handle.fh, AttrChange(), 4000)
        assert attr.length == 4000
        assert await m.read(handle, 0, 99_999) == b"a" * 4000
        await m.write(handle, 6000, b"b" * 1000)
        assert (await m.vfs.getattr(ino)).length == 7000
        assert await m.read(handle, 0, 99_999) == b"a" * 4000 + bytes(2000) + b"b" * 1000
        await m.vfs.setattr(ROOT, ino, handle.fh, AttrChange(), 8000)
        await m.close(handle)
        assert await m.content(b"f") == b"a" * 4000 + bytes(2000) + b"b" * 1000 + bytes(1000)


async def test_truncate_waits_for_writes_before_it_and_delays_those_after_it() -> None:
    store = ScriptedStore()
    async with mounted(store=store) as m:
        handle = await m.create(b"f")
        ino = handle.file.ino  # type: ignore[union-attr]
        await m.write(handle, 0, b"a" * 5000)
        store.may_put.clear()
        order: list[str] = []

        async def truncate() -> None:
            await m.vfs.setattr(ROOT, ino, handle.fh, AttrChange(), 100)
            order.append("truncated")

        async def write() -> None:
            await m.write(handle, 200, b"b" * 10)
            order.append("written")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(truncate)
            await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert order == []
            store.may_put.set()
        assert order == ["truncated", "written"]
        await m.close(handle)
        assert await m.content(b"f") == b"a" * 100 + bytes(100) + b"b" * 10


async def test_times_given_after_writing_stay() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"data")
        await m.vfs.setattr(ROOT, handle.file.ino, handle.fh, AttrChange(mtime_ns=5_000_000_000), None)  # type: ignore[union-attr]
        await m.close(handle)
        assert (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).attr.mtime_ns == 5_000_000_000


@pytest.mark.parametrize("times", [64, 1])
@pytest.mark.parametrize("engine", [MemoryEngine, FarEngine])
async def test_slices_that_are_committed_in_another_order_do_not_move_mtime_back(
    engine: type[MemoryEngine], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "TIMES", times)
    store = ScriptedStore()
    told: list[int] = []
    write_slices = MetaClient.write_slices

    async def noted(self: MetaClient, *args: Any) -> Any:
        written = await write_slices(self, *args)
        told.append(written.attr.mtime_ns)
        return written

    monkeypatch.setattr(MetaClient, "write_slices", noted)
    async with mounted(engine=engine(), store=store) as m:
        handle = await m.create(b"f")
        ino = handle.file.ino  # type: ignore[union-attr]
        store.hanging = lambda key: "_3_" in key  # the last block of the first chunk
        store.may_put.clear()
        for index in range(3):
            await m.write(handle, index * CHUNK_SIZE, bytes([index]) * (BLOCK if index else 4 * BLOCK))
        latest = (await m.vfs.getattr(ino)).mtime_ns
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.vfs.flush, handle.fh)
            await eventually_async(lambda: len(told) == 2, what="the later chunks are committed")
            assert max(told) < latest
            store.may_put.set()
        assert told == sorted(set(told))
        assert len(told) == 3
        assert (await m.meta.getattr(ino)).mtime_ns == told[-1] == latest
        await m.close(handle)


async def test_unflushed_writes_show_in_attributes() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        ino = handle.file.ino  # type: ignore[union-attr]
        before = await m.vfs.getattr(ino)
        await m.write(handle, 1000, b"x")
        for attr in (await m.vfs.getattr(ino), (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).attr):
            assert attr.length == 1001
            assert attr.mtime_ns > before.mtime_ns
            assert attr.ctime_ns > before.ctime_ns
        fh = await m.vfs.opendir(ROOT, ROOT_INO)
        listed = {name: attr for name, _, attr, _ in await m.vfs.readdir(fh, 0)}
        while b"f" not in listed:
            listed |= {name: attr for name, _, attr, _ in await m.vfs.readdir(fh, len(listed))}
        assert listed[b"f"] is not None
        assert listed[b"f"].length == 1001
        await m.vfs.releasedir(fh)
        await m.close(handle)


# -- names that go


async def test_an_unlinked_file_keeps_its_data_until_the_last_close() -> None:
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(2 * BLOCK))
        await m.vfs.unlink(ROOT, ROOT_INO, b"f")
        await m.write(handle, 2 * BLOCK, b"more")
        await m.vfs.fsync(handle.fh)
        assert await m.read(handle, 0, 1 << 30) == pattern(2 * BLOCK) + b"more"
        assert (await m.vfs.getattr(handle.file.ino)).nlink == 0  # type: ignore[union-attr]
        await m.write(handle, 0, b"late")
        await m.close(handle)
        await eventually_async(lambda: m.store.blocks() == [], what="the blocks are removed")


async def test_a_file_removed_by_another_client_gives_ebadf_and_leaves_no_blocks() -> None:
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(BLOCK + 5))
        async with mount(m.meta.engine, m.store) as other:
            await other.vfs.unlink(ROOT, ROOT_INO, b"f")
        await fails(errno.EBADF, m.vfs.fsync(handle.fh))
        await m.vfs.flush(handle.fh)
        await m.vfs.release(handle.fh)
        await eventually_async(lambda: m.store.blocks() == [])


# -- errors


@pytest.mark.logs("trying again")
async def test_a_put_that_fails_once_is_tried_again(quick_retries: None) -> None:
    store = ScriptedStore()
    failed: set[str] = set()
    store.failing = lambda number, key: key not in failed and not failed.add(key)  # type: ignore[func-returns-value]
    async with mounted(store=store) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(3 * BLOCK + 1))
        await m.close(handle)
        assert await m.content(b"f") == pattern(3 * BLOCK + 1)


def put_raises(m: Mounted, monkeypatch: pytest.MonkeyPatch, errors: Iterable[Exception]) -> None:
    """The block store's puts fail with these, and work from then on."""
    put, failures = m.vfs.blocks.put, iter(errors)

    async def buggy(*args: Any, **named: Any) -> bytes:
        for error in failures:
            raise error
        return await put(*args, **named)

    monkeypatch.setattr(m.vfs.blocks, "put", buggy)


@pytest.mark.logs(r"inode \d+: block \d+_\d+$")
async def test_a_put_that_fails_as_nobody_foresaw_is_tried_again(
    quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than one that the store has failed after all its own patience."""
    async with mounted() as m:
        put_raises(m, monkeypatch, [ZeroDivisionError(), RuntimeError("can't start new thread")] * 3)
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(3 * BLOCK + 1))
        await m.close(handle)
        assert await m.content(b"f") == pattern(3 * BLOCK + 1)


@pytest.mark.logs(r"inode \d+: block \d+_\d+$", "given up", "are lost")
async def test_one_that_fails_so_for_long_is_eio(quick_retries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "UNFORESEEN_S", 0.05)
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(2 * BLOCK))
        with monkeypatch.context() as patch:
            put_raises(m, patch, itertools.repeat(RuntimeError("can't start new thread")))
            await fails(errno.EIO, m.vfs.fsync(handle.fh))
        await m.write(handle, 0, pattern(BLOCK))
        await m.close(handle)
        assert await m.content(b"f") == pattern(BLOCK)
        assert m.vfs.pool.used == 0


@pytest.mark.logs("trying again", "given up", "are lost", "stay until the next gc")
@pytest.mark.parametrize("error", [StoreError("away"), RuntimeError("can't start new thread")], ids=["fault", "bug"])
async def test_blocks_of_a_lost_slice_that_cannot_be_removed(
    quick_retries: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """No write waits for that, and the mount goes on."""
    asked = trio.Event()

    async def buggy(*_: object) -> None:
        asked.set()
        raise error

    async with mounted() as m:
        handle = await m.create(b"f")
        m.store.failing = lambda number, key: True
        monkeypatch.setattr(m.vfs.blocks, "remove", buggy)
        await m.write(handle, 0, pattern(BLOCK))
        await m.write(handle, CHUNK_SIZE, b"x")
        await fails(errno.EIO, m.vfs.fsync(handle.fh))
        await asked.wait()
        m.store.failing = lambda number, key: False
        await m.write(handle, 0, b"well")
        await m.close(handle)
        assert await m.content(b"f") == b"well"


@pytest.mark.logs("trying again", "given up", r"inode \d+: \d+ bytes at 0 are lost")
async def test_a_lost_write_is_reported_once_on_each_handle(quick_retries: None) -> None:
    store = ScriptedStore()
    async with mounted(store=store) as m:
        one = await m.create(b"f")
        two = await m.open(b"f")
        await m.write(one, 0, b"kept")
        await m.vfs.fsync(one.fh)
        store.failing = lambda number, key: True
        await m.write(one, 0, pattern(2 * BLOCK))
        await fails(errno.EIO, m.vfs.fsync(one.fh))
        store.failing = lambda number, key: False
        await m.vfs.fsync(one.fh)
        await fails(errno.EIO, m.vfs.flush(two.fh))
        await m.vfs.flush(two.fh)
        assert (await m.vfs.getattr(one.file.ino)).length == 4  # type: ignore[union-attr]
        assert await m.read(one, 0, 100) == b"kept"
        await m.write(one, 4, b" and more")
        await m.close(one)
        await m.close(two)
        assert await m.content(b"f") == b"kept and more"
        assert m.vfs.pool.used == 0


@pytest.mark.logs("trying again", "given up", "lost")
async def test_a_failure_behind_the_writer_stops_it_and_leaves_release_working(quick_retries: None) -> None:
    store = ScriptedStore()
    store.failing = lambda number, key: True
    async with mounted(store=store) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(BLOCK))
        m.vfs.writes.seal_all()
        await eventually_async(lambda: not handle.file.writer.dirty)  # type: ignore[union-attr]
        await fails(errno.EIO, m.vfs.write(handle.fh, 0, b"x"))
        await fails(errno.EIO, m.vfs.flush(handle.fh))
        await m.vfs.release(handle.fh)
        assert (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).attr.length == 0


@pytest.mark.logs("refused", "lost")
async def test_a_full_volume_is_enospc_and_leaves_no_blocks() -> None:
    async with mounted(capacity=MIB) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(2 * MIB))
        await fails(errno.ENOSPC, m.vfs.fsync(handle.fh))
        await eventually_async(lambda: m.store.blocks() == [])
        await m.write(handle, 0, b"small")
        await m.close(handle)
        assert await m.content(b"f") == b"small"


async def test_a_commit_that_loses_its_races_is_run_again() -> None:
    engine = MemoryEngine()
    async with mounted(engine=engine) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"x" * 100)
        engine.fail_commits(1, 2, 3)
        await m.close(handle)
        assert await m.content(b"f") == b"x" * 100


@pytest.mark.logs("read inode", "is bad")
async def test_short_data_is_an_error_never_wrong_bytes() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(BLOCK))
        await m.vfs.fsync(handle.fh)
        m.store.short = True
        await fails(errno.EIO, m.vfs.read(handle.fh, 0, BLOCK))
        m.store.short = False
        assert await m.read(handle, 0, BLOCK) == pattern(BLOCK)
        await m.close(handle)


async def test_flushing_what_cannot_write_is_free() -> None:
    async with mounted() as m:
        writing = await m.create(b"f", WRONLY)
        await m.write(writing, 0, b"x" * 10)
        reading = await m.open(b"f", RDONLY)
        puts = m.store.puts
        await m.close(reading)
        assert m.store.puts == puts
        await fails(errno.EBADF, m.vfs.read(writing.fh, 0, 1))
        await m.close(writing)
        reading = await m.open(b"f", RDONLY)
        await fails(errno.EBADF, m.vfs.write(reading.fh, 0, b"x"))
        await m.close(reading)
        await fails(errno.EBADF, m.vfs.write(reading.fh, 0, b"x"))


@pytest.mark.logs(r"inode \d+: (slice|block)", "lost")
@pytest.mark.parametrize("broken", ["write_slices", "new_slice_id"])
async def test_a_bug_below_is_eio_and_leaves_the_mount_alive(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def buggy(*_: object) -> None:
        raise ZeroDivisionError

    async with mounted() as m:
        handle = await m.create(b"f")
        with monkeypatch.context() as patch:
            patch.setattr(m.meta, broken, buggy)
            patch.setattr(m.meta, "new_slice_id_now", lambda: None)
            await m.write(handle, 0, pattern(3 * BLOCK))
            await m.write(handle, CHUNK_SIZE, b"x")
            await fails(errno.EIO, m.vfs.fsync(handle.fh))
        await m.write(handle, 0, pattern(BLOCK))
        await m.close(handle)
        assert await m.content(b"f") == pattern(BLOCK)
        assert m.vfs.pool.used == 0


async def test_an_open_that_cannot_truncate_leaves_no_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, opened: bool) -> None:
        raise FsError(errno.EPERM)

    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"data")
        await m.close(handle)
        with monkeypatch.context() as patch:
            patch.setattr(m.meta, "truncate", refused)
            await fails(errno.EPERM, m.open(b"f", WRONLY | os.O_TRUNC))
        assert len(m.vfs.handles) == 0
        assert handle.file is not None
        assert not m.meta.is_open(handle.file.ino)
        assert await m.content(b"f") == b"data"


async def test_a_name_that_is_taken_is_not_opened_by_create() -> None:
    """Nobody has checked yet whether it may be."""
    async with mounted() as m:
        await m.close(await m.create(b"f"))
        await fails(errno.EEXIST, m.create(b"f", WRONLY | os.O_TRUNC))
        assert len(m.vfs.handles) == 0


@pytest.mark.logs("sync failed")
async def test_closing_ends_the_session_even_if_the_disk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    with pytest.raises(BaseExceptionGroup):
        async with mounted(engine=engine, store=store) as m:
            handle = await m.create(b"f")
            await m.write(handle, 0, b"data")

            async def broken() -> None:
                raise OSError(errno.EIO, "bad sector")

            monkeypatch.setattr(m.meta, "sync", broken)
    async with engine.transaction(write=False) as tx:
        assert await tx.sessions() == []
    async with mount(engine, store) as m:
        assert await m.content(b"f") == b"data"


async def test_everything_is_there_after_a_remount_without_a_close() -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store) as m:
        handle = await m.create(b"f")
        await m.write(handle, 7, pattern(3 * BLOCK))
    async with mount(engine, store) as m:
        assert await m.content(b"f") == bytes(7) + pattern(3 * BLOCK)


async def test_creation_in_the_trash_is_refused() -> None:
    async with mounted() as m:
        await fails(errno.EPERM, m.vfs.create(ROOT, TRASH_INO, b"f", 0o644, RDWR))
