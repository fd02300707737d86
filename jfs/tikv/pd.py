"""The placement driver: which regions and stores there are, what time it is, how old snapshots may be."""

import logging
import ssl
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from jfs.errors import Conflict
from jfs.tikv import messages
from jfs.tikv.backoff import Backoff
from jfs.tikv.channel import Channel
from jfs.tikv.errors import RpcError
from jfs.tikv.messages import Peer, RegionMeta
from jfs.tikv.parallel import Together
from jfs.tikv.timestamps import Timestamps
from jfs.tikv.wire import Message, all_of, data, number, parse

log = logging.getLogger(__name__)

ANSWER_S: Final = 3.0
"""After so long another member is asked."""
TOMBSTONE: Final = 2


class Located(NamedTuple):
    """A region and who leads it, as far as PD knows."""

    region: RegionMeta
    leader: Peer | None


class Pd:
    """PD, by its leader; `endpoints` are HOST:PORT."""

    def __init__(self, endpoints: list[str], context: ssl.SSLContext | None, patience_s: float) -> None:
        self._patience_s = patience_s
        self._endpoints = list(endpoints)
        self._context = context
        self._channels: dict[str, Channel] = {}
        self._leader: Channel | None = None
        self._finding: Together[Channel] = Together()
        self._header = b""
        self._timestamps: Timestamps | None = None
        self.cluster = 0

    async def timestamp(self, backoff: Backoff | None = None) -> int:
        """Later than every timestamp that was handed out before this call.  Unavailable."""
        while True:
            stamps = self._timestamps
            try:
                if stamps is None or stamps.over:
                    stamps = await self._converse()
                return await stamps.next()
            except RpcError as error:
                backoff = backoff or Backoff(self._patience_s)
                if stamps is not None:
                    stamps.close(error)  # it may be with a member that leads no more
                self._lost(error)
                await backoff.pause(error)

    async def _converse(self) -> Timestamps:
        leader = await self._find_leader()
        connection = await leader.connection()
        if self._timestamps is None or self._timestamps.over:
            self._timestamps = Timestamps(connection, self._header)
        return self._timestamps

    async def region_of(self, encoded_key: bytes, backoff: Backoff) -> Located:
        """The region that has a key, which is given as TiKV orders keys.  Unavailable."""
        while True:
            answer = parse(await self._ask("GetRegion", data(2, encoded_key), backoff))
            if 2 in answer:
                leader = messages.peer(answer[3]) if 3 in answer else None
                located = Located(messages.region(answer[2]), leader if leader and leader.id else None)
                if located.leader or located.region.peers:
                    return located
            await backoff.pause("PD knows no region of a key, or nobody who has it")

    async def store_address(self, store: int, backoff: Backoff) -> str:
        """HOST:PORT.  Unavailable, for a store that has left the cluster too."""
        answer = parse(await self._ask("GetStore", number(2, store), backoff))
        found = parse(answer.get(2, b""))
        if found.get(3, 0) == TOMBSTONE or 2 not in found:
            await backoff.pause(f"store {store} has left the cluster")
        return str(found.get(2, b"").decode())

    async def update_gc_safe_point(self, safe_point: int) -> int:
        """Move it forwards; answers with what it is now.  Unavailable, Conflict where PD refuses."""
        answer = await self._ask("UpdateGCSafePoint", number(2, safe_point), Backoff(self._patience_s), refusable=True)
        return int(parse(answer).get(2, 0))

    # -- the members

    async def _ask(self, method: str, request: bytes, backoff: Backoff, *, refusable: bool = False) -> bytes:
        """The answer.  Unavailable; with `refusable` a refusal of PD's is a Conflict and no reason to ask again."""
        while True:
            try:
                leader = await self._find_leader()
                answer = await leader.call(f"/pdpb.PD/{method}", self._header + request)
                why = _refusal(parse(answer))
                if why is None:
                    return answer
                error = RpcError(f"PD: {why}")
                if refusable:
                    raise Conflict(str(error))
            except RpcError as failure:
                error = failure
            self._lost(error)
            await backoff.pause(error)

    def _lost(self, error: RpcError) -> None:
        """The leader may be another one now."""
        log.debug("PD: %s", error)
        self._leader = None

    async def _find_leader(self) -> Channel:
        return self._leader or await self._finding.get(self._known_leader, self._ask_for_leader)

    def _known_leader(self) -> Channel | None:
        return self._leader

    async def _ask_for_leader(self) -> Channel:
        error = RpcError("there is no member of PD to be asked", sent=False)
        for address in list(self._endpoints):
            try:
                return await self._introduced(address)
            except RpcError as failure:
                error = failure
                # Whoever did not answer is asked last the next time.
                self._endpoints.remove(address)
                self._endpoints.append(address)
        raise error

    async def _introduced(self, address: str) -> Channel:
        """The leader, by what one member says."""
        message = await self._channel(address).call("/pdpb.PD/GetMembers", messages.header(self.cluster))
        answer = parse(message)
        why = _refusal(answer)
        if why is not None:
            raise RpcError(f"PD: {why}")
        cluster = parse(answer.get(1, b"")).get(1, 0)
        if self.cluster and cluster != self.cluster:
            raise RpcError(f"{address} is of cluster {cluster}, not of {self.cluster}")
        self.cluster = cluster
        self._header = messages.header(cluster)
        for member in all_of(message, 2):
            for url in messages.member_urls(member):
                if _address(url) not in self._endpoints:
                    self._endpoints.append(_address(url))
        urls = messages.member_urls(answer.get(3, b""))
        if not urls:
            raise RpcError("PD has no leader at present")
        known = [each for each in map(_address, urls) if each in self._endpoints]
        self._leader = self._channel((known or [_address(urls[0])])[0])
        return self._leader

    def _channel(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = Channel(address, self._context, ANSWER_S)
        return channel

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


def _refusal(answer: Message) -> str | None:
    why = parse(answer.get(1, b"")).get(2)
    return None if why is None else str(parse(why).get(2, b"").decode(errors="replace"))


def _address(url: str) -> str:
    return urlsplit(url).netloc or url
