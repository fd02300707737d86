"""Each fault that the test cluster can arm, as the client library shows it."""

import asyncio
import time
from collections.abc import Generator
from typing import Any

import pytest

from tests.deadline import eventually
from tests.tikv.client import connect, get, outcome, put, reading, with_client
from tests.tikv.cluster import Cluster
from tests.tikv.control import Control


@pytest.fixture
def control(tikv_cluster: Cluster) -> Generator[Control, None, None]:
    """The door of a cluster that has `k` = `v`; what the test armed is cleared after it."""
    tikv_cluster.control.load([(b"k", b"v")])
    tikv_cluster.control.reset_counters()
    yield tikv_cluster.control
    tikv_cluster.control.clear_faults()


@pytest.mark.parametrize(
    "kind", ["not_leader", "epoch_not_match", "stale_command", "region_not_found", "drop_before", "drop_after"]
)
def test_the_client_tries_again_by_itself(tikv_cluster: Cluster, control: Control, kind: str) -> None:
    fault = control.fault("get", kind, times=2)
    assert with_client(tikv_cluster, lambda client: get(client, b"k")) == b"v"
    assert control.hits(fault) == 2
    assert control.counters()["get"].calls == 3


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("not_leader", r"not_leader: Some\("),
        ("epoch_not_match", r"epoch_not_match: Some\("),
        ("stale_command", r"stale_command: Some\("),
        ("region_not_found", r"region_not_found: Some\("),
        ("server_is_busy", r"server_is_busy: Some\("),
        ("drop_before", "Unavailable"),
    ],
)
def test_a_fault_that_stays_becomes_an_error(tikv_cluster: Cluster, control: Control, kind: str, said: str) -> None:
    async def work(client: Any) -> None:
        fault = control.fault("get", kind)
        with pytest.raises(Exception, match=said):
            await get(client, b"k")
        assert control.hits(fault) >= 1
        control.clear_faults(fault)
        assert await get(client, b"k") == b"v"

    with_client(tikv_cluster, work)


def test_a_busy_server_is_the_callers_affair_at_once(tikv_cluster: Cluster, control: Control) -> None:
    fault = control.fault("scan", "server_is_busy", times=1)

    async def work(client: Any) -> None:
        async with reading(client) as txn:
            with pytest.raises(Exception, match=r"server_is_busy: Some\("):
                await txn.scan(b"k", b"l", limit=1)

    with_client(tikv_cluster, work)
    assert control.hits(fault) == 1


