"""Compaction in one mount: what is compacted first, who waits for it, what is on stable storage, and the command channel."""

import errno
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from jfs.errors import FsError, StoreError
from jfs.meta import schema
from jfs.meta.files import CompactionPlan
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.slices import Segment
from jfs.meta.types import ROOT, ROOT_INO, Ino, Slice
from jfs.vfs import compactor as compactor_module
from jfs.vfs.compactor import Compactor
from jfs.vfs.control import COMPACT, HEADER
from jfs.vfs.handles import Handle
from jfs.vfs.special_files import CONTROL_INO
from jfs.vfs.vfs import VfsOptions
from tests.deadline import eventually_async
from tests.vfs.mounted import BLOCK, MIB, RDONLY, RDWR, Mounted, ScriptedStore, mount, mounted, pattern

PROGRESS = struct.Struct(">BQQ")


async def pieces(m: Mounted, name: bytes, count: int) -> Handle:
    """An open file of so many slices in its first chunk."""
    handle = await m.create(name)
    for number in range(count):
        await m.write(handle, number * 100, pattern(150, number))
        await m.vfs.flush(handle.fh)
    return handle


def inode(handle: Handle) -> Ino:
    assert handle.file is not None
    return handle.file.ino


async def ask(m: Mounted, body: bytes, command: int = COMPACT) -> tuple[tuple[int, int] | None, int]:
    """The progress that was told last, and the errno."""
    control = await m.vfs.open(ROOT, CONTROL_INO, RDWR)
    message = HEADER.pack(command, len(body)) + body
    for part in (message[:5], message[5:]):
        await m.vfs.write(control.fh, 0, part)
    answer = b""
    told: tuple[int, int] | None = None
    with trio.fail_after(30):
        while True:
            answer += await m.vfs.read(control.fh, len(answer), 4096)
            while len(answer) > PROGRESS.size - 1 and answer[0] == 0xFE:
                told = PROGRESS.unpack_from(answer)[1:]
                answer = answer[PROGRESS.size :]
            if answer and answer[0] != 0xFE:
                await m.vfs.release(control.fh)
                return told, answer[0]


