"""The TiKV client of jfs against the library `tikv-client`, call by call, on the tests' cluster: `python -m bench.tikv_clients`.

Wall time and this process's processor time per operation, in microseconds; the best of some rounds, which take turns.
"""

import os
import time
from collections.abc import Awaitable, Callable

import trio

from bench.rust_calls import Call
from jfs.tikv.client import LATEST, Client, Mutation, Op
from tests.tikv.cluster import Cluster

ROUNDS, TIMES = 5, 400
KEYS = [b"bench/%03d" % n for n in range(100)]
VALUE = bytes(80)

Work = Callable[[], Awaitable[object]]


async def rust(function: Callable[..., object], *args: object) -> object:
    call = Call()
    call.start(function, *args)
    return await call.wait()


def ours(client: Client) -> dict[str, Work]:
    async def latest() -> object:
        return await client.snapshot(LATEST).get(KEYS[0])

    async def stamped() -> object:
        return await client.snapshot(await client.timestamp()).get(KEYS[0])

    async def many() -> object:
        return await client.snapshot(await client.timestamp()).batch_get(KEYS)

    async def create() -> object:
        began = trio.current_time()
        start = await client.timestamp()
        await client.snapshot(start).batch_get(KEYS[:3])
        writes = [Mutation(Op.PUT, key, VALUE) for key in KEYS[:4]]
        return await client.commit(start, [*writes, Mutation(Op.LOCK, KEYS[5])], began=began)

    return {
        "timestamp": client.timestamp,
        "get latest": latest,
        "TSO + get": stamped,
        "TSO + batch_get 100": many,
        "create": create,
    }


def theirs(library: object) -> dict[str, Work]:
    begin, now, snapshot = library.begin, library.current_timestamp, library.snapshot  # type: ignore[attr-defined]

    async def stamped() -> object:
        return await rust(snapshot(await rust(now), False).get, KEYS[0])

    async def many() -> object:
        return await rust(snapshot(await rust(now), False).batch_get, KEYS)

    async def create() -> object:
        txn = await rust(begin, False)
        await rust(txn.batch_get, KEYS[:3])  # type: ignore[attr-defined]
        # Sent at once and awaited after: the library keeps them in order.
        calls = [Call() for _ in range(5)]
        for call, key in zip(calls[:4], KEYS, strict=False):
            call.start(txn.put, key, VALUE)  # type: ignore[attr-defined]
        calls[4].start(txn.lock_keys, [KEYS[5]])  # type: ignore[attr-defined]
        for call in calls:
            await call.wait()
        return await rust(txn.commit)  # type: ignore[attr-defined]

    return {"timestamp": lambda: rust(now), "TSO + get": stamped, "TSO + batch_get 100": many, "create": create}


async def cost(work: Work) -> tuple[float, float]:
    await work()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(TIMES):
        await work()
    return (time.perf_counter() - wall) / TIMES * 1e6, (time.process_time() - cpu) / TIMES * 1e6


async def main(cluster: Cluster) -> None:
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    from tikv_client import tikv_client

    client = Client([cluster.pd])
    began = trio.current_time()
    await client.commit(await client.timestamp(), [Mutation(Op.PUT, key, VALUE) for key in KEYS], began=began)
    library = await rust(tikv_client.TransactionClient.connect, [cluster.pd], 2.0)
    sides = {"jfs": ours(client), "tikv-client": theirs(library)}
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for side, works in sides.items():
            for name, work in works.items():
                spent = await cost(work)
                known = best.get((name, side), spent)
                best[name, side] = (min(known[0], spent[0]), min(known[1], spent[1]))
    client.close()
    print(f"{'':22}{'jfs: wall':>12}{'cpu':>8}{'tikv-client: wall':>20}{'cpu':>8}")
    for name in sides["jfs"]:
        numbers = [best.get((name, side), (float("nan"), float("nan"))) for side in sides]
        print(f"{name:22}{numbers[0][0]:12.0f}{numbers[0][1]:8.0f}{numbers[1][0]:20.0f}{numbers[1][1]:8.0f}")


if __name__ == "__main__":
    with Cluster() as running:
        trio.run(main, running)
