"""What fsync promises: blocks before records, and no record slips in between."""

import errno

import pytest
import trio
import trio.testing

from jfs.errors import FsError, StoreError
from jfs.vfs.durability import Durability
from jfs.vfs.vfs import VfsOptions
from tests.deadline import eventually_async
from tests.vfs.mounted import BLOCK, ScriptedStore, mounted, pattern


class Recorder:
    """Both halves of a round, each of which can be made to wait or to fail once."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.blocks_gate: trio.Event | None = None
        self.failure: Exception | None = None

    async def sync_blocks(self) -> None:
        self.events.append("blocks")
        if self.blocks_gate is not None:
            await self.blocks_gate.wait()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def sync_log(self) -> None:
        self.events.append("log")

    async def checkpoint(self) -> None:
        self.events.append("checkpoint")


class Half:
    """`sync` under another name."""

    def __init__(self, recorder: Recorder, *, log: bool) -> None:
        self.sync = recorder.sync_log if log else recorder.sync_blocks
        self.checkpoint = recorder.checkpoint


def durability(recorder: Recorder) -> Durability:
    return Durability(Half(recorder, log=True), Half(recorder, log=False))


async def test_a_commit_waits_while_a_round_runs() -> None:
    recorder = Recorder()
    recorder.blocks_gate = trio.Event()
    rounds = durability(recorder)

    async def commit() -> None:
        async with rounds:
            recorder.events.append("commit")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.sync)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.events == ["blocks"]
        recorder.blocks_gate.set()
    assert recorder.events == ["blocks", "log", "commit"]


async def test_a_round_waits_for_commits_under_way() -> None:
    recorder = Recorder()
    rounds = durability(recorder)
    committing = trio.Event()

    async def commit() -> None:
        async with rounds:
            await committing.wait()
            recorder.events.append("commit")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(rounds.sync)
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.events == []
        committing.set()
    assert recorder.events == ["commit", "blocks", "log"]


async def test_callers_share_the_round_after_the_one_that_runs() -> None:
    recorder = Recorder()
    recorder.blocks_gate = trio.Event()
    rounds = durability(recorder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.sync)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            nursery.start_soon(rounds.sync)
        await trio.testing.wait_all_tasks_blocked()
        recorder.blocks_gate.set()
    assert recorder.events == ["blocks", "log"] * 2


async def test_a_checkpoint_is_a_round() -> None:
    recorder = Recorder()
    rounds = durability(recorder)
    await rounds.checkpoint()
    assert recorder.events == ["blocks", "checkpoint"]


async def test_a_failed_round_fails_and_the_next_is_free() -> None:
    recorder = Recorder()
    rounds = durability(recorder)
    recorder.failure = StoreError("gone")
    with pytest.raises(StoreError):
        await rounds.sync()
    async with rounds:
        pass
    await rounds.sync()
    assert recorder.events == ["blocks", "blocks", "log"]


async def test_a_failed_flush_of_blocks_fails_all_who_wait_for_it() -> None:
    """The kernel drops what it could not write: the second flush succeeds and proves nothing."""
    recorder = Recorder()
    recorder.blocks_gate = trio.Event()
    rounds = durability(recorder)
    failed: list[int] = []

    async def sync(number: int) -> None:
        try:
            await rounds.sync()
        except StoreError:
            failed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sync, 1)
        await trio.testing.wait_all_tasks_blocked()
        recorder.failure = StoreError("gone")
        recorder.blocks_gate.set()
        recorder.blocks_gate = None
        await trio.testing.wait_all_tasks_blocked()
    assert failed == [0, 1]
    await rounds.sync()


@pytest.mark.logs("checkpoint failed", "flushing 1 objects")
async def test_what_a_checkpoint_could_not_flush_is_reported_once_on_each_handle() -> None:
    store = ScriptedStore()
    async with mounted(store=store, options=VfsOptions(checkpoint_s=0)) as m:
        handles = [await m.create(b"f"), await m.open(b"f")]
        await m.write(handles[0], 0, b"x")
        await m.vfs.flush(handles[0].fh)
        store.sync_failure = StoreError("bad sector")
        with pytest.raises(StoreError):
            await m.vfs.durability.checkpoint()
        store.sync_failure = None
        late = await m.open(b"f")
        for handle in handles:
            with pytest.raises(FsError) as caught:
                await m.vfs.fsync(handle.fh)
            assert caught.value.errno == errno.EIO
        for handle in (*handles, late):
            await m.vfs.fsync(handle.fh)
            await m.close(handle)


@pytest.mark.logs("checkpoint failed")
async def test_a_checkpoint_that_fails_leaves_the_mount_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def broken() -> None:
        nonlocal tries
        tries += 1
        raise FsError(errno.EIO)

    async with mounted(options=VfsOptions(checkpoint_s=0.01)) as m:
        with monkeypatch.context() as patch:
            patch.setattr(m.meta, "checkpoint", broken)
            await eventually_async(lambda: tries > 1)
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(2 * BLOCK))
        await m.close(handle)
        assert await m.content(b"f") == pattern(2 * BLOCK)


async def test_fsync_syncs_the_blocks_then_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore()
    async with mounted(store=store) as m:
        sync = m.meta.sync

        async def noted() -> None:
            store.events.append("sync log")
            await sync()

        monkeypatch.setattr(m.meta, "sync", noted)
        handle = await m.create(b"f")
        await m.write(handle, 0, pattern(BLOCK + 10))
        await m.vfs.fsync(handle.fh)
        names = store.blocks()
        assert sorted(store.events[:2]) == [f"put {name}" for name in names]
        assert store.events[2:] == [f"sync blocks {' '.join(names)}", "sync log"]
        await m.close(handle)


@pytest.mark.logs("sync failed")
async def test_fsync_fails_when_the_disk_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"x")
        with monkeypatch.context() as patch:

            async def broken() -> None:
                raise OSError(errno.EIO, "bad sector")

            patch.setattr(m.meta, "sync", broken)
            with pytest.raises(FsError) as caught:
                await m.vfs.fsync(handle.fh)
            assert caught.value.errno == errno.EIO
        await m.vfs.fsync(handle.fh)
        await m.close(handle)


async def test_an_overwrite_of_another_file_is_not_committed_inside_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power cut that the gate is there for."""
    store = ScriptedStore()
    async with mounted(store=store) as m:
        gate = trio.Event()
        sync = m.blocks_sync = m.vfs.blocks.sync  # type: ignore[attr-defined]

        async def slow() -> None:
            await sync()
            await gate.wait()

        other = await m.create(b"other")
        await m.write(other, 0, b"old")
        await m.vfs.fsync(other.fh)
        handle = await m.create(b"f")
        await m.write(handle, 0, b"x")
        monkeypatch.setattr(m.vfs.blocks, "sync", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.vfs.fsync, handle.fh)
            await trio.testing.wait_all_tasks_blocked(0.02)
            await m.write(other, 0, b"new")
            nursery.start_soon(m.vfs.flush, other.fh)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert len(await m.records(other)) == 1
            gate.set()
        assert len(await m.records(other)) == 2
        await m.close(other)
        await m.close(handle)
