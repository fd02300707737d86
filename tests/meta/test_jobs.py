"""The hourly jobs: who does them, and what they find."""

from typing import Any

import pytest
import trio
import trio.testing

from jfs.meta import background, files, jobs, schema
from jfs.meta.client import MetaClient
from jfs.meta.jobs import DeletedQueue
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import ROOT, ROOT_INO, TRASH_INO, DeletedFile, SliceRef
from tests.deadline import eventually_async
from tests.meta.volumes import Clock, append, assert_clean, connect, do, make_file, new_volume, remove_data


async def test_a_job_is_claimed_once_in_its_period(engine: Engine) -> None:
    await new_volume(engine)
    assert await do(engine, jobs.claim_job, "lastCleanupFiles", 3600, 1_000_000)
    assert not await do(engine, jobs.claim_job, "lastCleanupFiles", 3600, 1_000_001)
    assert not await do(engine, jobs.claim_job, "lastCleanupFiles", 3600, 1_003_239)
    assert await do(engine, jobs.claim_job, "lastCleanupTrash", 3600, 1_000_001)
    assert await do(engine, jobs.claim_job, "lastCleanupFiles", 3600, 1_003_240)


async def test_files_that_a_dead_client_left(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=0)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 0, 0, 10)
    await client.unlink(ROOT, ROOT_INO, b"f")
    await client.close_session()
    other = await connect(engine, clock)
    await jobs.hourly(other)
    assert len(other.deleted) == 0
    clock.advance(4000)
    await jobs.hourly(other)
    assert len(await remove_data(other)) == 1
    await assert_clean(other)


async def test_dead_slices_are_found(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    ino = (await make_file(client, b"f")).ino
    record = await append(client, ino, 0, 0, 10)
    await client.unlink(ROOT, ROOT_INO, b"f")
    deleted = client.deleted.take()
    assert isinstance(deleted, DeletedFile)
    assert [ref.id async for ref in client.release_chunks(deleted)] == [record.id]  # and the client died
    await jobs.hourly(client)
    assert await remove_data(client) == [record.id]
    await jobs.find_dead_slices(client)
    assert len(client.deleted) == 0


async def test_trash_expires(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=1)
    ino = (await make_file(client, b"f")).ino
    record = await append(client, ino, 0, 0, 10)
    await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    for name in (b"d",):
        await client.rmdir(ROOT, ROOT_INO, name)
    await client.unlink(ROOT, ROOT_INO, b"f")
    await make_file(client, b"g")
    clock.advance(25 * 3600)
    await client.unlink(ROOT, ROOT_INO, b"g")
    await jobs.hourly(client)
    assert len(await client.readdir(ROOT, TRASH_INO, None, 10)) == 2
    clock.advance(3 * 3600)
    await jobs.hourly(client)
    assert len(await client.readdir(ROOT, TRASH_INO, None, 10)) == 1
    assert await remove_data(client) == [record.id]
    await assert_clean(client)


async def compacted(client: MetaClient) -> list[int]:
    ino = (await make_file(client, b"f")).ino
    old = [(await append(client, ino, 0, 100 * number, 100)).id for number in range(3)]
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    await client.commit_compaction(plan, [await client.new_slice_id()])
    return old


async def test_slices_kept_for_the_trash_expire(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=1)
    old = await compacted(client)
    await assert_clean(client)
    await jobs.hourly(client)
    assert len(client.deleted) == 0
    clock.advance(24 * 3600 + 10)
    await jobs.hourly(client)
    assert await remove_data(client) == old
    await assert_clean(client)


async def test_slices_expire_for_the_commands_too(engine: Engine) -> None:
    client = await new_volume(engine)
    old = await compacted(client)
    assert sorted([ref.id async for ref in jobs.expire_delayed(client, 1 << 40)]) == old


async def test_a_kept_slice_loses_one_reference_though_two_clients_expire_it(engine: Engine) -> None:
    client = await new_volume(engine)
    old = await compacted(client)
    (delayed,) = await do(engine, jobs.delayed_slices, 1 << 40, 10)

    async def share(tx: Transaction) -> None:  # as a clone would
        for ref in delayed.slices:
            await tx.add_slice_references(ref, 1)

    await client.write(share)
    assert await client.write(files.expire_delayed, delayed) == []
    assert await client.write(files.expire_delayed, delayed) == []  # from a list that was read before
    assert await do(engine, jobs.dead_slices, 10) == []
    assert sorted(ref.id for ref in delayed.slices) == old


async def test_a_trash_directory_with_content_goes_too(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    await client.rmdir(ROOT, ROOT_INO, b"d")

    async def fill(tx: Transaction) -> None:  # as a client without guards may do
        from jfs.meta.namespace import mknod

        attr = await tx.attr(folder.ino)
        assert attr is not None
        hour, attr.parent = attr.parent, ROOT_INO
        tx.put_attr(folder.ino, attr)
        await mknod(tx, ROOT, folder.ino, b"x", 7777, 1, 0o644, 0, 5)
        attr.parent = hour
        tx.put_attr(folder.ino, attr)

    await client.write(fill)
    assert await jobs.expire_trash(client, 1 << 40) == 2
    assert await client.readdir(ROOT, TRASH_INO, None, 10) == []
    await assert_clean(client)


async def test_clones_that_were_never_finished_go(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    folder = await client.mkdir(ROOT, ROOT_INO, b"clone", 0o755)
    inner = await client.mkdir(ROOT, folder.ino, b"d", 0o755)
    await make_file(client, b"f", parent=inner.ino)
    root = await client.getattr(ROOT_INO)
    root.nlink -= 1

    async def detach(tx: Any) -> None:
        if hasattr(tx, "kv"):
            tx.kv.set(schema.detached_key(folder.ino), schema.encode_be64(1000))
        else:
            tx._execute(f"INSERT INTO jfs_detached_node VALUES ({folder.ino}, 1000)", ())
        tx.delete_dentry(ROOT_INO, b"clone")
        tx.put_attr(ROOT_INO, root)
        tx.charge_dir(ROOT_INO, 0, -4096, -1)

    await client.write(detach)
    await assert_clean(client)
    assert await jobs.remove_detached(client, 1000) == 0
    assert await jobs.remove_detached(client, 1001) == 1
    await client.flush_usage()
    assert client.usage.inodes == 0
    await assert_clean(client)


async def test_the_queue_is_bounded_and_in_order() -> None:
    queue = DeletedQueue(limit=2)
    first, second = SliceRef(1, 1), DeletedFile(2, 2, 2)
    assert queue.take() is None
    assert queue.put(first)
    assert queue.put(second)
    assert not queue.put(first)
    assert [await queue.get(), queue.take(), len(queue)] == [first, second, 0]
    got: list[object] = []

    async def wait() -> None:
        got.append(await queue.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        queue.put(first)
        queue.put(second)
    assert got == [first, second] or got == [second, first]


async def test_a_job_feeds_the_queue_until_nothing_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "QUEUE_LIMIT", 3)
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=0)
    for number in range(8):
        ino = (await make_file(client, b"f%d" % number)).ino
        await append(client, ino, 0, 0, 10)
        await client.unlink(ROOT, ROOT_INO, b"f%d" % number)
    client.deleted = DeletedQueue(limit=3)  # a client that knows nothing of them
    clock.advance(4000)
    removed: list[int] = []

    async def empty() -> None:
        while True:
            client.deleted.put(await client.deleted.get())  # back into its place: nothing else was there
            removed.extend(await remove_data(client))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(empty)
        await jobs.hourly(client)
        await eventually_async(lambda: len(set(removed)) == 8 and not len(client.deleted))
        nursery.cancel_scope.cancel()
    await jobs.find_dead_slices(client)
    await remove_data(client)
    assert len(set(removed)) == 8  # the next job may have found again what was just being removed
    await assert_clean(client)


async def test_files_that_cannot_be_removed_do_not_keep_a_job_busy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "QUEUE_LIMIT", 1)
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=0)
    await make_file(client, b"f")
    await client.unlink(ROOT, ROOT_INO, b"f")
    client.deleted.take()
    clock.advance(4000)

    async def empty() -> None:
        while True:
            await client.deleted.get()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(empty)
        with trio.fail_after(60):
            assert await jobs.find_deleted_files(client, client.now_s()) == 2
        nursery.cancel_scope.cancel()


