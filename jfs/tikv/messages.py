"""The messages of TiKV and PD, by the names and field numbers of their protocol (kvrpcpb, pdpb, metapb, errorpb).

Requests to a store are written without their first field, the context: whoever sends them knows the region.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from jfs.tikv.wire import all_of, data, fields, number, packed, parse, repeated, varint

LATEST: Final = (1 << 64) - 1
"""A point get at this timestamp sees the last committed value."""
PHYSICAL_SHIFT: Final = 18
"""A timestamp is unix milliseconds, shifted so far, and a counter."""

GET: Final = "/tikvpb.Tikv/KvGet"
BATCH_GET: Final = "/tikvpb.Tikv/KvBatchGet"
SCAN: Final = "/tikvpb.Tikv/KvScan"
PREWRITE: Final = "/tikvpb.Tikv/KvPrewrite"
COMMIT: Final = "/tikvpb.Tikv/KvCommit"
BATCH_ROLLBACK: Final = "/tikvpb.Tikv/KvBatchRollback"
PESSIMISTIC_ROLLBACK: Final = "/tikvpb.Tikv/KVPessimisticRollback"
CHECK_TXN_STATUS: Final = "/tikvpb.Tikv/KvCheckTxnStatus"
CHECK_SECONDARY_LOCKS: Final = "/tikvpb.Tikv/KvCheckSecondaryLocks"
RESOLVE_LOCK: Final = "/tikvpb.Tikv/KvResolveLock"
SCAN_LOCK: Final = "/tikvpb.Tikv/KvScanLock"


class Op(IntEnum):
    PUT = 0
    DELETE = 1
    LOCK = 2
    PESSIMISTIC_LOCK = 5


class Action(IntEnum):
    """What CheckTxnStatus did."""

    NONE = 0
    EXPIRED_ROLLED_BACK = 1
    MISSING_ROLLED_BACK = 2
    MIN_COMMIT_PUSHED = 3
    EXPIRED_PESSIMISTIC_ROLLED_BACK = 4
    MISSING_DID_NOTHING = 5


class Mutation(NamedTuple):
    op: int
    key: bytes
    value: bytes = b""


class Lock(NamedTuple):
    """A lock that was met; `start_ts` names its transaction, `ttl_ms` counts from there."""

    key: bytes
    primary: bytes
    start_ts: int
    ttl_ms: int
    size: int = 0
    op: int = Op.PUT
    for_update_ts: int = 0
    asynchronous: bool = False
    min_commit_ts: int = 0
    secondaries: tuple[bytes, ...] = ()


def physical(timestamp: int) -> int:
    """Unix milliseconds."""
    return timestamp >> PHYSICAL_SHIFT


# -- to a store


def context(region: int, conf_ver: int, version: int, peer: int, store: int) -> bytes:
    epoch = number(1, conf_ver) + number(2, version)
    return number(1, region) + data(2, epoch) + data(3, number(1, peer) + number(2, store))


def seen_locks(resolved: Iterable[int], committed: Iterable[int]) -> bytes:
    """A part of the context: transactions whose locks are to be passed over, or taken for committed."""
    return packed(13, resolved) + packed(22, committed)


def get(key: bytes, version: int) -> bytes:
    return b"\x12" + varint(len(key)) + key + b"\x18" + varint(version)


def batch_get(keys: Iterable[bytes], version: int) -> bytes:
    return repeated(2, keys) + number(3, version)


def scan(start: bytes, end: bytes, limit: int, version: int) -> bytes:
    return data(2, start) + number(3, limit) + number(4, version) + data(7, end)


def prewrite(
    mutations: Iterable[Mutation], primary: bytes, start_ts: int, *, ttl_ms: int, size: int, min_commit_ts: int
) -> bytes:
    each = (number(1, op) + data(2, key) + (data(3, value) if value else b"") for op, key, value in mutations)
    return (
        repeated(2, each)
        + data(3, primary)
        + number(4, start_ts)
        + number(5, ttl_ms)
        + number(8, size)
        + number(10, min_commit_ts)
    )


ONE_PHASE: Final = number(13, 1)
"""A part of a prewrite: commit at once, if nothing is in the way."""


def asynchronous(secondaries: Iterable[bytes]) -> bytes:
    """A part of a prewrite: with all locks in place the transaction is committed; the primary knows the others."""
    return number(11, 1) + repeated(12, secondaries)


def commit(keys: Iterable[bytes], start_ts: int, commit_ts: int) -> bytes:
    return number(2, start_ts) + repeated(3, keys) + number(4, commit_ts)


def batch_rollback(keys: Iterable[bytes], start_ts: int) -> bytes:
    return number(2, start_ts) + repeated(3, keys)


def pessimistic_rollback(key: bytes, start_ts: int, for_update_ts: int) -> bytes:
    return number(2, start_ts) + number(3, for_update_ts) + data(4, key)


def check_txn_status(
    primary: bytes,
    lock_ts: int,
    *,
    caller_ts: int,
    current_ts: int,
    roll_back_missing: bool,
    force_sync: bool = False,
    pessimistic: bool = False,
) -> bytes:
    return (
        data(2, primary)
        + number(3, lock_ts)
        + number(4, caller_ts)
        + number(5, current_ts)
        + number(6, roll_back_missing)
        + number(7, force_sync)
        + number(8, pessimistic)
    )


def check_secondary_locks(keys: Iterable[bytes], start_ts: int) -> bytes:
    return repeated(2, keys) + number(3, start_ts)


def resolve_lock(start_ts: int, commit_ts: int, keys: Iterable[bytes]) -> bytes:
    """Without keys, all locks of the transaction in the region."""
    return number(2, start_ts) + number(3, commit_ts) + repeated(5, keys)


def scan_lock(start: bytes, limit: int, max_ts: int) -> bytes:
    return number(2, max_ts) + data(3, start) + number(4, limit)


# -- from a store


def lock(message: bytes) -> Lock:
    found = parse(message)
    return Lock(
        found.get(3, b""),
        found.get(1, b""),
        found.get(2, 0),
        found.get(4, 0),
        found.get(5, 0),
        found.get(6, 0),
        found.get(7, 0),
        bool(found.get(8, 0)),
        found.get(9, 0),
        tuple(all_of(message, 10)),
    )


def pairs(answer: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The pairs of an answer, and the KeyErrors of those keys that have no answer yet."""
    good, at = _short_pairs(answer)
    bad: list[bytes] = []
    for each, content in fields(answer[at:] if at else answer):
        if each != _PAIR:
            continue
        pair = parse(content)
        if 1 in pair:
            bad.append(pair[1])
        else:
            good.append((pair.get(2, b""), pair.get(3, b"")))
    return good, bad


