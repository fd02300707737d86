"""Several parts of one read, fetched together."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVarTuple

import trio

from jfs.errors import StoreError, first_of

Ts = TypeVarTuple("Ts")


async def fetch_together(fetch: Callable[[*Ts], Awaitable[None]], parts: Iterable[tuple[*Ts]]) -> None:
    """Run `fetch` for all parts; the first StoreError ends the others and is raised as it is."""
    try:
        async with trio.open_nursery() as nursery:
            for part in parts:
                nursery.start_soon(fetch, *part)
    except BaseExceptionGroup as group:
        failure = first_of(group, StoreError)
        if failure is None:
            raise
        raise failure from None
