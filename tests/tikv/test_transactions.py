"""That transactions on the test cluster are transactions, whatever happens to regions, answers and the server."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import eventually
from tests.tikv.client import connect, get, outcome, put, reading, with_client
from tests.tikv.cluster import Cluster

ACCOUNTS = [b"account/%d" % n for n in range(8)]
START = 1000
LOST = "gRPC api error"


async def transfer(client: Any, rng: random.Random) -> None:
    """Move something between two accounts, in one transaction; what goes wrong is raised."""
    source, target = rng.sample(ACCOUNTS, 2)
    amount = rng.randint(1, 50)
    txn = await client.begin(pessimistic=False)
    try:
        await txn.put(source, b"%d" % (int(await txn.get(source)) - amount))
        await txn.put(target, b"%d" % (int(await txn.get(target)) + amount))
    except BaseException:
        await outcome(txn.rollback())
        raise
    try:
        await txn.commit()
    except Exception as error:
        # Where the answer is lost it may be committed: a rollback would take away the half that is not yet finished.
        if LOST not in str(error):
            await outcome(txn.rollback())
        raise


async def total(client: Any) -> int:
    """All the money there is, in one snapshot."""
    async with reading(client) as txn:
        pairs = await txn.scan(ACCOUNTS[0], b"account0", limit=len(ACCOUNTS))
    assert len(pairs) == len(ACCOUNTS)
    return sum(int(value) for _, value in pairs)


@asynccontextmanager
async def transfers(cluster: Cluster, tellers: int = 6) -> AsyncGenerator[list[int], None]:
    """Tellers at work, each with a client of its own; yields how many transfers each has done."""
    done = [0] * tellers
    closing = asyncio.Event()

    async def teller(number: int) -> None:
        client, rng = await connect(cluster), random.Random(number)
        while not closing.is_set():
            if await outcome(transfer(client, rng)) is None:
                done[number] += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(tellers):
            tasks.create_task(teller(number))
        yield done
        closing.set()


async def more(done: list[int]) -> None:
    """Return once every teller did three transfers more."""
    wanted = [each + 3 for each in done]
    async with asyncio.timeout(100):
        while any(each < least for each, least in zip(done, wanted, strict=True)):
            await asyncio.sleep(0.01)


async def settled_total(client: Any) -> int:
    """The total, once the locks of failed commits are resolved."""
    async with asyncio.timeout(100):
        while isinstance(found := await outcome(total(client)), Exception):
            assert "resolve lock" in str(found) or "Unavailable" in str(found) or "channel" in str(found), found
    return int(found)


def test_the_total_stays_while_regions_split_and_move_and_answers_get_lost(tmp_path: Path) -> None:
    async def work(cluster: Cluster) -> None:
        client = await connect(cluster)
        await put(client, *[(key, b"%d" % START) for key in ACCOUNTS])
        control = cluster.control
        async with transfers(cluster) as done:
            await more(done)
            control.split(ACCOUNTS[3])
            await more(done)
            control.transfer(control.region_of(ACCOUNTS[3]).id, 3 - control.region_of(ACCOUNTS[3]).store)
            for call, kind in [("commit", "drop_after"), ("prewrite", "drop_after"), ("kv", "not_leader")]:
                control.fault(call, kind, skip=5, times=20)
                await more(done)
                assert await settled_total(client) == START * len(ACCOUNTS)
            cluster.restart()
            await more(done)
        assert await settled_total(client) == START * len(ACCOUNTS)

    with Cluster(data=tmp_path / "data", splits=[ACCOUNTS[2], ACCOUNTS[5]]) as cluster:
        asyncio.run(work(cluster))


def test_two_writers_that_wait_for_each_other_are_told(tikv_cluster: Cluster) -> None:
    async def work(client: Any) -> None:
        await put(client, (b"deadlock/a", b"0"), (b"deadlock/b", b"0"))
        one, two = await client.begin(pessimistic=True), await client.begin(pessimistic=True)
        await one.get_for_update(b"deadlock/a")
        await two.get_for_update(b"deadlock/b")
        tikv_cluster.control.reset_counters()
        waiting = asyncio.ensure_future(one.get_for_update(b"deadlock/b"))
        await asyncio.to_thread(eventually, lambda: tikv_cluster.control.stats()["waiting"] == 1)
        with pytest.raises(Exception, match=r"deadlock: Some\("):
            await two.get_for_update(b"deadlock/a")
        await two.rollback()
        await outcome(waiting)
        await one.rollback()
        assert await get(client, b"deadlock/a") == b"0"

    with_client(tikv_cluster, work)


def test_only_one_of_many_inserts_wins(tikv_cluster: Cluster) -> None:
    async def insert(client: Any, value: bytes) -> None:
        txn = await client.begin(pessimistic=False)
        try:
            await txn.insert(b"inserted", value)
            await txn.commit()
        except BaseException:
            await txn.rollback()
            raise

    async def work(client: Any) -> None:
        results = await asyncio.gather(*[outcome(insert(client, b"%d" % n)) for n in range(10)])
        winners = [n for n, result in enumerate(results) if result is None]
        assert len(winners) == 1, results
        assert await get(client, b"inserted") == b"%d" % winners[0]
        with pytest.raises(Exception, match=r"already_exist: Some\("):
            await insert(client, b"late")

    with_client(tikv_cluster, work)
