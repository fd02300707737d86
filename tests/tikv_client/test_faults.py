"""The client on a cluster that misbehaves."""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jfs.errors import Conflict, Unavailable
from jfs.tikv import messages, pd, wire
from jfs.tikv.client import LATEST, Client, Mutation, Op
from jfs.tikv.connection import connect
from jfs.tikv.errors import RpcError
from jfs.tikv.regions import Region
from tests.deadline import eventually_async
from tests.tikv.cluster import Cluster, free_ports
from tests.tikv_client.clients import STORE_FAULTS, connected, put, puts, value

PD_KINDS = ["drop_before", "drop_after", "refuse"]


async def everything(client: Client, name: bytes) -> None:
    """Each kind of read, after a write."""
    with trio.fail_after(30):
        while True:
            try:
                await put(client, Mutation(Op.PUT, name, b"v"))
                break
            except Unavailable:
                continue
        assert await client.snapshot(LATEST).get(name) == b"v"
        now = client.snapshot(await client.timestamp())
        assert await now.get(name) == b"v"
        assert await now.batch_get([name, name + b"-none"]) == {name: b"v"}
        assert await now.scan(name, name + b"\0") == [(name, b"v")]


@pytest.mark.parametrize("kind", STORE_FAULTS)
async def test_faults_of_stores_are_ridden_out(tikv_cluster: Cluster, kind: str) -> None:
    async with connected(tikv_cluster) as client:
        name = b"fault-" + kind.encode()
        for call in ("get", "batch_get", "scan", "prewrite", "kv"):
            tikv_cluster.control.fault(call, kind, times=2)
            await everything(client, name)


@pytest.mark.parametrize("kind", PD_KINDS)
async def test_faults_of_pd_are_ridden_out(tikv_cluster: Cluster, kind: str) -> None:
    tikv_cluster.control.fault("pd", kind, times=3)
    async with connected(tikv_cluster) as client:
        await everything(client, b"pd-" + kind.encode())
        for call in ("tso", "pd"):
            tikv_cluster.control.fault(call, kind, times=3)
            await everything(client, b"pd-" + kind.encode())


async def test_a_member_that_hands_out_no_timestamps_is_left(tikv_cluster: Cluster) -> None:
    """It may lead no more, and say so for ever: the leader is looked for again."""
    async with connected(tikv_cluster) as client:
        earlier = await client.timestamp()
        conversation = client.pd._timestamps
        assert conversation is not None
        tikv_cluster.control.fault("tso", "refuse", times=1)
        assert await client.timestamp() > earlier
        assert conversation.over
        assert client.pd._timestamps is not conversation


async def test_a_region_without_a_known_leader(tikv_cluster: Cluster) -> None:
    tikv_cluster.control.fault("pd", "leaderless")
    async with connected(tikv_cluster) as client:
        await everything(client, b"leaderless")