def test_a_commit_whose_answer_is_lost_is_committed(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> None:
        control.fault("commit", "drop_after")
        with pytest.raises(Exception, match="Unavailable"):
            await put(client, (b"ambiguous", b"there"))
        control.clear_faults()
        assert await get(client, b"ambiguous") == b"there"

    with_client(tikv_cluster, work)


def test_a_prewrite_that_is_lost_leaves_nothing(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> None:
        control.fault("prewrite", "drop_before")
        with pytest.raises(Exception, match="Unavailable"):
            await put(client, (b"lost", b"never"))
        control.clear_faults()
        assert await get(client, b"lost") is None

    with_client(tikv_cluster, work)


def test_what_a_dead_client_locked_is_free_after_a_while(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> None:
        control.fault("commit", "drop_before")
        with pytest.raises(Exception, match="Unavailable"):
            await put(client, (b"k", b"half"), (b"orphan", b"half"))
        control.clear_faults()
        assert control.stats()["locks"] == 2
        async with asyncio.timeout(60):
            while True:
                got = await outcome(get(client, b"k"))
                if not isinstance(got, BaseException):
                    break
                assert "Failed to resolve lock" in str(got)
        assert (got, await get(client, b"orphan")) == (b"v", None)

    with_client(tikv_cluster, work)


def test_a_call_that_hangs_goes_on_when_the_fault_is_cleared(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> None:
        fault = control.fault("get", "hang")
        hanging = asyncio.ensure_future(get(client, b"k"))
        await asyncio.to_thread(eventually, lambda: control.hits(fault) == 1)
        assert not hanging.done()
        control.clear_faults(fault)
        assert await hanging == b"v"

    with_client(tikv_cluster, work)


def test_a_transaction_does_not_begin_while_timestamps_hang(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> None:
        fault = control.fault("tso", "hang")
        hanging = asyncio.ensure_future(get(client, b"k"))
        await asyncio.to_thread(eventually, lambda: control.hits(fault) == 1)
        done, _ = await asyncio.wait([hanging], timeout=0.2)
        assert not done
        control.clear_faults(fault)
        assert await hanging == b"v"

    with_client(tikv_cluster, work)


@pytest.mark.parametrize("kind", ["hang", "hang_after"])
def test_a_hang_with_a_time_only_delays(tikv_cluster: Cluster, control: Control, kind: str) -> None:
    fault = control.fault("get", kind, delay_ms=150, times=1)
    began = time.monotonic()
    assert with_client(tikv_cluster, lambda client: get(client, b"k")) == b"v"
    assert time.monotonic() - began >= 0.15
    assert control.hits(fault) == 1


def test_a_delay_per_call_is_that_of_a_network(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> float:
        async with reading(client) as txn:
            began = time.monotonic()
            for n in range(5):
                await txn.get(b"delay/%d" % n)
            return time.monotonic() - began

    control.delay(kv_ms=20)
    assert with_client(tikv_cluster, work) >= 0.1
    control.delay(pd_ms=20)
    began = time.monotonic()
    assert with_client(tikv_cluster, lambda client: get(client, b"k")) == b"v"
    assert time.monotonic() - began >= 0.02


def test_nobody_connects_while_pd_is_unavailable(tikv_cluster: Cluster, control: Control) -> None:
    control.fault("pd", "drop_before")
    with pytest.raises(Exception, match="PD cluster failed to respond"):
        asyncio.run(connect(tikv_cluster))
    control.clear_faults()
    assert with_client(tikv_cluster, lambda client: get(client, b"k")) == b"v"


def test_a_region_cached_without_its_leader_fails_for_ever(tikv_cluster: Cluster, control: Control) -> None:
    async def work(client: Any) -> None:
        control.fault("pd", "leaderless")
        for _ in range(2):
            with pytest.raises(Exception, match=r"Leader of region \d+ is not found"):
                await get(client, b"k")
            control.clear_faults()
        assert await get(await connect(tikv_cluster), b"k") == b"v"

    with_client(tikv_cluster, work)


def test_a_safe_point_can_be_refused(tikv_cluster: Cluster, control: Control) -> None:
    before = control.stats()["safe_point"]

    async def work(client: Any) -> None:
        control.fault("update_gc_safe_point", "refuse")
        with pytest.raises(Exception, match="update_gc_safe_point is refused"):
            await client.inner.gc(await client.current_timestamp())

    with_client(tikv_cluster, work)
    assert control.stats()["safe_point"] == before


def test_a_fault_meets_only_the_calls_that_it_names(tikv_cluster: Cluster, control: Control) -> None:
    region = control.region_of(b"k")
    elsewhere = control.fault("get", "server_is_busy", store=3 - region.store)
    third = control.fault("get", "server_is_busy", skip=2, times=1, region=region.id)

    async def work(client: Any) -> None:
        assert await get(client, b"k") == b"v"
        assert await get(client, b"k") == b"v"
        with pytest.raises(Exception, match="server_is_busy"):
            await get(client, b"k")
        assert await get(client, b"k") == b"v"

    with_client(tikv_cluster, work)
    assert (control.hits(elsewhere), control.hits(third)) == (0, 1)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        ("gett", "hang", 'no call "gett"'),
        ("get", "leaderless", 'no fault "leaderless" for kv'),
        ("tso", "not_leader", 'no fault "not_leader" for pd'),
        ("tso", "leaderless", "names no leader"),
        ("physical_scan_lock", "not_leader", "goes to no region"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(control: Control, call: str, kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        control.fault(call, kind)
