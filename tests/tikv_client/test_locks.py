"""Locks that other transactions left: what the client makes of them, and what the other client library does."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import trio

from jfs.errors import Conflict, Unavailable
from jfs.tikv import messages, wire
from jfs.tikv.client import LATEST, Client, Mutation, Op
from jfs.tikv.commit import Commit
from jfs.tikv.messages import Lock, physical
from jfs.tikv.regions import Region
from tests.deadline import eventually_async
from tests.tikv import client as library
from tests.tikv.cluster import Cluster
from tests.tikv_client.clients import commit_key, connected, prewrite, put, puts, value

SHORT_MS = 50
LONG_MS = 60_000


async def read(client: Client, how: str, key: bytes) -> bytes | None:
    if how == "latest":
        return await client.snapshot(LATEST).get(key)
    now = client.snapshot(await client.timestamp())
    if how == "get":
        return await now.get(key)
    if how == "batch_get":
        return (await now.batch_get([key, key + b"-none"])).get(key)
    return dict(await now.scan(key, key + b"\1")).get(key)


async def expire(client: Client) -> None:
    """Return when a lock of SHORT_MS that was there before is of no more use."""
    end = physical(await client.timestamp()) + 2 * SHORT_MS
    await eventually_async(lambda: reached(client, end))


async def reached(client: Client, ms: int) -> bool:
    return physical(await client.timestamp()) > ms


READS = pytest.mark.parametrize("how", ["latest", "get", "batch_get", "scan"])


@READS
async def test_an_expired_lock_is_rolled_back(tikv_cluster: Cluster, how: str) -> None:
    async with connected(tikv_cluster) as client:
        await put(
            client,
            Mutation(Op.PUT, b"exp-a-" + how.encode(), b"old"),
            Mutation(Op.PUT, b"exp-b-" + how.encode(), b"old"),
        )
        await prewrite(
            client, [Mutation(Op.PUT, b"exp-%s-" % x + how.encode(), b"new") for x in (b"a", b"b")], ttl_ms=SHORT_MS
        )
        assert await read(client, how, b"exp-b-" + how.encode()) == b"old"
        assert await read(client, how, b"exp-a-" + how.encode()) == b"old"
        await put(client, Mutation(Op.PUT, b"exp-b-" + how.encode(), b"next"))
        assert await read(client, how, b"exp-b-" + how.encode()) == b"next"


@READS
async def test_a_reader_does_not_wait_for_a_live_lock(tikv_cluster: Cluster, how: str) -> None:
    """It makes the transaction commit later than what is read, and reads the value before it."""
    one, two = b"live-1-" + how.encode(), b"live-2-" + how.encode()
    async with connected(tikv_cluster) as client, connected(tikv_cluster) as owner:
        await put(client, Mutation(Op.PUT, one, b"old"), Mutation(Op.PUT, two, b"old"))
        start = await prewrite(owner, [Mutation(Op.PUT, one, b"new"), Mutation(Op.PUT, two, b"new")], ttl_ms=LONG_MS)
        with trio.fail_after(30):
            assert await read(client, how, two) == b"old"
            assert await read(client, how, one) == b"old"
        await commit_key(owner, one, start)
        assert await read(client, how, two) == b"new"
        assert await read(client, how, one) == b"new"


@READS
async def test_a_lock_whose_transaction_is_committed_gives_its_value(tikv_cluster: Cluster, how: str) -> None:
    one, two = b"done-1-" + how.encode(), b"done-2-" + how.encode()
    async with connected(tikv_cluster) as client:
        start = await prewrite(client, [Mutation(Op.PUT, one, b"new"), Mutation(Op.PUT, two, b"new")], ttl_ms=LONG_MS)
        await commit_key(client, one, start)
        assert await read(client, how, two) == b"new"


async def test_a_writer_waits_for_a_live_lock(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client, connected(tikv_cluster, patience_s=0.3) as hasty:
        await put(client, *puts(held_a=b"old"))
        start = await prewrite(client, puts(held_a=b"first"), ttl_ms=LONG_MS)
        with pytest.raises(Conflict):
            await put(hasty, *puts(held_a=b"second"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, client, *puts(held_b=b"unconcerned"))
            await commit_key(client, b"held_a", start)
        await put(client, *puts(held_a=b"third"))
        assert await value(client, b"held_a") == b"third"


async def test_a_writer_does_not_try_for_ever_where_a_lock_stays(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(tikv_cluster) as owner, connected(tikv_cluster, patience_s=0.3) as client:
        await prewrite(owner, puts(stuck=b"first"), ttl_ms=LONG_MS)
        tries = 0

        async def believe(*_: object) -> bool:
            nonlocal tries
            tries += 1
            assert tries < 1000
            return True

        monkeypatch.setattr(client.locks, "for_writer", believe)
        with pytest.raises(Conflict, match="stays where it is"):
            await put(client, *puts(stuck=b"second"))


@pytest.mark.logs("locks of a transaction stay for others")
async def test_what_goes_wrong_in_the_background_does_not_end_the_program(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tikv_cluster.control.split(b"bg_b")
    async with connected(tikv_cluster) as client:

        async def break_down(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Commit, "_commit_rest", break_down)
        await put(client, *puts(bg_a=b"1", bg_b=b"1"))
        await eventually_async(lambda: "ZeroDivisionError" in caplog.text)
        assert await value(client, b"bg_b") == b"1"


async def test_a_secondary_whose_primary_never_came(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:
        await put(client, *puts(lone_b=b"old"))
        start = await prewrite(client, puts(lone_b=b"new"), primary=b"lone_a", ttl_ms=SHORT_MS)
        assert await value(client, b"lone_b") == b"old"
        # The primary's prewrite comes late: it is refused.
        with pytest.raises(AssertionError):
            await prewrite(client, puts(lone_a=b"new"), ttl_ms=LONG_MS, start_ts=start)


async def test_a_lock_in_the_memory_of_a_store_hides_no_other_key(
    tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TiKV then reads nothing: it gives the lock as the answer's error, and again as the error of a single pair."""
    keys = [b"memory-a", b"memory-b", b"memory-c"]
    async with connected(tikv_cluster) as client:
        await put(client, *[Mutation(Op.PUT, key, b"old") for key in keys])
        await prewrite(client, [Mutation(Op.PUT, keys[0], b"new")], ttl_ms=SHORT_MS)
        ask = client.cluster.ask
        refused: list[bytes] = []

        async def refusing(region: Region, path: str, *args: Any, **named: Any) -> bytes | None:
            answer = await ask(region, path, *args, **named)
            if path == messages.BATCH_GET and not refused and answer is not None:
                refused.extend(messages.pairs(answer)[1])
                return wire.data(2, wire.data(1, refused[0])) + wire.data(5, refused[0])
            return answer

        monkeypatch.setattr(client.cluster, "ask", refusing)
        now = client.snapshot(await client.timestamp())
        assert await now.batch_get(keys) == dict.fromkeys(keys, b"old")
        assert refused


