"""Reading and committing on a cluster that behaves."""

from pathlib import Path
from typing import Any

import pytest
import trio

from jfs.errors import Conflict
from jfs.tikv import commit, messages, wire
from jfs.tikv.client import LATEST, Mutation, Op
from jfs.tikv.errors import Refused
from jfs.tikv.regions import Region
from tests.deadline import eventually_async
from tests.tikv.cluster import Cluster
from tests.tikv_client.clients import connected, put, puts, value


async def test_one_request_commits_what_is_in_one_region(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:
        await put(client, *puts(one_a=b"0"))
        tikv_cluster.control.reset_counters()
        committed = await put(client, *puts(one_a=b"1", one_b=b"2"), Mutation(Op.LOCK, b"one_c"))
        calls = {name: count.calls for name, count in tikv_cluster.control.counters().items() if count.calls}
        assert calls == {"tso": 1, "prewrite": 1}
        assert await client.snapshot(committed).get(b"one_a") == b"1"
        assert await client.snapshot(committed - 1).get(b"one_a") == b"0"
        assert await client.snapshot().get(b"one_b") == b"2"
        assert await client.snapshot().get(b"one_c") is None


async def test_reading(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:
        await put(client, *[Mutation(Op.PUT, b"read/%03d" % n, b"%d" % n) for n in range(300)], *puts(read_x=b""))
        await put(client, Mutation(Op.DELETE, b"read/007"))
        now = client.snapshot(await client.timestamp())
        assert await now.get(b"read/008") == b"8"
        assert await now.get(b"read/007") is None
        assert await now.get(b"read_x") == b""
        assert await now.batch_get([b"read/007", b"read/008", b"read/none", b"read_x"]) == {
            b"read/008": b"8",
            b"read_x": b"",
        }
        pairs = await now.scan(b"read/", b"read0")
        assert pairs == [(b"read/%03d" % n, b"%d" % n) for n in range(300) if n != 7]
        assert await now.scan(b"read/006", b"read0", 2) == [(b"read/006", b"6"), (b"read/008", b"8")]
        assert await now.scan(b"read/5", b"read/4") == []


async def test_many_regions(tmp_path: Path) -> None:
    with Cluster(splits=[b"%d" % n for n in range(1, 10)], stores=2) as cluster:
        async with connected(cluster) as client:
            keys = [b"%d/%d" % (n % 10, n) for n in range(200)]
            await put(client, *[Mutation(Op.PUT, key, key[::-1]) for key in keys], Mutation(Op.LOCK, b"7/lock"))
            now = client.snapshot(await client.timestamp())
            assert await now.batch_get([*keys, b"4/none"]) == {key: key[::-1] for key in keys}
            assert await now.scan(b"", b"") == sorted((key, key[::-1]) for key in keys)
            assert await now.scan(b"3", b"7", 70) == sorted((key, key[::-1]) for key in keys if b"3" <= key < b"7")[:70]
            with trio.fail_after(30):
                while cluster.control.stats()["locks"]:
                    await trio.sleep(0.01)


async def test_answers_may_be_large(tikv_cluster: Cluster) -> None:
    """64 MiB in one answer, and values that fill a raft entry."""
    async with connected(tikv_cluster) as client:
        large = bytes(range(256)) * (28 << 10)
        await put(client, *[Mutation(Op.PUT, b"large/%d" % n, large) for n in range(10)])
        now = client.snapshot(await client.timestamp())
        assert await now.batch_get([b"large/%d" % n for n in range(10)]) == {b"large/%d" % n: large for n in range(10)}
        assert [len(found) for _, found in await now.scan(b"large/", b"large0")] == [len(large)] * 10


@pytest.mark.parametrize("key", [b"too large", b"k" * 9000])
async def test_what_the_store_refuses(tikv_cluster: Cluster, key: bytes) -> None:
    async with connected(tikv_cluster) as client:
        with pytest.raises(Refused):
            await put(client, Mutation(Op.PUT, key, bytes(9 << 20)))
        assert await value(client, key) is None


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("second", [Op.PUT, Op.LOCK, Op.DELETE])
@pytest.mark.parametrize("first", [Op.PUT, Op.LOCK])
async def test_conflicts(tikv_cluster: Cluster, first: Op, second: Op, apart: bool) -> None:
    name = b"conflict-%d-%d-%d" % (first, second, apart)
    if apart:
        tikv_cluster.control.split(name + b"/m")
    async with connected(tikv_cluster) as client:
        began = trio.current_time()
        start = await client.timestamp()
        await put(client, Mutation(first, name, b"first" if first == Op.PUT else b""))
        mine = [Mutation(Op.PUT, name + b"/z", b"mine"), Mutation(second, name, b"mine" if second == Op.PUT else b"")]
        with pytest.raises(Conflict):
            await client.commit(start, mine, began=began)
        assert await value(client, name) == (b"first" if first == Op.PUT else None)
        assert await value(client, name + b"/z") is None
        await put(client, *mine)
        assert await value(client, name + b"/z") == b"mine"


async def test_timestamps_grow_whoever_asks(tikv_cluster: Cluster) -> None:
    """Many at once share requests; each one gets its own, and none that is older than one handed out before."""
    async with connected(tikv_cluster) as client, connected(tikv_cluster) as other:
        found: list[int] = []

        async def draw() -> None:
            for _ in range(20):
                before = await other.timestamp()
                mine = await client.timestamp()
                assert before < mine < await other.timestamp()
                found.append(mine)

        tikv_cluster.control.reset_counters()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(draw)
        assert len(set(found)) == 600
        count = tikv_cluster.control.counters()["tso"]
        assert count.keys == 1800
        assert count.calls < 1800


async def test_a_cancelled_call_leaves_the_connection_usable(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:
        await put(client, *puts(cancelled=b"v"))
        tikv_cluster.control.reset_counters()
        fault = tikv_cluster.control.fault("get", "hang")
        for _ in range(20):
            with trio.move_on_after(0.005):
                await client.snapshot(LATEST).get(b"cancelled")
        tikv_cluster.control.clear_faults(fault)
        for turn in range(200):
            with trio.move_on_after(0.00005 * turn):
                await client.timestamp()
                await client.snapshot(LATEST).get(b"cancelled")
        assert await value(client, b"cancelled") == b"v"
        assert tikv_cluster.control.counters().get("get_members") is None or (
            tikv_cluster.control.counters()["get_members"].calls == 0
        )


async def test_many_at_once(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:

        async def one(number: int) -> None:
            key = b"many/%d" % number
            for turn in range(5):
                await put(client, Mutation(Op.PUT, key, b"%d" % turn))
                assert await client.snapshot().get(key) == b"%d" % turn

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, number)


async def test_what_is_left_of_a_commit_is_sent_in_requests_of_a_size(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "BATCH_BYTES", 1000)
    keys = [b"pieces/%03d/" % n + bytes(89) for n in range(40)]
    tikv_cluster.control.split(keys[1])
    async with connected(tikv_cluster) as client:
        ask, sent = client.cluster.ask, []

        async def asking(region: Region, path: str, request: bytes, *args: Any, **named: Any) -> bytes | None:
            if path == messages.COMMIT:
                sent.append(wire.all_of(request, 3))
            return await ask(region, path, request, *args, **named)

        monkeypatch.setattr(client.cluster, "ask", asking)
        await put(client, *[Mutation(Op.PUT, key, b"1") for key in keys])
        await eventually_async(lambda: sum(map(len, sent)) >= len(keys))
        assert sorted(key for each in sent for key in each) == keys
        assert all(len(each) <= 10 for each in sent)
