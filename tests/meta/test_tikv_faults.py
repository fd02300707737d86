"""The engine on a cluster that misbehaves: nothing is lost, nothing is done twice, nothing hangs for ever."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from jfs.errors import FsError, Unavailable, UserError
from jfs.meta import run as running
from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.kv import tikv
from jfs.meta.kv.tikv import TikvEngine
from jfs.meta.run import read, run
from jfs.meta.transaction import Transaction
from jfs.meta.types import ROOT, ROOT_INO
from jfs.tikv import commit
from tests.meta.volumes import assert_clean, make_file, new_volume
from tests.tikv.cluster import Cluster, free_ports

AWAY = r"the metadata store .* does not answer"


def engine_on(cluster: Cluster, prefix: str) -> TikvEngine:
    engine = open_engine(cluster.url(prefix))
    assert isinstance(engine, TikvEngine)
    return engine


async def add(tx: Transaction, delta: int) -> int:
    return await tx.add_counter("totalInodes", delta)


async def counter(tx: Transaction) -> int:
    return await tx.counter("totalInodes")


# -- commits whose answer is lost


@pytest.mark.logs(AWAY)
@pytest.mark.parametrize("apart", [False, True], ids=["one region", "two regions"])
@pytest.mark.parametrize("call", ["commit", "prewrite"])
@pytest.mark.parametrize("kind", ["drop_after", "drop_before"])
async def test_a_lost_answer_of_a_commit_is_settled(tikv_cluster: Cluster, call: str, kind: str, apart: bool) -> None:
    engine = engine_on(tikv_cluster, f"lost-{call}-{kind}-{apart}")
    if apart:
        tikv_cluster.control.split(engine.prefix + b"CtotalInodes")

    async def add_two(tx: Transaction) -> int:
        await tx.add_counter("nextInode", 1)
        return await tx.add_counter("totalInodes", 1)

    await run(engine, add_two)
    tikv_cluster.control.fault(call, kind, times=1)
    value, _ = await run(engine, add_two)
    assert value == 2
    async with engine.transaction(write=False) as tx:
        assert [await tx.counter(name) for name in ("nextInode", "totalInodes")] == [2, 2]


@pytest.mark.logs(AWAY)
async def test_counting_through_lost_answers_and_moves_counts_right(tikv_cluster: Cluster) -> None:
    """Several writers of one counter while answers are lost and the region moves: each success counts once."""
    engine = engine_on(tikv_cluster, "storm")
    done = 0

    async def count() -> None:
        nonlocal done
        for _ in range(50):
            await run(engine, add, 1)
            done += 1

    async def trouble() -> None:
        control = tikv_cluster.control
        stores = sorted({region.store for region in control.regions()} | {1, 2})
        for turn in range(10_000):
            fault = control.fault("prewrite", "drop_after" if turn % 2 else "drop_before", times=2)
            await trio.sleep(0.05)
            control.clear_faults(fault)
            region = control.region_of(engine.prefix + b"C")
            with contextlib.suppress(ValueError):  # the other store's number is not known for sure
                control.transfer(region.id, next(store for store in stores if store != region.store))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trouble)
        async with trio.open_nursery() as counting:
            for _ in range(4):
                counting.start_soon(count)
        nursery.cancel_scope.cancel()
    tikv_cluster.control.clear_faults()
    assert done == 200
    assert await read(engine, counter) == 200


@pytest.mark.logs(AWAY, "it is unknown whether a transaction was committed")
async def test_an_outcome_that_cannot_be_found_out_is_an_error(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "SETTLE_S", 0.5)
    engine = engine_on(tikv_cluster, "unknown")
    await run(engine, add, 1)
    tikv_cluster.control.fault("prewrite", "drop_after")
    tikv_cluster.control.fault("check_txn_status", "drop_before")
    with pytest.raises(FsError) as failed:
        await run(engine, add, 1)
    assert failed.value.errno == errno.EIO


# -- a cluster that is away


@pytest.mark.logs(AWAY)
async def test_operations_wait_for_a_cluster_that_is_away(tmp_path: Path) -> None:
    with Cluster(data=tmp_path / "data") as cluster:
        client = await new_volume(engine_on(cluster, "away"))
        await make_file(client, b"before")
        cluster.kill()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(make_file, client, b"during%d" % number)
            await trio.sleep(3)
            await trio.to_thread.run_sync(cluster.restart)
        names = [entry.name for entry in await client.readdir(ROOT, ROOT_INO, None, 100)]
        assert names == [b"before", b"during0", b"during1", b"during2"]
        await assert_clean(client)


@pytest.mark.logs(AWAY, "transaction getattr failed after")
async def test_waiting_ends_in_eio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GIVE_UP_S", 2.0)
    with Cluster(data=tmp_path / "data") as cluster:
        client = await new_volume(engine_on(cluster, "gone"))
        cluster.kill()
        with pytest.raises(FsError) as failed:
            await client.getattr(ROOT_INO)
        assert failed.value.errno == errno.EIO


@pytest.mark.logs(AWAY)
async def test_a_placement_driver_that_hangs_is_not_waited_for_longer(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tikv, "PATIENCE_S", 0.5)
    engine = engine_on(tikv_cluster, "hung")
    await run(engine, add, 1)
    fault = tikv_cluster.control.fault("tso", "hang")
    with trio.fail_after(60), pytest.raises(Unavailable):
        async with engine.transaction(write=True):
            pass
    tikv_cluster.control.clear_faults(fault)
    assert (await run(engine, add, 1))[0] == 2


async def test_a_region_whose_leader_is_not_known_is_asked_for_it(tikv_cluster: Cluster) -> None:
    tikv_cluster.control.fault("pd", "leaderless")
    engine = engine_on(tikv_cluster, "leaderless")
    assert (await run(engine, add, 1))[0] == 1
    assert await read(engine, counter) == 1


@pytest.mark.parametrize("kind", ["server_is_busy", "not_leader", "epoch_not_match"])
@pytest.mark.logs(AWAY)
async def test_region_errors_are_ridden_out(tikv_cluster: Cluster, kind: str) -> None:
    engine = engine_on(tikv_cluster, f"region-{kind}")
    await run(engine, add, 1)
    tikv_cluster.control.fault("kv", kind, times=3)
    assert (await run(engine, add, 1))[0] == 2


# -- at the start


async def test_nobody_there() -> None:
    engine = open_engine(f"tikv://127.0.0.1:{free_ports(1)[0]}/vol")
    with (
        trio.fail_after(30),
        pytest.raises(UserError, match=r"the metadata store tikv://127.0.0.1:\d+ cannot be reached"),
    ):
        await engine.open()


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_somebody_there_who_says_nothing() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, silent, listeners)
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(UserError, match=r"tikv://127.0.0.1:\d+"):
                await open_engine(f"tikv://127.0.0.1:{port}/vol").open()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("tikv:///vol", "a tikv URL names its placement drivers"),
        ("tikv://host:port/vol", "host:port is no address of a placement driver"),
        ("tikv://host/vol?ca=/nowhere/ca.pem", "the TLS files of the meta URL cannot be used: .*No such file"),
        ("tikv://host/vol?cert=/nowhere/c.pem", "TLS to TiKV takes the parameters ca, cert and key"),
        ("tikv://host/vol?gc-interval=soon", "gc-interval=soon"),
        ("tikv://host/vol?timeout=3", "unknown parameter timeout of a tikv URL"),
    ],
)
def test_urls_that_are_refused(url: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        open_engine(url)


# -- sizes


async def test_answers_of_more_than_a_message_are_asked_for_in_parts(tikv_cluster: Cluster) -> None:
    engine = engine_on(tikv_cluster, "large")
    value = os.urandom(60_000)
    for first in range(0, 120, 40):
        async with engine.transaction(write=True) as tx:
            for number in range(first, first + 40):
                tx.put_xattr(7, b"%03d" % number, value)
    async with engine.transaction(write=False) as tx:
        assert len(await tx.xattr_names(7)) == 120
        pairs = await tx.kv.scan(b"A", b"B", 100)
        assert len(pairs) == 100
        assert all(found == value for _, found in pairs)
        keys = [key for key, _ in await tx.kv.scan(b"A", b"B")]
    async with engine.transaction(write=False) as tx:
        assert len(await tx.kv.get_many(keys)) == 120


async def test_a_value_of_more_than_a_usual_message_is_read(tikv_cluster: Cluster) -> None:
    engine = engine_on(tikv_cluster, "huge")
    value = os.urandom(5 << 20)
    async with engine.transaction(write=True) as tx:
        tx.put_xattr(7, b"huge", value)
    async with engine.transaction(write=False) as tx:
        assert await tx.xattr(7, b"huge") == value
        assert await tx.xattr_names(7) == [b"huge"]


@pytest.mark.logs("TiKV refuses the transaction", AWAY)
async def test_a_value_that_the_store_refuses_is_an_error_at_once(tikv_cluster: Cluster) -> None:
    engine = engine_on(tikv_cluster, "refused")
    with pytest.raises(FsError) as failed:
        async with engine.transaction(write=True) as tx:
            tx.put_xattr(7, b"huge", bytes(9 << 20))
    assert failed.value.errno == errno.EIO
    assert await read(engine, counter) == 0


async def test_a_transaction_over_many_regions(tmp_path: Path) -> None:
    prefix = b"split\xfd"
    splits = [prefix + b"A" + bytes([number]) for number in range(1, 40, 7)] + [prefix + b"U"]
    with Cluster(splits=splits) as cluster:
        client = await new_volume(engine_on(cluster, "split"))
        for number in range(30):
            entry = await client.mkdir(ROOT, ROOT_INO, b"d%d" % number, 0o755)
            await make_file(client, b"f", parent=entry.ino)
        assert len(await client.readdir(ROOT, ROOT_INO, None, 100)) == 30
        cluster.control.split(prefix + b"A" + bytes([20]))
        await client.rename(ROOT, ROOT_INO, b"d0", (await client.lookup(ROOT, ROOT_INO, b"d1")).ino, b"d0", 0)
        await assert_clean(client)


# -- old versions


async def test_the_safe_point_moves(tikv_cluster: Cluster) -> None:
    engine = engine_on(tikv_cluster, "gc")
    engine._gc_interval_s = 3600.0
    await run(engine, add, 1)
    before = tikv_cluster.control.stats()["safe_point"]
    await engine.collect(0)
    after = tikv_cluster.control.stats()["safe_point"]
    assert after > before
    assert abs((tikv_cluster.control.stats()["now"] - after >> 18) - 3_600_000) < 60_000


@pytest.mark.logs("the cluster refuses to collect old versions", AWAY)
async def test_a_refused_safe_point_is_one_warning(tikv_cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_on(tikv_cluster, "nogc")
    tikv_cluster.control.fault("update_gc_safe_point", "refuse")
    await engine.collect(0)
    await engine.collect(0)
    assert len([line for line in caplog.messages if "refuses to collect" in line]) == 1


async def test_a_store_that_is_away_refuses_nothing(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tikv, "PATIENCE_S", 0.2)
    engine = engine_on(tikv_cluster, "gcaway")
    engine._gc_interval_s = 3600.0
    for call in ("scan_lock", "tso"):
        away = tikv_cluster.control.fault(call, "drop_before")
        await engine.collect(0)
        tikv_cluster.control.clear_faults(away)
    assert [line for line in caplog.messages if "refuses to collect" in line] == []
    before = tikv_cluster.control.stats()["safe_point"]
    await engine.collect(0)
    assert tikv_cluster.control.stats()["safe_point"] > before


# -- in order


async def cancelled_midway(client: MetaClient, turn: int) -> None:
    with trio.move_on_after(0.0005 * turn):
        for number in range(1000):
            await make_file(client, b"%d-%d" % (turn, number))


async def test_cancelled_transactions_leave_nothing_behind(
    tikv_cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await new_volume(engine_on(tikv_cluster, "cancelled"))
    for turn in range(20):
        await cancelled_midway(client, turn)
    await assert_clean(client)


def test_commands_end_in_order(tikv_cluster: Cluster, tmp_path: Path) -> None:
    jfs = [sys.executable, "-m", "jfs"]
    url = tikv_cluster.url("ends")
    made = subprocess.run([*jfs, "format", "--bucket", str(tmp_path), url, "vol"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    for _ in range(5):
        shown = subprocess.run([*jfs, "status", url], capture_output=True, text=True)
        assert (shown.returncode, '"Name": "vol"' in shown.stdout) == (0, True), shown.stderr
