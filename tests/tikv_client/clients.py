"""Clients of the test cluster, and short ways to read and write with them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from jfs.tikv import messages, wire
from jfs.tikv.client import Client, Mutation, Op
from tests.tikv.cluster import Cluster

STORE_FAULTS = [
    "drop_before",
    "drop_after",
    "not_leader",
    "epoch_not_match",
    "server_is_busy",
    "stale_command",
    "region_not_found",
]
"""What a store can do to a call, as `Control.fault` names it."""


@asynccontextmanager
async def connected(cluster: Cluster, *, patience_s: float = 20.0) -> AsyncGenerator[Client, None]:
    """A client with nothing in its caches."""
    client = Client([cluster.pd], patience_s=patience_s)
    try:
        yield client
    finally:
        client.close()


def puts(**values: bytes) -> list[Mutation]:
    return [Mutation(Op.PUT, name.encode(), value) for name, value in values.items()]


async def put(client: Client, *mutations: Mutation) -> int:
    """Commit in a transaction of their own; the commit's timestamp."""
    began = trio.current_time()
    return await client.commit(await client.timestamp(), mutations, began=began)


async def value(client: Client, key: bytes) -> bytes | None:
    """As of now."""
    return await client.snapshot(await client.timestamp()).get(key)


async def prewrite(
    client: Client,
    mutations: list[Mutation],
    *,
    ttl_ms: int,
    primary: bytes | None = None,
    secondaries: list[bytes] | None = None,
    start_ts: int = 0,
) -> int:
    """Place the locks of a transaction whose client then says nothing more; its start timestamp.

    With `secondaries` it is an asynchronous commit, which is done when all its locks are there.
    """
    start_ts = start_ts or await client.timestamp()
    primary = primary or mutations[0].key
    backoff = client.cluster.backoff()
    by_key = {each.key: each for each in mutations}
    for region, keys in (await client.cluster.regions.group(by_key, backoff)).items():
        request = messages.prewrite(
            [by_key[key] for key in keys],
            primary,
            start_ts,
            ttl_ms=ttl_ms,
            size=len(mutations),
            min_commit_ts=start_ts + 1,
        )
        if secondaries is not None:
            request += messages.asynchronous(secondaries if primary in keys else [])
        answer = await client.cluster.ask(region, messages.PREWRITE, request, backoff)
        assert answer is not None
        assert not wire.all_of(answer, 2)
    return start_ts


async def commit_key(client: Client, key: bytes, start_ts: int) -> int:
    """Commit one key of a transaction, as its client would."""
    commit_ts = await client.timestamp()
    request = messages.commit([key], start_ts, commit_ts)
    answer = await client.cluster.ask_at(key, messages.COMMIT, request, client.cluster.backoff())
    assert 2 not in answer
    return commit_ts
