"""Transactions that begin ahead: what they cost where they are wanted, and that nothing is lost whatever happens meanwhile."""

import pytest
import trio
import trio.testing

from jfs.errors import Conflict
from jfs.meta import ahead as ahead_module
from jfs.meta.ahead import Ahead
from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.inodes import AttrChange
from jfs.meta.kv import tikv
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.transaction import Transaction
from jfs.meta.types import ROOT, ROOT_INO, Ino, Slice
from tests.meta.test_tikv_round_trips import COMMIT, cost, volume
from tests.meta.volumes import append, assert_clean, connect, make_file, new_volume
from tests.tikv.cluster import Cluster


async def begun(client: MetaClient, ino: Ino) -> Ahead:
    """One that has its snapshot, and has read."""
    ahead = client.slices_ahead(ino, 0)
    assert ahead is not None
    await ahead.begin()
    return ahead


async def record(client: MetaClient, pos: int = 0) -> Slice:
    return Slice(pos, await client.new_slice_id(), 100, 0, 100)


async def write(client: MetaClient, ino: Ino, slice_: Slice, ahead: Ahead | None) -> None:
    await client.write_slices(ino, 0, [slice_], client.now_ns(), ahead=ahead)


async def test_only_the_commit_is_left_to_wait_for(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "ahead-cost")
    ino = (await make_file(client, b"f")).ino
    for pos in (0, 100):
        slice_ = await record(client, pos)
        ahead = client.slices_ahead(ino, 0)
        assert ahead is not None
        assert await cost(tikv_cluster, ahead.begin) == {"tso": 1, "batch_get": 1}
        assert await cost(tikv_cluster, lambda s=slice_, a=ahead: write(client, ino, s, a)) == COMMIT
    assert len(await client.read_chunk(ino, 0)) == 2
    assert (await client.getattr(ino)).length == 200
    await assert_clean(client)


@pytest.mark.parametrize("change", ["slice", "attributes", "removal"])
async def test_what_others_have_changed_meanwhile_stays(tikv_cluster: Cluster, change: str) -> None:
    client = await volume(tikv_cluster, f"ahead-others-{change}", trash_days=1)
    other = await connect(open_engine(tikv_cluster.url(f"ahead-others-{change}")))
    ino = (await make_file(client, b"f")).ino
    await client.flush_usage()
    ahead, mine = await begun(client, ino), await record(client, 500)
    if change == "slice":
        await append(other, ino, 0, 0, 1000)
    elif change == "attributes":
        await other.setattr(ROOT, ino, AttrChange(mode=0o600))
    else:
        await other.unlink(ROOT, ROOT_INO, b"f")
    spent = await cost(tikv_cluster, lambda: write(client, ino, mine, ahead))
    assert spent == {"tso": 1, "batch_get": 1, "prewrite": 2}  # in vain, and once more
    attr = await client.getattr(ino)
    assert (attr.length, attr.mode) == (1000 if change == "slice" else 600, 0o600 if change == "attributes" else 0o644)
    records = await client.read_chunk(ino, 0)
    assert [len(records), records[-1]] == [2 if change == "slice" else 1, mine]
    await other.flush_usage()
    await assert_clean(client)


async def test_one_that_is_not_used_leaves_nothing_behind(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "ahead-unused")
    ino = (await make_file(client, b"f")).ino
    await begun(client, ino)
    assert tikv_cluster.control.stats()["locks"] == 0
    await write(client, ino, await record(client), None)
    await assert_clean(client)


async def test_an_old_one_is_left_alone(tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await volume(tikv_cluster, "ahead-old")
    ino = (await make_file(client, b"f")).ino
    ahead, mine = await begun(client, ino), await record(client)
    monkeypatch.setattr(ahead_module, "MOST_AGE_S", 0.0)
    assert await cost(tikv_cluster, lambda: write(client, ino, mine, ahead)) == {"tso": 1, "batch_get": 1, **COMMIT}


async def test_it_is_waited_for(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "ahead-slow")
    ino = (await make_file(client, b"f")).ino
    mine = await record(client)
    tikv_cluster.control.fault("batch_get", "hang", times=1, delay_ms=300)
    ahead = client.slices_ahead(ino, 0)
    assert ahead is not None

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ahead.begin)
            nursery.start_soon(write, client, ino, mine, ahead)

    assert await cost(tikv_cluster, both) == {"tso": 1, "batch_get": 1, **COMMIT}
    assert await client.read_chunk(ino, 0) == [mine]


@pytest.mark.logs("the metadata store .* does not answer")
@pytest.mark.parametrize("call", ["tso", "batch_get"])
async def test_one_that_could_not_begin_is_begun_anew(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(tikv, "PATIENCE_S", 0.2)
    client = await volume(tikv_cluster, f"ahead-failed-{call}")
    ino = (await make_file(client, b"f")).ino
    mine = await record(client)
    fault = tikv_cluster.control.fault(call, "drop_before")
    ahead = await begun(client, ino)
    tikv_cluster.control.clear_faults(fault)
    await write(client, ino, mine, ahead)
    assert await client.read_chunk(ino, 0) == [mine]


async def test_one_whose_task_was_cancelled_is_begun_anew(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "ahead-cancelled")
    ino = (await make_file(client, b"f")).ino
    mine = await record(client)
    ahead = client.slices_ahead(ino, 0)
    assert ahead is not None
    fault = tikv_cluster.control.fault("batch_get", "hang")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ahead.begin)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    tikv_cluster.control.clear_faults(fault)
    await write(client, ino, mine, ahead)
    assert await client.read_chunk(ino, 0) == [mine]


async def test_what_fails_is_told_to_the_operation() -> None:
    """And to nobody else: the task that began it goes on."""

    async def broken(tx: Transaction) -> None:
        raise ValueError("an answer that makes no sense")

    ahead = Ahead(MemoryEngine(), broken)
    await ahead.begin()
    with pytest.raises(ValueError, match="no sense"):
        async with ahead:
            pass


async def test_it_serves_once() -> None:
    engine = MemoryEngine()
    client = await new_volume(engine)

    async def nothing(tx: Transaction) -> None:
        """Reads nothing."""

    ahead = Ahead(engine, nothing)
    await ahead.begin()
    async with ahead as tx:
        tx.put_counter("totalInodes", 7)
    with pytest.raises(Conflict):
        async with ahead:
            pass
    async with engine.transaction(write=False) as tx:
        assert await tx.counter("totalInodes") == 7
    assert client.slices_ahead(2, 0) is None  # nothing is far away


async def test_an_operation_that_fails_changes_nothing(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "ahead-limits")
    ino = (await make_file(client, b"f")).ino
    ahead, mine = await begun(client, ino), await record(client)

    async def failing(tx: Transaction) -> None:
        tx.delete_attr(ino)
        raise ValueError("after a write")

    with pytest.raises(ValueError, match="after a write"):
        await client.write(failing, ahead=ahead)
    await write(client, ino, mine, None)
    await assert_clean(client)