def _short_pairs(answer: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
    """The pairs that an answer begins with, as long as they are shorter than 128 bytes and whole, and where they end.

    A listing is thousands of these, which `fields` would take apart at three times the cost.
    """
    found: list[tuple[bytes, bytes]] = []
    at, last = 0, len(answer) - 6
    while at <= last and answer[at] == _PAIR_TAG and answer[at + 2] == _KEY_TAG:
        size = answer[at + 1]
        key = at + 4
        value = key + answer[at + 3] + 2
        stop = at + 2 + size
        if size > 127 or value > stop or stop > last + 6 or answer[value - 2] != _VALUE_TAG:
            break
        if value + answer[value - 1] != stop:
            break
        found.append((answer[key : value - 2], answer[value:stop]))
        at = stop
    return found, at


_PAIR: Final = 2
_PAIR_TAG, _KEY_TAG, _VALUE_TAG = _PAIR << 3 | 2, 2 << 3 | 2, 3 << 3 | 2


# -- to and from PD


def header(cluster: int) -> bytes:
    return data(1, number(1, cluster))


def member_urls(member: bytes) -> list[str]:
    return [url.decode() for url in all_of(member, 4)]


class Peer(NamedTuple):
    id: int
    store: int


class RegionMeta(NamedTuple):
    id: int
    start: bytes
    end: bytes
    conf_ver: int
    version: int
    peers: tuple[Peer, ...]


def peer(message: bytes) -> Peer:
    found = parse(message)
    return Peer(found.get(1, 0), found.get(2, 0))


_LEARNER: Final = 1


def region(message: bytes) -> RegionMeta:
    """A region; its bounds are as PD has them, encoded."""
    found = parse(message)
    epoch = parse(found.get(4, b""))
    voters = [each for each in all_of(message, 5) if parse(each).get(3, 0) != _LEARNER]
    return RegionMeta(
        found.get(1, 0),
        found.get(2, b""),
        found.get(3, b""),
        epoch.get(1, 0),
        epoch.get(2, 0),
        tuple(map(peer, voters)),
    )


def text_of(error: bytes) -> str:
    """What a KeyError or a region error says, for people."""
    words = []
    for field, value in fields(error):
        words.append(f"{field}: {_shown(value)}")
    return "{" + ", ".join(words) + "}"


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    text = value.decode(errors="backslashreplace")
    return text if text.isprintable() else str(value.hex())
