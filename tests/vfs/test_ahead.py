"""A slice's record on a cluster: its transaction begins while the object is on its way, and commits after it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from jfs.errors import FsError
from jfs.meta import background
from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.types import CHUNK_SIZE
from jfs.vfs import writer as writer_module
from jfs.vfs.handles import Handle
from tests.deadline import eventually_async
from tests.tikv.cluster import Cluster
from tests.vfs.mounted import BLOCK, Mounted, ScriptedStore, mount, mounted, pattern


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the cluster for anything but the files of the test, and they only when it says so."""

    async def nothing(client: MetaClient, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    monkeypatch.setattr(background, "run", nothing)
    monkeypatch.setattr(writer_module, "IDLE_S", 3600.0)
    monkeypatch.setattr(writer_module, "RETRY_PAUSE_S", 0.01)


async def written(m: Mounted, data: bytes) -> Handle:
    """A new file with unflushed data; the number of its slice is there already."""
    handle = await m.create(b"f")
    await m.write(handle, 0, data)
    await m.meta.new_slice_id()
    return handle


@asynccontextmanager
async def held(m: Mounted) -> AsyncGenerator[None, None]:
    """No object arrives until the end of the block."""
    m.store.may_put.clear()
    try:
        yield
    finally:
        m.store.may_put.set()


def calls(cluster: Cluster) -> dict[str, int]:
    """Since the last reset.  Commits are left out: what they finish was decided by a prewrite."""
    return {name: count.calls for name, count in cluster.control.counters().items() if count.calls and name != "commit"}


async def begun(cluster: Cluster) -> None:
    await eventually_async(lambda: calls(cluster) == {"tso": 1, "batch_get": 1}, what="the transaction has begun")


async def test_only_the_commit_comes_after_the_object(tikv_cluster: Cluster) -> None:
    async with mounted(engine=open_engine(tikv_cluster.url("wahead"))) as m:
        handle = await written(m, pattern(1000))
        async with trio.open_nursery() as nursery:
            async with held(m):
                tikv_cluster.control.reset_counters()
                nursery.start_soon(m.vfs.flush, handle.fh)
                await begun(tikv_cluster)
                assert await m.records(handle) == []
                tikv_cluster.control.reset_counters()
        assert calls(tikv_cluster) == {"prewrite": 1}
        await m.close(handle)
        assert await m.content(b"f") == pattern(1000)


async def test_what_another_mount_writes_meanwhile_stays(tikv_cluster: Cluster) -> None:
    url = tikv_cluster.url("wahead-two")
    store = ScriptedStore()
    async with mounted(engine=open_engine(url), store=store) as here, mount(open_engine(url), store) as there:
        handle = await written(here, b"a" * 1000)
        await there.meta.new_slice_id()
        first: list[str] = []
        store.hanging = lambda key: not first and not first.append(key)
        async with trio.open_nursery() as nursery, held(here):
            tikv_cluster.control.reset_counters()
            nursery.start_soon(here.vfs.flush, handle.fh)
            await begun(tikv_cluster)
            await eventually_async(lambda: bool(first), what="the object is on its way")
            other = await there.open(b"f")
            await there.write(other, 5000, b"b" * 1000)
            await there.close(other)
            tikv_cluster.control.reset_counters()
        assert calls(tikv_cluster) == {"prewrite": 2, "tso": 1, "batch_get": 1}  # in vain, and once more
        await here.close(handle)
        assert await there.content(b"f") == b"a" * 1000 + bytes(4000) + b"b" * 1000


async def test_a_slice_that_is_overtaken_begins_anew(tikv_cluster: Cluster) -> None:
    """By another of the same file, which has changed the attributes: the first snapshot could only conflict."""
    async with mounted(engine=open_engine(tikv_cluster.url("wahead-own"))) as m:
        handle = await written(m, pattern(1000))
        first: list[str] = []
        m.store.hanging = lambda key: not first and not first.append(key)
        async with trio.open_nursery() as nursery, held(m):
            tikv_cluster.control.reset_counters()
            nursery.start_soon(m.vfs.flush, handle.fh)
            await begun(tikv_cluster)
            await eventually_async(lambda: bool(first), what="the object is on its way")
            await m.write(handle, CHUNK_SIZE, pattern(1000, 1))
            m.vfs.writes.seal_all()
            await eventually_async(lambda: calls(tikv_cluster).get("prewrite") == 1, what="the second is committed")
            tikv_cluster.control.reset_counters()
        assert calls(tikv_cluster) == {"tso": 1, "batch_get": 1, "prewrite": 1}
        assert [len(await m.records(handle, index)) for index in (0, 1)] == [1, 1]
        await m.close(handle)


async def test_slices_that_end_together_do_not_get_in_each_others_way(tikv_cluster: Cluster) -> None:
    async with mounted(engine=open_engine(tikv_cluster.url("wahead-many"))) as m:
        handle = await written(m, b"x")
        for index in range(3):
            await m.write(handle, index * CHUNK_SIZE + 7 * BLOCK, pattern(100, index))
        tikv_cluster.control.reset_counters()
        await m.vfs.flush(handle.fh)
        assert calls(tikv_cluster) == {"tso": 4, "batch_get": 4, "prewrite": 4}
        await m.close(handle)


@pytest.mark.logs("put .* was chosen to fail", "lost")
async def test_an_object_that_does_not_arrive_gets_no_record(tikv_cluster: Cluster) -> None:
    async with mounted(engine=open_engine(tikv_cluster.url("wahead-failed"))) as m:
        handle = await written(m, b"lost")
        m.store.failing = lambda number, key: True
        with pytest.raises(FsError):
            await m.vfs.fsync(handle.fh)
        m.store.failing = lambda number, key: False
        assert await m.records(handle) == []
        await m.write(handle, 0, b"kept")
        await m.close(handle)
        assert await m.content(b"f") == b"kept"
