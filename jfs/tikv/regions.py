"""Which region has a key, and which store leads it, as far as this client knows.

A region is a value: what changes makes a new one.  Whatever a store objects to is corrected here, from what it says if it
says something, else by asking PD when the region is wanted again.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from jfs.tikv import messages
from jfs.tikv.backoff import Backoff
from jfs.tikv.errors import Refused
from jfs.tikv.messages import Peer, RegionMeta
from jfs.tikv.pd import Located, Pd
from jfs.tikv.wire import all_of, data, parse

_GROUP: Final = 8


def encode_key(key: bytes) -> bytes:
    """A key as PD orders it: groups of 8 bytes, padded, each followed by 255 less the padding.  Nothing stays nothing."""
    if not key:
        return b""
    out = bytearray()
    for at in range(0, len(key) + 1, _GROUP):
        group = key[at : at + _GROUP]
        padding = _GROUP - len(group)
        out += group + bytes(padding)
        out.append(255 - padding)
    return bytes(out)


def decode_key(encoded: bytes) -> bytes:
    """The key of `encode_key`.  A bound of a region that is no such key is taken as it is."""
    out = bytearray()
    for at in range(0, len(encoded), _GROUP + 1):
        group = encoded[at : at + _GROUP + 1]
        padding = 255 - group[-1]
        if len(group) != _GROUP + 1 or padding > _GROUP:
            return encoded
        out += group[: _GROUP - padding]
        if padding:
            break
    return bytes(out)


class Region:
    """A part of the keys, with the peer that is thought to lead it."""

    __slots__ = ("context", "end", "leader", "meta", "prefix", "start")

    def __init__(self, meta: RegionMeta, leader: Peer) -> None:
        self.meta = meta
        self.leader = leader
        self.start = decode_key(meta.start)
        self.end = decode_key(meta.end)
        self.context = messages.context(meta.id, meta.conf_ver, meta.version, leader.id, leader.store)
        self.prefix = data(1, self.context)
        """The context as the first field of a request."""

    def has(self, key: bytes) -> bool:
        return self.start <= key and (not self.end or key < self.end)


class Regions:
    """The regions that were met."""

    def __init__(self, pd: Pd) -> None:
        self._pd = pd
        self._starts: list[bytes] = []
        self._regions: list[Region] = []
        self._turn = 0

    def known(self, key: bytes) -> Region | None:
        at = bisect_right(self._starts, key) - 1
        if at < 0:
            return None
        region = self._regions[at]
        return region if not region.end or key < region.end else None

    async def of(self, key: bytes, backoff: Backoff) -> Region:
        """The region of a key.  Unavailable."""
        return self.known(key) or self.learn(await self._pd.region_of(encode_key(key), backoff))

    async def group(self, keys: Iterable[bytes], backoff: Backoff) -> dict[Region, list[bytes]]:
        """The keys, by their regions.  Unavailable."""
        groups: dict[Region, list[bytes]] = {}
        mine: list[bytes] | None = None
        start = end = b""
        for key in keys:
            if mine is None or key < start or (end and key >= end):
                region = await self.of(key, backoff)
                mine = groups.setdefault(region, [])
                start, end = region.start, region.end
            mine.append(key)
        return groups

    def learn(self, located: Located) -> Region:
        """Take a region in, in place of all that it overlaps."""
        region = Region(located.region, located.leader or self._guess(located.region))
        first = bisect_left(self._starts, region.start)
        if first and (not self._regions[first - 1].end or self._regions[first - 1].end > region.start):
            first -= 1
        last = len(self._starts) if not region.end else bisect_left(self._starts, region.end)
        self._starts[first:last] = [region.start]
        self._regions[first:last] = [region]
        return region

    def _guess(self, meta: RegionMeta) -> Peer:
        """PD does not know the leader (for a while after a restart): any peer does, or is it."""
        self._turn += 1
        return meta.peers[self._turn % len(meta.peers)]

    def forget(self, region: Region) -> None:
        """It is not what the client thought: PD is to be asked."""
        at = bisect_left(self._starts, region.start)
        if at < len(self._starts) and self._regions[at] is region:
            del self._starts[at], self._regions[at]

    def led_by(self, region: Region, leader: Peer) -> None:
        at = bisect_left(self._starts, region.start)
        if at < len(self._starts) and self._regions[at] is region:
            self._regions[at] = Region(region.meta, leader)

    async def objection(self, region: Region, error: bytes, backoff: Backoff) -> None:
        """A store's region error: note what it tells, and wait if it takes time.  Unavailable, Refused."""
        said = parse(error)
        if _NOT_LEADER in said:
            leader = parse(said[_NOT_LEADER]).get(2)
            if leader is not None and messages.peer(leader).id:
                self.led_by(region, messages.peer(leader))
                await backoff.pause(said_by(error))
                return
        elif _EPOCH_NOT_MATCH in said:
            current = [messages.region(each) for each in all_of(said[_EPOCH_NOT_MATCH], 1)]
            self.forget(region)
            for meta in current:
                same = next((each for each in meta.peers if each.store == region.leader.store), None)
                if meta.peers:
                    self.learn(Located(meta, same))
            await backoff.pause(said_by(error))
            return
        elif _TOO_LARGE in said:
            raise Refused(said_by(error))
        elif _SERVER_IS_BUSY in said:
            wanted_s = parse(said[_SERVER_IS_BUSY]).get(2, 0) / 1000
            await backoff.pause(said_by(error), at_least_s=min(wanted_s, 1.0))
            return
        elif said.keys() & _NOT_READY:
            await backoff.pause(said_by(error))
            return
        self.forget(region)
        await backoff.pause(said_by(error))


_NOT_LEADER, _EPOCH_NOT_MATCH, _SERVER_IS_BUSY, STORE_NOT_MATCH, _TOO_LARGE = 2, 5, 6, 8, 9
_NOT_READY: Final = frozenset({10, 11, 12, 13, 14, 15, 16, 17})
"""The region is where it was, but cannot serve the request yet."""
DECLINED: Final = frozenset({_NOT_LEADER, 4, _EPOCH_NOT_MATCH, _SERVER_IS_BUSY, STORE_NOT_MATCH, _TOO_LARGE, 10, 15})
"""Region errors after which the request was certainly not executed and will not be."""


def said_by(error: bytes) -> str:
    """A region error in words."""
    said = parse(error)
    return f"region error: {said.get(1, b'').decode(errors='replace') or messages.text_of(error)}"
