"""What each operation costs on a cluster: requests to the stores, one after the other, as docs/tikv.md promises them."""

import os
from collections.abc import Awaitable, Callable

import pytest
import trio

from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.inodes import AttrChange
from jfs.meta.types import ROOT, ROOT_INO, Slice, SliceRef
from tests.meta.volumes import Clock, append, connect, format_volume, make_file
from tests.tikv.cluster import Cluster

READS = ("get", "batch_get", "scan")
COMMIT = {"prewrite": 1}


async def volume(cluster: Cluster, name: str, **changes: object) -> MetaClient:
    engine = open_engine(cluster.url(name))
    await format_volume(engine, **changes)
    client = await connect(engine, Clock())
    await client.new_slice_id()
    await make_file(client, b"first")  # numbers are drawn in batches: this draws them
    return client


async def cost(cluster: Cluster, work: Callable[[], Awaitable[object]]) -> dict[str, int]:
    """Requests by kind, of which none overlap: each waits for the one before.

    Commits are left out: the one that counts follows each prewrite, another finishes the transaction in the background.
    """
    cluster.control.reset_counters()
    await work()
    counts = cluster.control.counters()
    return {name: count.calls for name, count in counts.items() if count.calls and name != "commit"}


def reads(spent: dict[str, int]) -> int:
    return sum(spent.get(name, 0) for name in READS)


async def test_reading(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "reading")
    entry = await make_file(client, b"f")
    await append(client, entry.ino, 0, 0, 100)
    other = await connect(client.engine)
    assert await cost(tikv_cluster, lambda: other.getattr(entry.ino)) == {"get": 1}
    assert await cost(tikv_cluster, lambda: other.lookup(ROOT, ROOT_INO, b"f")) == {"get": 2}
    assert await cost(tikv_cluster, lambda: other.lookup(ROOT, ROOT_INO, b"f")) == {"batch_get": 1}
    assert await cost(tikv_cluster, lambda: other.open(ROOT, entry.ino, os.O_RDONLY)) == {"get": 1}
    assert await cost(tikv_cluster, lambda: other.read_chunk(entry.ino, 0)) == {"get": 1}


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_changing(tikv_cluster: Cluster, trash_days: int) -> None:
    client = await volume(tikv_cluster, f"changing{trash_days}", trash_days=trash_days)
    await make_file(client, b"gone")
    await client.unlink(ROOT, ROOT_INO, b"gone")  # the hour's trash directory is there now
    spent = await cost(tikv_cluster, lambda: make_file(client, b"f"))
    assert reads(spent) == 1
    assert spent == {"tso": 1, "batch_get": 1, **COMMIT}

    ino = (await client.lookup(ROOT, ROOT_INO, b"f")).ino
    slice_id = await client.new_slice_id()
    record = Slice(0, slice_id, 4096, 0, 4096)
    spent = await cost(tikv_cluster, lambda: client.write_slice(ino, 0, record, client.now_ns()))
    assert spent == {"tso": 1, "batch_get": 1, **COMMIT}
    spent = await cost(tikv_cluster, lambda: client.setattr(ROOT, ino, AttrChange(mode=0o600)))
    assert spent == {"tso": 1, "get": 1, **COMMIT}
    spent = await cost(tikv_cluster, lambda: client.truncate(ROOT, ino, 10))
    assert spent == {"tso": 1, "batch_get": 1, **COMMIT}
    spent = await cost(tikv_cluster, lambda: client.rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"g", 0))
    assert reads(spent) == 2
    spent = await cost(tikv_cluster, lambda: client.unlink(ROOT, ROOT_INO, b"g"))
    assert reads(spent) <= 3


async def test_truncating_many_chunks(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "chunks")
    ino = (await make_file(client, b"f")).ino
    for index in range(20):
        await append(client, ino, index, 0, 100)
    spent = await cost(tikv_cluster, lambda: client.truncate(ROOT, ino, 10))
    assert reads(spent) <= 5
    assert [len(await client.read_chunk(ino, index)) for index in range(20)] == [2] * 20


async def test_what_a_create_has_written_is_not_asked_for(tikv_cluster: Cluster) -> None:
    engine = open_engine(tikv_cluster.url("recent"))
    await format_volume(engine)
    client = await connect(engine, attr_cache_s=60.0)
    entry = await make_file(client, b"f")
    assert await cost(tikv_cluster, lambda: client.getattr(ROOT_INO)) == {}
    assert await cost(tikv_cluster, lambda: client.getattr(entry.ino)) == {}
    assert await cost(tikv_cluster, lambda: client.getattr(entry.ino, fresh=True)) == {"get": 1}


async def test_listing(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "listing")
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    for number in range(50):
        await make_file(client, b"%d" % number, parent=folder)
    spent = await cost(tikv_cluster, lambda: client.readdir(ROOT, folder, None, 4096))
    assert spent == {"tso": 1, "scan": 1, "batch_get": 1}


async def test_fingerprints(tikv_cluster: Cluster) -> None:
    client = await volume(tikv_cluster, "fingerprints")
    ino = (await make_file(client, b"f")).ino
    refs = [SliceRef(await client.new_slice_id(), 4096) for _ in range(3)]
    assert await cost(tikv_cluster, lambda: client.fingerprints(refs)) == {}  # the volume keeps none
    client.fingerprinting = True
    for ref in refs:
        record = [Slice(0, ref.id, ref.size, 0, ref.size)]
        spent = await cost(tikv_cluster, lambda r=record: client.write_slices(ino, 0, r, client.now_ns(), bytes(16)))
        assert spent == {"tso": 1, "batch_get": 1, **COMMIT}
    assert await cost(tikv_cluster, lambda: client.fingerprints(refs)) == {"tso": 1, "batch_get": 1}


async def test_changes_of_one_inode_take_turns(tikv_cluster: Cluster) -> None:
    """None of them has to be done again."""
    client = await volume(tikv_cluster, "turns")
    entry = await make_file(client, b"f")
    for number in range(3):
        await append(client, entry.ino, 0, number * 100, 100)
    plan = await client.compaction_candidate(entry.ino, 0)
    assert plan is not None
    compacted, *written = [await client.new_slice_id() for _ in range(3)]

    async def at_once() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.commit_compaction, plan, [compacted])
            for slice_id in written:
                nursery.start_soon(client.write_slices, entry.ino, 0, [Slice(300, slice_id, 9, 0, 9)], client.now_ns())

    assert (await cost(tikv_cluster, at_once))["prewrite"] == 3
    assert len(await client.read_chunk(entry.ino, 0)) == 3