# -- asynchronous commits of a client that died


@pytest.mark.parametrize("split", [False, True])
@READS
async def test_an_asynchronous_commit_that_was_acknowledged_is_kept(
    tikv_cluster: Cluster, how: str, split: bool
) -> None:
    """All locks are there: the transaction is committed, though its client died before it said so."""
    one, two = b"ac-%d-1-" % split + how.encode(), b"ac-%d-2-" % split + how.encode()
    if split:
        tikv_cluster.control.split(two)
    async with connected(tikv_cluster) as client:
        await put(client, Mutation(Op.PUT, one, b"old"), Mutation(Op.PUT, two, b"old"))
        mine = [Mutation(Op.PUT, one, b"new"), Mutation(Op.PUT, two, b"new")]
        await prewrite(client, mine, ttl_ms=SHORT_MS, secondaries=[two])
        assert await read(client, how, two) == b"new"
        assert await read(client, how, one) == b"new"


async def test_an_asynchronous_commit_without_all_of_its_locks_is_undone(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:
        await put(client, *puts(half_a=b"old", half_b=b"old"))
        start = await prewrite(client, puts(half_a=b"new"), ttl_ms=SHORT_MS, secondaries=[b"half_b"])
        assert await value(client, b"half_a") == b"old"
        with pytest.raises(AssertionError):
            await prewrite(
                client, puts(half_b=b"new"), primary=b"half_a", ttl_ms=LONG_MS, start_ts=start, secondaries=[]
            )
        assert await value(client, b"half_b") == b"old"


async def test_a_writer_keeps_an_asynchronous_commit_too(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client:
        await prewrite(client, puts(acw_a=b"new", acw_b=b"new"), ttl_ms=SHORT_MS, secondaries=[b"acw_b"])
        with trio.fail_after(30):
            while True:
                try:
                    await put(client, *puts(acw_b=b"later"))
                except Conflict:
                    continue
                break
        assert await value(client, b"acw_a") == b"new"
        assert await value(client, b"acw_b") == b"later"


async def test_a_resolution_that_was_cut_off_is_made_again(tikv_cluster: Cluster) -> None:
    """Who knows how a transaction ended must not think that its primary lock is gone: a writer would try for ever."""
    async with connected(tikv_cluster, patience_s=0.5) as client:
        start = await prewrite(client, puts(cut_a=b"new", cut_b=b"new"), ttl_ms=SHORT_MS, secondaries=[b"cut_b"])
        await expire(client)
        fault = tikv_cluster.control.fault("resolve_lock", "server_is_busy")
        with pytest.raises(Unavailable):
            await put(client, *puts(cut_b=b"next"))
        tikv_cluster.control.clear_faults(fault)
        met = Lock(b"cut_a", b"cut_a", start, SHORT_MS, 2)
        assert await client.locks.for_writer([met], await client.timestamp(), client.cluster.backoff())
        await prewrite(client, puts(cut_a=b"next"), ttl_ms=SHORT_MS)
        assert await value(client, b"cut_a") == b"new"
        assert await value(client, b"cut_b") == b"new"


async def test_a_live_asynchronous_commit_is_waited_for(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster) as client, connected(tikv_cluster) as owner:
        await put(client, *puts(acl_a=b"old"))
        start = await prewrite(owner, puts(acl_a=b"new"), ttl_ms=LONG_MS, secondaries=[])
        found: list[bytes | None] = []

        async def reader() -> None:
            found.append(await client.snapshot().get(b"acl_a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await commit_key(owner, b"acl_a", start)
        assert found == [b"new"]


# -- before old versions are collected


async def test_the_safe_point_moves_when_no_lock_is_left_behind_it(tmp_path: Path) -> None:
    """Rolled back, committed at the primary, committed asynchronously: each as it was decided, in all regions."""
    with Cluster(splits=[b"gc_b", b"gc_d"]) as cluster:
        async with connected(cluster) as client:
            await prewrite(client, puts(gc_a=b"1", gc_b=b"1"), ttl_ms=SHORT_MS)
            done = await prewrite(client, puts(gc_c=b"2", gc_d=b"2"), ttl_ms=SHORT_MS)
            await commit_key(client, b"gc_c", done)
            await prewrite(client, puts(gc_e=b"3", gc_f=b"3"), ttl_ms=SHORT_MS, secondaries=[b"gc_f"])
            await eventually_async(lambda: cluster.control.stats()["locks"] == 5)
            await expire(client)
            safe = await client.timestamp()
            assert await client.collect(safe) == safe
            assert cluster.control.stats()["locks"] == 0
            assert cluster.control.stats()["safe_point"] == safe
            now = client.snapshot(await client.timestamp())
            assert await now.scan(b"gc_", b"gc`") == [
                (b"gc_c", b"2"),
                (b"gc_d", b"2"),
                (b"gc_e", b"3"),
                (b"gc_f", b"3"),
            ]


async def test_a_store_that_is_away_ends_the_search_for_old_locks(tikv_cluster: Cluster) -> None:
    async with connected(tikv_cluster, patience_s=0.3) as client:
        now = await client.timestamp()
        fault = tikv_cluster.control.fault("scan_lock", "server_is_busy")
        with trio.fail_after(30), pytest.raises(Unavailable):
            await client.locks.clear(now)
        tikv_cluster.control.clear_faults(fault)


async def test_the_safe_point_stays_behind_a_live_transaction() -> None:
    with Cluster() as cluster:
        async with connected(cluster) as client:
            start = await prewrite(client, puts(gc_live=b"1"), ttl_ms=LONG_MS)
            with pytest.raises(Conflict, match="still alive"):
                await client.collect(await client.timestamp())
            assert cluster.control.stats()["safe_point"] == 0
            await commit_key(client, b"gc_live", start)
            assert await client.collect(start) == start


def test_the_other_client_library_undoes_an_acknowledged_asynchronous_commit(tikv_cluster: Cluster) -> None:
    """Why jfs has a client of its own: a reader by that library takes away what the peer has acknowledged."""

    async def die() -> None:
        async with connected(tikv_cluster) as owner:
            await put(owner, *puts(rust_a=b"old", rust_b=b"old"))
            await prewrite(owner, puts(rust_a=b"new", rust_b=b"new"), ttl_ms=SHORT_MS, secondaries=[b"rust_b"])

    async def look(other: Any) -> bytes | None:
        async with asyncio.timeout(100):
            while isinstance(found := await library.outcome(library.get(other, b"rust_a")), Exception):
                assert "resolve lock" in str(found)
        return found

    trio.run(die)
    assert library.with_client(tikv_cluster, look) == b"old"


def test_this_client_keeps_it(tikv_cluster: Cluster) -> None:
    """The same, read by this client first: then the other library sees it too."""

    async def die_and_look() -> bytes | None:
        async with connected(tikv_cluster) as owner:
            await put(owner, *puts(own_a=b"old", own_b=b"old"))
            await prewrite(owner, puts(own_a=b"new", own_b=b"new"), ttl_ms=SHORT_MS, secondaries=[b"own_b"])
        async with connected(tikv_cluster) as reader:
            return await value(reader, b"own_a")

    assert trio.run(die_and_look) == b"new"
    assert library.with_client(tikv_cluster, lambda other: library.get(other, b"own_b")) == b"new"
