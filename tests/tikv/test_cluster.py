"""The test cluster itself: regions, stores, limits, garbage collection, and that it outlives what tests do to it."""

import asyncio
import os
import re
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import eventually
from tests.mounts import PEER, require_fuse
from tests.tikv.client import get, outcome, put, reading, with_client
from tests.tikv.cluster import Cluster

PAIRS = [(b"a", b"1"), (b"h", b"2"), (b"m", b""), (b"t", b"4"), (b"z", b"5")]


@pytest.fixture(scope="module")
def regions() -> Generator[Cluster, None, None]:
    """Five regions on two stores, with one of `PAIRS` in each."""
    with Cluster(splits=[b"g", b"m", b"s", b"y"]) as cluster:
        with_client(cluster, lambda client: put(client, *PAIRS))
        yield cluster
        cluster.check()


def test_leaders_are_spread_over_the_stores(regions: Cluster) -> None:
    found = regions.control.regions()
    assert [each.start for each in found] == [b"", b"g", b"m", b"s", b"y"]
    assert [each.end for each in found] == [b"g", b"m", b"s", b"y", b""]
    assert {each.store for each in found} == {1, 2}


def test_reads_cross_the_regions(regions: Cluster) -> None:
    async def work(client: Any) -> None:
        async with reading(client) as txn:
            assert await txn.scan(b"", b"", limit=10) == PAIRS
        async with reading(client) as txn:
            assert await txn.scan(b"b", b"t", limit=10) == PAIRS[1:3]
        async with reading(client) as txn:
            assert await txn.scan(b"a", b"zz", limit=4) == PAIRS[:4]
        async with reading(client) as txn:
            assert sorted(await txn.batch_get([b"m", b"z", b"missing"])) == [PAIRS[2], PAIRS[4]]
        assert await get(client, b"missing") is None
        assert await get(client, b"m") == b""

    with_client(regions, work)


def test_a_split_under_a_warm_client_is_invisible(regions: Cluster) -> None:
    async def work(client: Any) -> None:
        txn = await client.begin(pessimistic=False)
        assert await txn.get(b"h") == b"2"
        await txn.put(b"i1", b"left")
        await txn.put(b"i9", b"right")
        regions.control.split(b"i5")
        await txn.commit()
        async with reading(client) as txn:
            assert await txn.scan(b"i", b"j", limit=10) == [(b"i1", b"left"), (b"i9", b"right")]

    before = regions.control.region_of(b"i1")
    with_client(regions, work)
    assert regions.control.region_of(b"i1").epoch > before.epoch
    assert regions.control.region_of(b"i9").start == b"i5"


def test_a_moved_leader_is_found(regions: Cluster) -> None:
    async def work(client: Any) -> None:
        assert await get(client, b"t") == b"4"
        region = regions.control.region_of(b"t")
        regions.control.transfer(region.id, 3 - region.store)
        assert await get(client, b"t") == b"4"
        assert regions.control.region_of(b"t").store != region.store

    with_client(regions, work)


def test_wrong_orders_are_refused_with_a_reason(regions: Cluster) -> None:
    with pytest.raises(ValueError, match="starts at"):
        regions.control.split(b"g")
    with pytest.raises(ValueError, match="no region 1"):
        regions.control.transfer(1, 1)
    with pytest.raises(ValueError, match="no store 3"):
        regions.control.transfer(regions.control.regions()[0].id, 3)