async def test_a_region_that_nobody_has_is_asked_for_again(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(tikv_cluster) as client:
        await client.timestamp()
        ask, turns = client.pd._ask, 0

        async def asking(method: str, *args: Any, **named: Any) -> bytes:
            nonlocal turns
            turns += 1
            if method == "GetRegion" and turns < 3:
                return wire.data(2, wire.number(1, 7))
            return await ask(method, *args, **named)

        monkeypatch.setattr(client.pd, "_ask", asking)
        await everything(client, b"nobody")
        assert turns >= 3


async def test_the_connection_to_a_store_that_moved_is_closed(tikv_cluster: Cluster) -> None:
    """After the last answer, if there is one to come."""
    async with connected(tikv_cluster) as client:
        await put(client, *puts(moved=b"1"))
        for under_way in (False, True):
            assert await client.snapshot().get(b"moved") == b"1"
            region = client.cluster.regions.known(b"moved")
            assert region is not None
            channel = client.cluster._stores[region.leader.store]
            connection = await channel.connection()
            hang = tikv_cluster.control.fault("get", "hang", times=1)
            async with trio.open_nursery() as nursery:
                if under_way:
                    nursery.start_soon(client.snapshot().get, b"moved")
                    await eventually_async(lambda hang=hang: tikv_cluster.control.hits(hang) == 1)
                client.cluster._drop_store(region.leader.store, channel)
                assert connection.closed != under_way
                tikv_cluster.control.clear_faults(hang)
            await eventually_async(lambda connection=connection: connection.closed)
            assert client.cluster._stores.get(region.leader.store) is not channel


@pytest.mark.parametrize("kind", ["drop_before", "server_is_busy", "not_leader"])
async def test_a_fault_that_stays_is_an_error_in_time(tikv_cluster: Cluster, kind: str) -> None:
    async with connected(tikv_cluster, patience_s=0.5) as client:
        await client.timestamp()
        tikv_cluster.control.fault("get", kind)
        with trio.fail_after(30), pytest.raises(Unavailable):
            await client.snapshot().get(b"stays")
        tikv_cluster.control.clear_faults()
        assert await client.snapshot().get(b"stays") is None


async def test_a_connection_that_is_closed_at_once(tikv_cluster: Cluster) -> None:
    """Nobody may wait for a socket that is closed: the event loop mixes up all those that do."""
    for _ in range(3):
        connection = await connect(tikv_cluster.pd, None, 1.0)
        connection.close(RpcError("not wanted any more"))
        await trio.testing.wait_all_tasks_blocked()
    async with connected(tikv_cluster) as client:
        assert await client.timestamp()


async def test_nobody_there() -> None:
    client = Client([f"127.0.0.1:{free_ports(1)[0]}"], patience_s=0.3)
    with trio.fail_after(30), pytest.raises(Unavailable, match="cannot connect"):
        await client.timestamp()


async def test_many_do_not_wait_for_a_silent_server_in_turn(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pd, "ANSWER_S", 0.3)
    tikv_cluster.control.fault("pd", "hang")
    async with connected(tikv_cluster, patience_s=0.2) as client:

        async def ask() -> None:
            with pytest.raises(Unavailable):
                await client.timestamp()

        with trio.fail_after(10):  # in turn, they would take 15
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(ask)
        tikv_cluster.control.clear_faults()
        assert await client.timestamp()


async def test_regions_that_split_and_move_under_a_client(tmp_path: Path) -> None:
    with Cluster(stores=3) as cluster:
        async with connected(cluster) as client:
            pairs = [(b"m/%03d" % n, b"%d" % n) for n in range(100)]
            await put(client, *[Mutation(Op.PUT, *pair) for pair in pairs])
            for turn in range(1, 10):
                cluster.control.split(b"m/%03d" % (turn * 10))
                for region in cluster.control.regions():
                    cluster.control.transfer(region.id, turn % 3 + 1)
                now = client.snapshot(await client.timestamp())
                assert await now.scan(b"m/", b"m0") == pairs
                assert await now.batch_get([key for key, _ in pairs]) == dict(pairs)
                await put(client, *[Mutation(Op.PUT, *pair) for pair in pairs])


async def test_a_cluster_that_hangs_and_comes_back(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster, patience_s=0.5) as client:
        await put(client, *puts(paused=b"1"))
        tikv_cluster.pause()
        with trio.move_on_after(0.2):
            await client.timestamp()
        with trio.move_on_after(0.2):
            await client.snapshot().get(b"paused")
        tikv_cluster.resume()
        await put(client, *puts(paused=b"2"))
        assert await value(client, b"paused") == b"2"


async def test_a_cluster_that_is_restarted(tmp_path: Path) -> None:
    with Cluster(data=tmp_path / "data") as cluster:
        async with connected(cluster) as client:
            await put(client, *puts(kept=b"1"))
            cluster.restart()
            assert await value(client, b"kept") == b"1"
            await put(client, *puts(kept=b"2"))
            cluster.restart()
            assert await client.snapshot().get(b"kept") == b"2"


# -- commits whose answer is lost


async def counted(client: Client, key: bytes) -> None:
    """Add one, in a transaction that is run until it is committed."""
    while True:
        began = trio.current_time()
        start = await client.timestamp()
        now = int(await client.snapshot(start).get(key) or b"0")
        try:
            # A second key, which at times lies in another region.
            mine = [Mutation(Op.PUT, key, b"%d" % (now + 1)), Mutation(Op.PUT, key + b"/z", b"%d" % (now + 1))]
            await client.commit(start, mine, began=began)
        except Conflict:
            continue
        return


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("call", ["prewrite", "commit", "kv"])
@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "stale_command", "region_not_found"])
async def test_a_lost_answer_is_settled(tikv_cluster: Cluster, call: str, kind: str, apart: bool) -> None:
    key = f"lost-{call}-{kind}-{apart}".encode()
    if apart:
        tikv_cluster.control.split(key + b"/m")
    async with connected(tikv_cluster) as client:
        for turn in range(1, 6):
            tikv_cluster.control.fault(call, kind, skip=turn % 3, times=1)
            await counted(client, key)
            tikv_cluster.control.clear_faults()
            assert await value(client, key) == b"%d" % turn
            assert await value(client, key + b"/z") == b"%d" % turn


