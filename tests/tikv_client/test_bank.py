"""Money that moves between accounts while everything goes wrong: none is lost, none is made, and the books are right."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from jfs.errors import Conflict
from jfs.tikv.client import Client, Mutation, Op
from tests.deadline import eventually_async
from tests.tikv import client as library
from tests.tikv.cluster import Cluster
from tests.tikv.test_transactions import transfer as transfer_by_the_library
from tests.tikv_client.clients import STORE_FAULTS, connected, put

ACCOUNTS = [b"account/%d" % n for n in range(8)]
START = 1000
TOTAL = START * len(ACCOUNTS)

Transfer = tuple[bytes, bytes, int]


async def transfer(client: Client, rng: random.Random) -> Transfer:
    """One transfer, once it is committed."""
    source, target = rng.sample(ACCOUNTS, 2)
    amount = rng.randint(1, 50)
    began = trio.current_time()
    start = await client.timestamp()
    found = await client.snapshot(start).batch_get([source, target])
    changes = [
        Mutation(Op.PUT, source, b"%d" % (int(found[source]) - amount)),
        Mutation(Op.PUT, target, b"%d" % (int(found[target]) + amount)),
    ]
    await client.commit(start, changes, began=began)
    return source, target, amount


async def teller(cluster: Cluster, number: int, ledger: list[Transfer]) -> None:
    rng = random.Random(number)
    async with connected(cluster) as client:
        while True:
            try:
                ledger.append(await transfer(client, rng))
            except Conflict:
                continue


async def balances(client: Client) -> dict[bytes, int]:
    pairs = await client.snapshot(await client.timestamp()).scan(b"account/", b"account0")
    return {key: int(amount) for key, amount in pairs}


def booked(ledgers: list[list[Transfer]]) -> dict[bytes, int]:
    found = dict.fromkeys(ACCOUNTS, START)
    for ledger in ledgers:
        for source, target, amount in ledger:
            found[source] -= amount
            found[target] += amount
    return found


async def more(done: list[Callable[[], int]]) -> None:
    """Return once each teller did three transfers more."""
    wanted = [each() + 3 for each in done]
    await eventually_async(
        lambda: all(each() >= least for each, least in zip(done, wanted, strict=True)), timeout=60.0, what="transfers"
    )


async def storm(cluster: Cluster, client: Client, done: list[Callable[[], int]]) -> None:
    """All kinds of faults, splits and moves, one after the other, while the tellers work."""
    control = cluster.control
    for turn, kind in enumerate([*STORE_FAULTS, "hang_after"]):
        for call in ("prewrite", "commit", "kv", "check_txn_status"):
            control.fault(call, kind, skip=turn, times=5, delay_ms=20 if kind == "hang_after" else 0)
        control.split(ACCOUNTS[turn] + b"\0")
        region = control.region_of(ACCOUNTS[turn])
        control.transfer(region.id, 3 - region.store)
        await more(done)
        control.clear_faults()
        assert sum((await balances(client)).values()) == TOTAL


async def test_the_books_are_right(tmp_path: Path) -> None:
    """What each teller was told of its transfers is what the accounts say, to the unit."""
    ledgers: list[list[Transfer]] = [[] for _ in range(6)]
    done = [ledger.__len__ for ledger in ledgers]
    with Cluster(data=tmp_path / "data", splits=[ACCOUNTS[2], ACCOUNTS[5]]) as cluster:
        async with connected(cluster) as client:
            await put(client, *[Mutation(Op.PUT, key, b"%d" % START) for key in ACCOUNTS])
            async with trio.open_nursery() as nursery:
                for number, ledger in enumerate(ledgers):
                    nursery.start_soon(teller, cluster, number, ledger)
                await storm(cluster, client, done)
                for _ in range(3):
                    cluster.restart()
                    await more(done)
                    assert sum((await balances(client)).values()) == TOTAL
                nursery.cancel_scope.cancel()
            assert await balances(client) == booked(ledgers)


class Others:
    """Tellers with the other client library, in a thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.closing = False
        self.done = 0

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(2):
                tasks.create_task(self._teller(random.Random(100 + number)))

    async def _teller(self, rng: random.Random) -> None:
        client: Any = await library.connect(self._cluster)
        while not self.closing:
            if await library.outcome(transfer_by_the_library(client, rng)) is None:
                self.done += 1


async def test_the_total_stays_among_different_clients(tmp_path: Path) -> None:
    """The other library works on the same accounts; its lost commits stay unknown, but never by halves."""
    ledgers: list[list[Transfer]] = [[] for _ in range(3)]
    done: list[Callable[[], int]] = [ledger.__len__ for ledger in ledgers]
    with Cluster(splits=[ACCOUNTS[2], ACCOUNTS[5]]) as cluster:
        others = Others(cluster)
        async with connected(cluster) as client:
            await put(client, *[Mutation(Op.PUT, key, b"%d" % START) for key in ACCOUNTS])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, others.work)
                try:
                    async with trio.open_nursery() as tellers:
                        for number, ledger in enumerate(ledgers):
                            tellers.start_soon(teller, cluster, number, ledger)
                        await storm(cluster, client, [*done, lambda: others.done])
                        tellers.cancel_scope.cancel()
                finally:
                    others.closing = True
            assert sum((await balances(client)).values()) == TOTAL