def test_counters_tell_calls_and_keys(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        await put(client, *[(b"count/%d" % n, b"v") for n in range(3)])
        tikv_cluster.control.reset_counters()
        async with reading(client) as txn:
            await txn.get(b"count/0")
            await txn.batch_get([b"count/1", b"count/missing"])
            await txn.scan(b"count/", b"count0", limit=10)
        await put(client, (b"count/0", b"w"), (b"count/1", b"w"))

    with_client(tikv_cluster, work)
    counted = {call: (each.calls, each.keys) for call, each in tikv_cluster.control.counters().items() if each.calls}
    assert counted == {
        "tso": (3, 3),
        "get": (1, 1),
        "batch_get": (1, 2),
        "scan": (1, 3),
        "prewrite": (1, 2),
        "commit": counted["commit"],  # the secondary key's goes its own way, after the transaction is done
    }


def test_the_second_of_two_writers_meets_a_conflict(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        txn = await client.begin(pessimistic=False)
        await put(client, (b"conflict", b"first"))
        await txn.put(b"conflict", b"second")
        with pytest.raises(Exception, match=r"conflict: Some\("):
            await txn.commit()
        await txn.rollback()
        assert await get(client, b"conflict") == b"first"

    with_client(tikv_cluster, work)


def test_a_key_that_is_only_locked_is_a_conflict_too(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        await put(client, (b"guarded", b"v"))
        reader, guard = await client.begin(pessimistic=False), await client.begin(pessimistic=False)
        await guard.lock_keys([b"guarded"])
        await guard.put(b"guard/1", b"v")
        await guard.commit()
        await reader.put(b"guarded", b"lost")
        with pytest.raises(Exception, match=r"conflict: Some\("):
            await reader.commit()
        await reader.rollback()
        assert await get(client, b"guarded") == b"v"

    with_client(tikv_cluster, work)


def test_a_pessimistic_writer_waits_for_the_holder_of_the_lock(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        await put(client, (b"held", b"0"))
        holder = await client.begin(pessimistic=True)
        assert await holder.get_for_update(b"held") == b"0"
        await holder.put(b"held", b"1")
        waiter = await client.begin(pessimistic=True)
        waiting = asyncio.ensure_future(waiter.get_for_update(b"held"))
        await asyncio.to_thread(eventually, lambda: tikv_cluster.control.counters()["pessimistic_lock"].calls >= 1)
        await holder.commit()
        got = await outcome(waiting)
        assert got == b"1" or "conflict: Some(" in str(got), got
        await waiter.rollback()

    tikv_cluster.control.reset_counters()
    with_client(tikv_cluster, work)


def test_an_answer_over_four_mebibytes_is_sent_and_the_client_refuses_it(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        for n in range(5):
            await put(client, (b"big/%d" % n, bytes(1 << 20)))
        async with reading(client) as txn:
            with pytest.raises(Exception, match="OutOfRange"):
                await txn.scan(b"big/", b"big0", limit=5)
        async with reading(client) as txn:
            assert len(await txn.scan(b"big/", b"big0", limit=3)) == 3

    with_client(tikv_cluster, work)


def test_the_limits_of_keys_and_of_raft_entries_hold(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        await put(client, (b"k" * 4096, b"v"))
        for pair, said in [((b"k" * 8192, b"v"), "KeyTooLarge"), ((b"k", bytes(9 << 20)), "raft entry is too large")]:
            txn = await client.begin(pessimistic=False)
            await txn.put(*pair)
            with pytest.raises(Exception, match=said):
                await txn.commit()
            await txn.rollback()

    with_client(tikv_cluster, work)


def test_gc_drops_what_nobody_can_read(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        for value in (b"old", b"older", b"newest"):
            await put(client, (b"gc", value))
        txn = await client.begin(pessimistic=False)
        await put(client, (b"gc/gone", b"v"))
        await txn.rollback()
        txn = await client.begin(pessimistic=False)
        await txn.delete(b"gc/gone")
        await txn.commit()
        safe = await client.current_timestamp()
        before = tikv_cluster.control.stats()
        assert await client.inner.gc(safe)
        assert tikv_cluster.control.stats()["safe_point"] == safe
        eventually(
            lambda: tikv_cluster.control.stats()["versions"] <= before["versions"] - 4, what="versions collected"
        )
        assert (await get(client, b"gc"), await get(client, b"gc/gone")) == (b"newest", None)

    with_client(tikv_cluster, work)


def test_a_bulk_load_is_read_like_any_commit(tikv_cluster: Cluster) -> None:
    pairs = [(b"load/%06d" % n, b"%d" % n) for n in range(10_000)]

    async def work(client: Any) -> None:
        async with reading(client) as before:
            tikv_cluster.control.load(pairs)
            assert await before.scan(b"load/", b"load0", limit=3) == []
        async with reading(client) as after:
            assert await after.scan(b"load/", b"load0", limit=10_000) == pairs
        await put(client, (pairs[7][0], b"changed"))
        assert await get(client, pairs[7][0]) == b"changed"

    with_client(tikv_cluster, work)


def test_data_outlives_a_kill(tmp_path: Path) -> None:
    with Cluster(data=tmp_path / "data", splits=[b"m"]) as cluster:
        with_client(cluster, lambda client: put(client, (b"a", b"1"), (b"z", b"2")))
        cluster.control.load([(b"loaded", b"3")])
        cluster.control.split(b"t")
        cluster.control.transfer(cluster.control.regions()[2].id, 1)
        before = cluster.control.regions()
        cluster.restart()
        assert cluster.control.regions() == before

        async def work(client: Any) -> None:
            async with reading(client) as txn:
                assert await txn.scan(b"", b"", limit=9) == [(b"a", b"1"), (b"loaded", b"3"), (b"z", b"2")]
            await put(client, (b"a", b"4"))
            assert await get(client, b"a") == b"4"

        with_client(cluster, work)


def test_a_client_survives_a_restart_on_the_same_ports(tmp_path: Path) -> None:
    with Cluster(data=tmp_path / "data") as cluster:

        async def work(client: Any) -> None:
            await put(client, (b"k", b"v"))
            cluster.restart()

            async with asyncio.timeout(100):
                while True:
                    got = await outcome(get(client, b"k"))
                    if got == b"v":
                        return
                    assert re.search("TimestampRequest channel is closed|Unavailable", str(got)), got
                    await asyncio.sleep(0.05)

        with_client(cluster, work)


def test_a_paused_cluster_answers_after_it_goes_on(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        await put(client, (b"paused", b"v"))
        tikv_cluster.pause()
        reading_now = asyncio.ensure_future(get(client, b"paused"))
        done, _ = await asyncio.wait([reading_now], timeout=0.3)
        assert not done
        tikv_cluster.resume()
        assert await reading_now == b"v"

    with_client(tikv_cluster, work)


def test_the_end_of_the_server_is_told_with_its_last_words() -> None:
    cluster = Cluster().start()
    try:
        os.kill(cluster.pid, signal.SIGABRT)
        eventually(cluster.died, what="the server ends")
        with pytest.raises(AssertionError, match=r"ended with 2; its log ends with\nSIGABRT"):
            cluster.check()
    finally:
        cluster.kill()
        cluster.stop()


def test_the_peer_works_on_a_volume_of_many_regions(tmp_path: Path) -> None:
    require_fuse()
    with Cluster(splits=[b"peer\xfdA\x03", b"peer\xfdA\x08", b"peer\xfdC"]) as cluster:
        url = cluster.url("peer")
        PEER.run("format", "--bucket", tmp_path / "objects", url, "myvol")
        assert "myvol" in PEER.run("status", url).stdout
        folder = tmp_path / "mnt"
        log = tmp_path / "log"
        PEER.run("mount", "-d", "--no-usage-report", "--log", log, "--metrics", "127.0.0.1:0", url, folder)
        try:
            for n in range(50):
                (folder / f"f{n}").write_text(f"content {n}")
            for n in range(25):
                (folder / f"f{n}").rename(folder / f"g{n}")
            cluster.control.split(b"peer\xfdD")
            assert len([each for each in folder.iterdir() if each.name[0] in "fg"]) == 50
            assert (folder / "g7").read_text() == "content 7"
        finally:
            PEER.run("umount", folder)
        PEER.run("fsck", url)
        PEER.run("gc", url)
        assert cluster.control.counters()["commit"].calls > 0