@pytest.mark.parametrize(("path", "apart"), [(messages.PREWRITE, False), (messages.COMMIT, True)])
@pytest.mark.parametrize("executed", [False, True])
async def test_a_failure_within_the_store_is_settled(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, path: str, apart: bool, executed: bool
) -> None:
    """An answer that tells of an error of no kind may be about a commit that has happened."""
    key = f"failure-{apart}-{executed}".encode()
    if apart:
        tikv_cluster.control.split(key + b"/m")
    async with connected(tikv_cluster) as client:
        ask, failed = client.cluster.ask, False

        async def failing(region: Region, asked: str, request: bytes, *args: Any, **named: Any) -> bytes | None:
            nonlocal failed
            if asked != path or failed:
                return await ask(region, asked, request, *args, **named)
            failed = True
            if executed:
                assert await ask(region, asked, request, *args, **named) is not None
            return wire.data(2, wire.data(3, b"Error(Engine(Other))"))

        monkeypatch.setattr(client.cluster, "ask", failing)
        committed = True
        try:
            await put(client, Mutation(Op.PUT, key, b"1"), Mutation(Op.PUT, key + b"/z", b"1"))
        except Unavailable:
            committed = False
        assert failed
        assert committed == executed
        assert (await value(client, key) is not None) == executed
        assert (await value(client, key + b"/z") is not None) == executed


async def test_an_outcome_is_known_after_the_store_came_back(tikv_cluster: Cluster) -> None:
    """The answer is lost and the store away for a while: what is said in the end is what happened."""
    async with connected(tikv_cluster) as client:
        for kind in ("drop_before", "drop_after"):
            lost = tikv_cluster.control.fault("prewrite", kind, times=1)
            away = tikv_cluster.control.fault("check_txn_status", "drop_before")

            async def mend(away: int = away) -> None:
                await eventually_async(lambda: tikv_cluster.control.hits(away) >= 3)
                tikv_cluster.control.clear_faults(away)

            committed = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mend)
                try:
                    await put(client, Mutation(Op.PUT, b"away", kind.encode()))
                    committed = True
                except Unavailable:
                    pass
            assert tikv_cluster.control.hits(lost) == 1
            assert committed == (kind == "drop_after")
            assert (await value(client, b"away") == kind.encode()) == committed


async def test_a_commit_that_is_late_does_not_happen_after_it_was_denied(tikv_cluster: Cluster) -> None:
    """The one request hangs on its way; the client says no; then the request arrives."""
    async with connected(tikv_cluster) as client:
        await put(client, *puts(late=b"old"))
        region = client.cluster.regions.known(b"late")
        assert region is not None
        hang = tikv_cluster.control.fault("prewrite", "hang", times=1)

        async def cut() -> None:
            await eventually_async(lambda: tikv_cluster.control.hits(hang) == 1)
            for channel in client.cluster._stores.values():
                channel.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(Unavailable):
                await put(client, *puts(late=b"new"))
        tikv_cluster.control.clear_faults(hang)
        with trio.move_on_after(0.3):
            while await value(client, b"late") == b"old":
                await trio.sleep(0.01)
        assert await value(client, b"late") == b"old"
        await put(client, *puts(late=b"newer"))
