"""The engine on a cluster that misbehaves: nothing is lost, nothing is done twice, nothing hangs for ever."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from jfs.errors import Conflict, FsError, Unavailable, UserError
from jfs.meta import run as running
from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.kv import tikv
from jfs.meta.kv.tikv import TikvEngine
from jfs.meta.run import read, run
from jfs.meta.transaction import Transaction
from jfs.meta.types import ROOT, ROOT_INO
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
@pytest.mark.parametrize("call", ["commit", "prewrite"])
@pytest.mark.parametrize("kind", ["drop_after", "drop_before"])
async def test_a_lost_answer_of_a_commit_is_settled(tikv_cluster: Cluster, call: str, kind: str) -> None:
    engine = engine_on(tikv_cluster, f"lost-{call}-{kind}")
    await run(engine, add, 1)
    fault = tikv_cluster.control.fault(call, kind)

    async def mend() -> None:
        while tikv_cluster.control.hits(fault) < 11:  # the library has given up by then
            await trio.sleep(0.05)
        tikv_cluster.control.clear_faults()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        value, _ = await run(engine, add, 1)
    assert value == 2
    assert await read(engine, counter) == 2


@pytest.mark.logs(AWAY)
async def test_counting_through_lost_answers_and_moves_counts_right(tikv_cluster: Cluster) -> None:
    """Several writers of one counter while answers are lost and the region moves: each success counts once."""
    engine = engine_on(tikv_cluster, "storm")
    done = 0

    async def count() -> None:
        nonlocal done
        for _ in range(20):
            await run(engine, add, 1)
            done += 1

    async def trouble() -> None:
        control = tikv_cluster.control
        for turn in range(6):
            fault = control.fault("commit" if turn % 2 else "prewrite", "drop_after")
            await trio.sleep(0.2)
            control.clear_faults(fault)
            region = control.region_of(engine.prefix + b"C")
            control.transfer(region.id, 3 - region.store if region.store in (1, 2) else region.store)
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(count)
        nursery.start_soon(trouble)
    assert done == 80
    assert await read(engine, counter) == 80


@pytest.mark.logs(AWAY, "it is unknown whether a transaction was committed", "Input/output error")
async def test_an_outcome_that_cannot_be_found_out_is_an_error(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tikv, "SETTLE_S", 0.5)
    engine = engine_on(tikv_cluster, "unknown")
    await run(engine, add, 1)
    tikv_cluster.control.fault("commit", "drop_after")
    tikv_cluster.control.fault("get", "drop_before")
    with pytest.raises(FsError) as failed:
        async with engine.transaction(write=True) as tx:
            tx.put_counter("totalInodes", 5)
    assert failed.value.errno == errno.EIO


async def test_commits_at_once_do_not_meet_at_their_markers(tikv_cluster: Cluster) -> None:
    engine = engine_on(tikv_cluster, "atonce")
    await run(engine, add, 1)

    async def work(worker: int) -> None:
        for number in range(20):
            async with engine.transaction(write=True) as tx:
                await tx.attr(worker)
                tx.put_counter(f"{worker}-{number}", 1)

    async with trio.open_nursery() as nursery:
        for worker in range(16):
            nursery.start_soon(work, worker)
    assert len(engine.slots) <= 48


async def test_markers_go_with_their_client(tikv_cluster: Cluster) -> None:
    client = await new_volume(engine_on(tikv_cluster, "markers"))
    await make_file(client, b"f")
    engine = client.engine
    assert isinstance(engine, TikvEngine)

    async def markers() -> int:
        async with engine.transaction(write=False) as tx:
            return len(await tx.kv.scan(tikv.MARKER, tikv.MARKER + b"\xff"))

    assert await markers() == 1
    await engine.close()
    assert await markers() == 0


async def test_markers_of_dead_clients_are_collected(tikv_cluster: Cluster) -> None:
    dead, alive = engine_on(tikv_cluster, "oldmarks"), engine_on(tikv_cluster, "oldmarks")
    await run(dead, add, 1)
    async with alive.transaction(write=False) as tx:
        ((_, value),) = await tx.kv.scan(tikv.MARKER, tikv.MARKER + b"\xff")
    made = tikv._MARK.unpack(value)[1]
    await alive.collect(made + tikv.MARKER_AGE_S)
    async with alive.transaction(write=False) as tx:
        assert dead.identity in (await tx.kv.scan(tikv.MARKER, tikv.MARKER + b"\xff"))[0][0]
    await alive.collect(made + tikv.MARKER_AGE_S + 1)
    async with alive.transaction(write=False) as tx:
        left = await tx.kv.scan(tikv.MARKER, tikv.MARKER + b"\xff")
    assert not [key for key, _ in left if dead.identity in key]


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
    """And what it hands out later is rolled back, not dropped."""
    monkeypatch.setattr(tikv, "ANSWER_S", 0.5)
    engine = engine_on(tikv_cluster, "hung")
    await run(engine, add, 1)
    fault = tikv_cluster.control.fault("tso", "hang")
    for write in (True, False):
        with pytest.raises(Unavailable):
            async with engine.transaction(write=write):
                pass
    tikv_cluster.control.clear_faults(fault)
    monkeypatch.setattr(tikv, "ANSWER_S", 9.0)
    assert (await run(engine, add, 1))[0] == 2


@pytest.mark.logs(AWAY)
async def test_a_region_that_was_met_without_a_leader_is_found_later(tikv_cluster: Cluster) -> None:
    tikv_cluster.control.fault("pd", "leaderless")
    engine = engine_on(tikv_cluster, "leaderless")
    with pytest.raises(Conflict):
        async with engine.transaction(write=False) as tx:
            await tx.attr(1)
    tikv_cluster.control.clear_faults()
    assert await read(engine, counter) == 0


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
        trio.fail_after(10),
        pytest.raises(UserError, match=r"the metadata store tikv://127.0.0.1:\d+ cannot be reached"),
    ):
        await engine.open()


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_somebody_there_who_says_nothing() -> None:
    with trio.fail_after(10.5):
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
        ("tikv://host/vol?ca=/etc/ca.pem", "parameter ca of the meta URL: .* has no TLS"),
        ("tikv://host/vol?gc-interval=soon", "gc-interval=soon"),
        ("tikv://host/vol?timeout=3", "unknown parameter timeout of a tikv URL"),
    ],
)
def test_urls_that_are_refused(url: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        open_engine(url)


def test_a_platform_without_the_client_library_says_so() -> None:
    code = (
        "import sys, trio; sys.modules['tikv_client'] = None\n"
        "from jfs.errors import UserError\n"
        "from jfs.meta.engines import open_engine\n"
        "try: trio.run(open_engine('tikv://127.0.0.1:1/vol').open)\n"
        "except UserError as error: print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tikv:// needs the package tikv-client" in shown.stdout, shown.stderr


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


@pytest.mark.logs("is too long to be read: over 4 MiB")
async def test_a_value_that_is_too_long_is_named(tikv_cluster: Cluster) -> None:
    engine = engine_on(tikv_cluster, "huge")
    async with engine.transaction(write=True) as tx:
        tx.put_xattr(7, b"huge", bytes(5 << 20))
    for ask in (lambda tx: tx.xattr(7, b"huge"), lambda tx: tx.xattr_names(7)):
        with pytest.raises(FsError) as failed:
            await read(engine, ask)
        assert failed.value.errno == errno.EIO


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
    assert "active transaction" not in capfd.readouterr().err


def test_commands_end_in_order(tikv_cluster: Cluster, tmp_path: Path) -> None:
    """The library's threads must not meet an interpreter that is being taken down: 3 to 15 % of such ends crash."""
    jfs = [sys.executable, "-m", "jfs"]
    url = tikv_cluster.url("ends")
    made = subprocess.run([*jfs, "format", "--bucket", str(tmp_path), url, "vol"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    for _ in range(40):
        shown = subprocess.run([*jfs, "status", url], capture_output=True, text=True)
        assert (shown.returncode, '"Name": "vol"' in shown.stdout) == (0, True), shown.stderr
