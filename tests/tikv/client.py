"""Transactions with the plain client library, for tests of the cluster itself."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from tests.tikv.cluster import Cluster

T = TypeVar("T")


async def connect(cluster: Cluster) -> Any:
    """A client with nothing in its caches."""
    from tikv_client.asynchronous import TransactionClient

    return await TransactionClient.connect([cluster.pd])


def with_client(cluster: Cluster, work: Callable[[Any], Awaitable[T]]) -> T:
    """What `work` returns for a fresh client, on an event loop of its own."""

    async def main() -> T:
        return await work(await connect(cluster))

    return asyncio.run(main())


@asynccontextmanager
async def reading(client: Any) -> AsyncGenerator[Any, None]:
    """A transaction that is rolled back: one that is dropped open makes the library complain."""
    txn = await client.begin(pessimistic=False)
    try:
        yield txn
    finally:
        await txn.rollback()


async def get(client: Any, key: bytes) -> bytes | None:
    """The value of a key now."""
    async with reading(client) as txn:
        value: bytes | None = await txn.get(key)
    return value


async def put(client: Any, *pairs: tuple[bytes, bytes]) -> None:
    """Commit the pairs; what the commit raises is passed on."""
    txn = await client.begin(pessimistic=False)
    for key, value in pairs:
        await txn.put(key, value)
    await txn.commit()


async def outcome(work: Awaitable[Any]) -> Any:
    """What came of it: the result, or the exception."""
    return (await asyncio.gather(work, return_exceptions=True))[0]
