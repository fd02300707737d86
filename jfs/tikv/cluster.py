"""A cluster as one client sees it: PD, the regions, the stores, and requests that find their way to them."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from jfs.tikv.backoff import Backoff
from jfs.tikv.channel import Channel
from jfs.tikv.errors import RpcError
from jfs.tikv.pd import Pd
from jfs.tikv.regions import DECLINED, STORE_NOT_MATCH, Region, Regions
from jfs.tikv.wire import Message, data, parse

ANSWER_S: Final = 5.0
"""After so long a store is taken to be away."""
REGION_ERROR: Final = 1
"""The field of every store's answer."""


class Lost(Exception):
    """The request may have been executed or not, now or later."""


class Cluster:
    """Made within a trio run; `close` ends its connections."""

    def __init__(self, endpoints: list[str], context: ssl.SSLContext | None, patience_s: float) -> None:
        self._patience_s = patience_s
        self._context = context
        self._stores: dict[int, Channel] = {}
        self._retired: list[Channel] = []
        self._scopes: set[trio.CancelScope] = set()
        self.pd = Pd(endpoints, context, patience_s)
        self.regions = Regions(self.pd)

    def backoff(self) -> Backoff:
        """For the tries of one call."""
        return Backoff(self._patience_s)

    async def ask(
        self, region: Region, path: str, request: bytes, backoff: Backoff, *, seen: bytes = b"", exactly: bool = False
    ) -> bytes | None:
        """The answer of a region's leader, without a region error; None when the caller has to look for the region again.

        With `exactly`, a request of which it is not known whether it was executed is Lost instead.  `seen` is added to
        the context.  Unavailable, Refused, Lost.
        """
        prefix = region.prefix if not seen else data(1, region.context + seen)
        store = region.leader.store
        channel = self._stores.get(store) or await self._store(store, backoff)
        try:
            answer = await channel.call(path, prefix + request)
        except RpcError as error:
            self.regions.forget(region)
            if not error.sent:
                self._drop_store(store, channel)  # it may have moved to another address
            elif exactly:
                raise Lost(str(error)) from error
            await backoff.pause(error)
            return None
        # Servers write fields in the order of their numbers: an objection comes first.
        if not answer or answer[0] != _REGION_ERROR_TAG:
            return answer
        objection = parse(answer)[REGION_ERROR]
        if exactly and not parse(objection).keys() & DECLINED:
            self.regions.forget(region)
            raise Lost("the region error leaves open what became of the request")
        if STORE_NOT_MATCH in parse(objection):
            self._drop_store(store, channel)
        await self.regions.objection(region, objection, backoff)
        return None

    async def ask_at(self, key: bytes, path: str, request: bytes, backoff: Backoff) -> Message:
        """The answer to a request about one key, which may be sent again.  Unavailable, Refused."""
        while True:
            region = await self.regions.of(key, backoff)
            answer = await self.ask(region, path, request, backoff)
            if answer is not None:
                return parse(answer)

    async def _store(self, store: int, backoff: Backoff) -> Channel:
        address = await self.pd.store_address(store, backoff)
        channel = self._stores.get(store)
        if channel is None:
            channel = self._stores[store] = Channel(address, self._context, ANSWER_S)
        return channel

    def _drop_store(self, store: int, channel: Channel) -> None:
        """Ask PD for the address again.  What is under way on the old connection comes to its end."""
        if self._stores.get(store) is channel:
            del self._stores[store]
            channel.retire()
            self._retired = [each for each in self._retired if each.connected]
            self._retired.append(channel)

    def background(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something that nobody waits for and that raises nothing; closing ends it."""
        trio.lowlevel.spawn_system_task(self._run_in_background, work)

    async def _run_in_background(self, work: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await work()
            finally:
                self._scopes.discard(scope)

    def close(self) -> None:
        for scope in self._scopes:
            scope.cancel()
        for channel in (*self._stores.values(), *self._retired):
            channel.close()
        self._stores.clear()
        self.pd.close()


_REGION_ERROR_TAG: Final = REGION_ERROR << 3 | 2