async def test_a_file_and_a_tree_by_the_command_channel() -> None:
    async with mounted(trash_days=0) as m:
        folder = (await m.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
        handles = [await pieces(m, name, 4) for name in (b"one", b"two", b"three")]
        await m.vfs.rename(ROOT, ROOT_INO, b"two", folder, b"two", 0)
        one, _, three = handles
        assert await ask(m, struct.pack(">QH", inode(one), 3)) == ((1, 1), 0)
        assert [len(await m.records(handle)) for handle in handles] == [1, 4, 4]
        assert await ask(m, struct.pack(">Q", folder)) == ((1, 1), 0)
        assert [len(await m.records(handle)) for handle in handles] == [1, 1, 4]
        assert await ask(m, struct.pack(">QH", ROOT_INO, 0)) == ((1, 1), 0)
        assert len(await m.records(three)) == 1
        for handle in handles:
            assert (await m.read(handle, 0, 100)) == pattern(150)[:100]
            await m.close(handle)


async def test_a_large_slice_amid_small_ones_keeps_its_bytes() -> None:
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        large = pattern(2 * MIB)
        for offset, data in ((BLOCK, large), (0, b"before"), (2 * MIB + 2 * BLOCK, b"behind")):
            await m.write(handle, offset, data)
            await m.vfs.flush(handle.fh)
        assert await ask(m, struct.pack(">Q", inode(handle))) == ((1, 1), 0)
        assert len(await m.records(handle)) == 1
        await m.vfs.cleaner.work_off()
        expected = (b"before".ljust(BLOCK, b"\0") + large).ljust(2 * MIB + 2 * BLOCK, b"\0") + b"behind"
        assert await m.read(handle, 0, 5 * MIB) == expected
        await m.close(handle)


async def test_a_chunk_of_zeros_puts_no_block_ever() -> None:
    """It was made a slice of one byte at its first record, and a later one far away a slice of all that lies between."""
    async with mounted(options=VfsOptions(compact=False), trash_days=0) as m:
        handle = await m.create(b"f")
        for length in (60 * MIB, 0, 64 * MIB, 40 * MIB):
            await m.vfs.setattr(ROOT, inode(handle), handle.fh, AttrChange(), length)
        assert await m.vfs.compactor.compact(inode(handle), 0)
        assert await m.records(handle) == [Slice(0, 0, 0, 0, 64 * MIB)]
        assert m.store.blocks() == []
        await m.write(handle, 50 * MIB, b"data")
        await m.vfs.flush(handle.fh)
        before = m.store.blocks()
        assert await m.vfs.compactor.compact(inode(handle), 0)
        assert len(await m.records(handle)) == 1
        assert m.store.blocks() == before
        await m.close(handle)
        assert await m.content(b"f") == bytes(50 * MIB) + b"data"


async def test_data_far_apart_become_slices_of_their_own() -> None:
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        content = bytearray(40 * MIB + 150)
        for number, base in enumerate((0, 20 * MIB, 40 * MIB)):
            for offset in (base, base + 50)[: number + 1]:  # the first is one slice, and stays
                content[offset : offset + 100] = data = pattern(100, offset)
                await m.write(handle, offset, data)
                await m.vfs.flush(handle.fh)
        assert await m.vfs.compactor.compact(inode(handle), 0)
        await m.vfs.cleaner.work_off()
        assert [(record.pos, record.length) for record in await m.records(handle)] == [
            (0, 100),
            (20 * MIB, 150),
            (40 * MIB, 150),
        ]
        assert sorted(key.rpartition("_")[2] for key in m.store.blocks()) == ["100", "150", "150"]
        assert await m.read(handle, 0, 64 * MIB) == content
        await m.close(handle)


@pytest.mark.logs("compaction of inode")
async def test_a_part_that_fails_takes_the_others_along() -> None:
    async with mounted(trash_days=0) as m:
        handle = await m.create(b"f")
        for base in (0, 20 * MIB):
            for offset in (base, base + 50):
                await m.write(handle, offset, pattern(100 + base // MIB, offset))
                await m.vfs.flush(handle.fh)
        before, records = m.store.blocks(), await m.records(handle)
        m.store.failing = lambda number, key: key.endswith("_170")  # the second part's
        puts = m.store.puts
        assert not await m.vfs.compactor.compact(inode(handle), 0)
        assert m.store.puts > puts + 1
        assert m.store.blocks() == before
        assert await m.records(handle) == records
        await m.close(handle)


async def test_what_the_command_channel_refuses() -> None:
    async with mounted() as m:
        assert await ask(m, struct.pack(">QH", 999_999, 1)) == ((0, 0), errno.ENOENT)
        assert await ask(m, b"short") == (None, errno.EINVAL)
        assert await ask(m, b"", command=1010) == (None, errno.EINVAL)


@pytest.mark.logs("compaction of inode")
async def test_a_chunk_that_cannot_be_compacted_is_told() -> None:
    async with mounted() as m:
        bad, good = await pieces(m, b"bad", 4), await pieces(m, b"good", 4)
        m.store.failing = lambda number, key: key.endswith("_450") and not good_done
        good_done = False
        told, code = await ask(m, struct.pack(">QH", inode(bad), 1))
        assert (told, code) == ((1, 1), errno.EIO)
        assert len(await m.records(bad)) == 4
        good_done = True
        assert await ask(m, struct.pack(">QH", ROOT_INO, 1)) == ((2, 2), 0)
        await m.close(bad)
        await m.close(good)


@pytest.mark.logs("compaction of inode \\d+ failed: corrupt record")
async def test_a_record_that_is_corrupt_is_told_in_one_line() -> None:
    engine = MemoryEngine()
    async with mounted(engine=engine) as m:
        handle = await pieces(m, b"f", 4)
        async with engine.transaction(write=True) as tx:
            tx.kv.set(schema.chunk_key(inode(handle), 1), b"junk")
        for ino in (inode(handle), ROOT_INO):
            assert (await ask(m, struct.pack(">QH", ino, 1)))[1] == errno.EIO
        await m.close(handle)


async def test_work_ends_when_its_channel_is_closed() -> None:
    async with mounted() as m:
        handle = await pieces(m, b"f", 4)
        before = set(m.store.blocks())
        m.store.may_put.clear()
        control = await m.vfs.open(ROOT, CONTROL_INO, RDWR)
        puts = m.store.puts
        await m.vfs.write(control.fh, 0, HEADER.pack(COMPACT, 8) + struct.pack(">Q", inode(handle)))
        await eventually_async(lambda: m.store.puts > puts)
        await m.vfs.release(control.fh)
        m.store.may_put.set()
        await eventually_async(lambda: set(m.store.blocks()) == before)
        assert len(await m.records(handle)) == 4
        await m.close(handle)


async def test_a_list_longer_than_one_compaction_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        m.vfs.writes.on_records = lambda ino, index, count: None
        handle = await pieces(m, b"f", 1010)
        expected = await m.read(handle, 0, 1 << 20)
        assert await ask(m, struct.pack(">QH", inode(handle), 1)) == ((1, 1), 0)
        assert len(await m.records(handle)) == 1
        assert await m.read(handle, 0, 1 << 20) == expected
        await m.close(handle)


async def test_new_blocks_are_flushed_before_their_record_replaces_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        handle = await pieces(m, b"f", 4)
        await m.vfs.fsync(handle.fh)
        commit = m.meta.commit_compaction

        async def committing(*args: object) -> object:
            m.store.events.append("commit")
            return await commit(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(m.meta, "commit_compaction", committing)
        m.store.events.clear()
        assert await m.vfs.compactor.compact(inode(handle), 0)
        put, flushed, committed = m.store.events
        assert (put.split()[0], committed) == ("put", "commit")
        assert flushed == f"sync blocks {put.split()[1]}"
        await m.close(handle)


@pytest.mark.logs("flush", "compaction of inode", "checkpoint failed", "sync failed")
async def test_blocks_that_cannot_be_flushed_replace_nothing() -> None:
    async with mounted() as m:
        handle = await pieces(m, b"f", 4)
        await m.vfs.fsync(handle.fh)
        before = set(m.store.blocks())
        m.store.sync_failure = StoreError("the disk is broken")
        assert not await m.vfs.compactor.compact(inode(handle), 0)
        m.store.sync_failure = None
        assert len(await m.records(handle)) == 4
        assert set(m.store.blocks()) == before
        with pytest.raises(FsError):  # what was put before may be lost, says the disk: once
            await m.vfs.fsync(handle.fh)
        await m.close(handle)


@pytest.mark.logs("flush", "compaction of inode", "checkpoint failed")
async def test_blocks_that_another_round_could_not_flush_replace_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later flush does not make good what was lost, so the one before the commit succeeds and means nothing."""
    async with mounted(trash_days=0) as m:
        handle = await pieces(m, b"f", 4)
        for offset in (20 * MIB, 20 * MIB + 50):
            await m.write(handle, offset, pattern(100, offset))
            await m.vfs.flush(handle.fh)
        await m.vfs.fsync(handle.fh)
        before, records = m.store.blocks(), await m.records(handle)
        copy = Compactor._copy
        copied = []

        async def copying(self: Compactor, segments: list[Segment], new: Slice, *, eager: bool) -> bytes:
            fingerprint = await copy(self, segments, new, eager=eager)
            copied.append(new)
            if len(copied) == 1:
                m.store.sync_failure = StoreError("the disk is broken")
                with pytest.raises(StoreError):
                    await m.vfs.durability.checkpoint()
                m.store.sync_failure = None
            return fingerprint

        monkeypatch.setattr(Compactor, "_copy", copying)
        assert not await m.vfs.compactor.compact(inode(handle), 0)
        assert len(copied) == 2
        assert await m.records(handle) == records
        assert m.store.blocks() == before
        assert await m.vfs.compactor.compact(inode(handle), 0), "it is no reason not to try again"
        with pytest.raises(FsError):
            await m.vfs.fsync(handle.fh)
        await m.close(handle)


async def test_another_client_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has put the chunk in order and deleted the old blocks before they were read here: nothing to complain about."""
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, trash_days=0) as m, mount(engine, store) as other:
        handle = await pieces(m, b"f", 4)
        candidate = m.meta.compaction_candidate

        async def overtaken(ino: Ino, index: int) -> CompactionPlan | None:
            plan = await candidate(ino, index)
            assert await other.vfs.compactor.compact(ino, index)
            await other.vfs.cleaner.drain()
            return plan

        monkeypatch.setattr(m.meta, "compaction_candidate", overtaken)
        assert not await m.vfs.compactor.compact(inode(handle), 0)
        assert len(await m.records(handle)) == 1
        assert [key.rpartition("_")[2] for key in store.blocks()] == ["450"], "nothing is left of the work in vain"
        await m.close(handle)
        assert (await other.content(b"f"))[:100] == pattern(150)[:100]


async def test_two_compactions_of_one_chunk_do_not_work_for_nothing() -> None:
    async with mounted() as m:
        handle = await pieces(m, b"f", 4)
        done: list[bool] = []

        async def compact() -> None:
            done.append(await m.vfs.compactor.compact(inode(handle), 0))

        puts = m.store.puts
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(compact)
        assert sorted(done) == [False, False, True]
        assert m.store.puts == puts + 1
        await m.close(handle)


@asynccontextmanager
async def recorded(m: Mounted, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[tuple[Ino, int]]]:
    """Chunks in the order in which the background comes to them; nothing is compacted."""
    seen: list[tuple[Ino, int]] = []

    async def compact(self: Compactor, ino: Ino, index: int, *, eager: bool = False, count: int = 0) -> bool:
        seen.append((ino, index))
        return True

    monkeypatch.setattr(Compactor, "compact", compact)
    yield seen


async def test_the_longest_list_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor_module, "CALM_S", 0.01)
    async with mounted() as m, recorded(m, monkeypatch) as seen:
        compactor = m.vfs.compactor
        compactor.after_read(5, 0, 6)
        compactor.after_write(6, 1, 399)
        compactor.after_write(7, 0, 199)
        compactor.after_write(8, 0, 200)  # no trigger
        await eventually_async(lambda: len(seen) == 3)
        assert seen == [(6, 1), (7, 0), (5, 0)]


async def test_a_chunk_that_stays_as_it_is_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces far from each other are found by every read; on TiKV each look would be a round trip."""
    monkeypatch.setattr(compactor_module, "CALM_S", 0.01)
    async with mounted() as m:
        m.vfs.reader.records_ttl_s = 0.0
        looks = 0
        candidate = m.meta.compaction_candidate

        async def counted(ino: Ino, index: int) -> CompactionPlan | None:
            nonlocal looks
            looks += 1
            return await candidate(ino, index)

        monkeypatch.setattr(m.meta, "compaction_candidate", counted)
        handle = await m.create(b"f")
        for number in range(6):
            await m.write(handle, number * 8 * MIB, b"apart")
            await m.vfs.flush(handle.fh)
        await m.read(handle, 0, 100)
        await eventually_async(lambda: looks == 1)
        for _ in range(3):
            await m.read(handle, 0, 100)
            await trio.sleep(0.03)
        assert looks == 1
        await m.write(handle, 50 * MIB, b"one more")
        await m.vfs.flush(handle.fh)
        await m.read(handle, 0, 100)
        await eventually_async(lambda: looks == 2)
        await m.close(handle)


async def test_an_urgent_list_does_not_wait_for_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor_module, "BUSY_REQUESTS", 0)  # never quiet
    monkeypatch.setattr(compactor_module, "CALM_S", 0.01)
    async with mounted() as m, recorded(m, monkeypatch) as seen:
        m.vfs.compactor.after_read(5, 0, 6)
        m.vfs.compactor.after_write(6, 0, compactor_module.URGENT)
        await eventually_async(lambda: seen == [(6, 0)])


async def test_a_writer_waits_where_the_list_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor_module, "BUSY_REQUESTS", 0)
    monkeypatch.setattr(compactor_module, "LONG", 1000)
    monkeypatch.setattr(compactor_module, "URGENT", 10)
    async with mounted() as m:
        handle = await m.create(b"f")
        lengths = []
        for number in range(40):
            await m.write(handle, number * 100, pattern(150, number))
            await m.vfs.flush(handle.fh)
            lengths.append(len(await m.records(handle)))
        assert max(lengths) < 10
        await m.close(handle)
        again = await m.open(b"f", RDONLY)
        assert len(await m.read(again, 0, 1 << 20)) == 4050
        await m.close(again)


async def test_a_queue_that_writers_have_emptied_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the compactor waits for quiet, a writer may compact the last chunk of the queue itself."""
    monkeypatch.setattr(compactor_module, "CALM_S", 0.01)
    monkeypatch.setattr(compactor_module, "BUSY_REQUESTS", 0)  # never quiet
    async with mounted(trash_days=0) as m:
        handle = await pieces(m, b"f", 3)
        m.vfs.compactor.after_read(inode(handle), 0, 3)
        await trio.sleep(0.03)
        await m.vfs.compactor.rewrite(inode(handle), 0)
        m.vfs.compactor._queue.clear()
        await trio.sleep(0.03)
        m.vfs.compactor.after_read(inode(handle), 0, 3)
        assert len(m.vfs.compactor._queue) == 1