async def test_each_job_of_the_hour_has_a_limit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "JOB_LIMIT_S", 1.0)  # the other jobs need a part of it, on any machine
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=1)
    await make_file(client, b"f")
    await client.unlink(ROOT, ROOT_INO, b"f")
    clock.advance(40 * 3600)
    began: list[str] = []

    async def endless(client: MetaClient, before: int) -> int:
        began.append("files")
        await trio.sleep_forever()
        return 0

    monkeypatch.setattr(jobs, "find_deleted_files", endless)
    await jobs.hourly(client)
    assert began == ["files"]
    assert await client.readdir(ROOT, TRASH_INO, None, 10) == []
    await jobs.hourly(client)
    assert began == ["files"]  # it goes on in an hour


@pytest.mark.parametrize("bgjob", [False, True])
async def test_jobs_are_for_clients_that_do_them(bgjob: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "JOBS_S", 0.01)
    done: list[str] = []

    async def hourly(client: MetaClient) -> None:
        done.append("hourly")

    async def clean(client: MetaClient) -> None:
        done.append("sessions")

    async def load(client: MetaClient) -> None:
        done.append("heartbeat")

    monkeypatch.setattr(jobs, "hourly", hourly)
    monkeypatch.setattr(MetaClient, "clean_stale_sessions", clean)
    monkeypatch.setattr(MetaClient, "load_usage", load)
    client = await new_volume(MemoryEngine())
    client.options.bgjob = bgjob
    client.options.heartbeat_s = 0.01
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        wanted = {"hourly", "sessions", "heartbeat"} if bgjob else {"heartbeat"}
        await eventually_async(lambda: done.count("heartbeat") > 5 and wanted <= set(done))
        nursery.cancel_scope.cancel()
    assert set(done) == wanted


@pytest.mark.logs("failed")
@pytest.mark.parametrize("error", [OverflowError("too much"), ExceptionGroup("several", [ValueError("one")])])
async def test_jobs_outlive_any_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "FLUSH_S", 0.001)
    monkeypatch.setattr(background, "RESTART_S", 0.001)
    done: list[str] = []

    async def fail(client: MetaClient) -> None:
        done.append("flush")
        raise error

    async def draw(client: MetaClient) -> None:
        done.append("draw")
        raise error

    monkeypatch.setattr(MetaClient, "flush_usage", fail)
    monkeypatch.setattr(MetaClient, "refill_ids", draw)
    client = await new_volume(MemoryEngine())
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await eventually_async(lambda: done.count("flush") > 5 and done.count("draw") > 5)
        nursery.cancel_scope.cancel()
    told = [record for record in caplog.records if record.message.startswith("usage flush failed")]
    assert len(told) == 1
    assert told[0].exc_info


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_client_without_a_session_can_close(engine: Engine, read_only: bool) -> None:
    client = await new_volume(engine)
    await client.close_session()
    again = await connect(engine, read_only=read_only)
    await again.close_session()
    await again.close_session()
