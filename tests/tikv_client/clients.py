"""Clients of the test cluster, and short ways to read and write with them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from jfs.tikv.client import Client, Mutation, Op
from tests.tikv.cluster import Cluster


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
