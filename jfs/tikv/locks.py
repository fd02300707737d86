"""Locks of other transactions: whose they are, what became of those, and what a reader or writer may do about it.

A transaction's fate is decided at its primary key.  A lock whose time is over is not simply broken: an asynchronous commit is
committed as soon as all its locks are in place, so all of them are looked at before the transaction is ended one way or the
other.  Everything here is as the other clients of TiKV do it, or they and this one would decide differently.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from jfs.errors import Conflict
from jfs.tikv import messages
from jfs.tikv.backoff import Backoff
from jfs.tikv.cluster import Cluster
from jfs.tikv.messages import LATEST, Action, Lock, Op, physical
from jfs.tikv.wire import all_of, parse

PAGE: Final = 1024
"""Locks asked for at once."""
REMEMBERED: Final = 2048
SMALL: Final = 16
"""Of a transaction with fewer keys only the lock that was met is resolved, of a larger one all in the region."""


class Fate(NamedTuple):
    """What is known of a transaction.  `ttl_ms` is not 0 while it is alive; else it was committed, or rolled back at 0."""

    ttl_ms: int = 0
    commit_ts: int = 0
    action: int = Action.NONE
    primary: Lock | None = None


class Verdict(NamedTuple):
    """For a reader: whose locks it may pass over, whose it may take for committed, and how long to wait for the rest."""

    passed: set[int]
    committed: set[int]
    wait_ms: int


class _NotAsynchronous(Exception):
    """A transaction that began to commit asynchronously has fallen back to two phases."""


class Locks:
    """The locks of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._fates: dict[int, Fate] = {}

    async def for_reader(self, locks: Iterable[Lock], reader_ts: int, backoff: Backoff) -> Verdict:
        """Make way for a read at `reader_ts`.  Unavailable, Refused."""
        passed: set[int] = set()
        committed: set[int] = set()
        wait_ms = 0
        for lock in locks:
            fate = await self._settled(lock, reader_ts, backoff)
            if fate.ttl_ms == 0 and 0 < fate.commit_ts <= reader_ts:
                committed.add(lock.start_ts)
            elif fate.ttl_ms == 0 or fate.action == Action.MIN_COMMIT_PUSHED:
                passed.add(lock.start_ts)
            else:
                wait_ms = max(wait_ms, 1)
        return Verdict(passed, committed, wait_ms)

    async def for_writer(self, locks: Iterable[Lock], start_ts: int, backoff: Backoff) -> bool:
        """Make way for a prewrite; whether all locks are gone.  Unavailable, Refused."""
        gone = True
        for lock in locks:
            fate = await self._settled(lock, start_ts, backoff)
            gone = gone and fate.ttl_ms == 0
        return gone

    async def clear(self, max_ts: int) -> None:
        """End every transaction that began up to `max_ts` and has left locks.  Unavailable, Conflict, Refused.

        Before old versions are collected: a lock whose transaction's end is forgotten would be taken for one that was
        rolled back.
        """
        start = b""
        backoff = self._cluster.backoff()
        while True:
            region = await self._cluster.regions.of(start, backoff)
            request = messages.scan_lock(start, PAGE, max_ts)
            answer = await self._cluster.ask(region, messages.SCAN_LOCK, request, backoff)
            if answer is None:
                continue
            if 2 in (found := parse(answer)):
                raise Conflict(f"locks cannot be listed: {messages.text_of(found[2])}")
            locks = [messages.lock(each) for each in all_of(answer, 3)]
            if not await self.for_writer(locks, 0, backoff):
                raise Conflict("a transaction from before the safe point is still alive")
            backoff = self._cluster.backoff()
            if len(locks) == PAGE:
                start = locks[-1].key
            elif not region.end:
                return
            else:
                start = region.end

    # -- one transaction

    async def _settled(self, lock: Lock, caller_ts: int, backoff: Backoff, *, force_sync: bool = False) -> Fate:
        """What became of the lock's transaction; if it is over, the lock is gone."""
        fate = await self._fate(lock, caller_ts, backoff, force_sync=force_sync)
        if fate.ttl_ms:
            return fate
        if fate.primary is not None and fate.primary.asynchronous and not force_sync:
            try:
                return await self._finish_asynchronous(lock, fate.primary, backoff)
            except _NotAsynchronous:
                return await self._settled(lock, caller_ts, backoff, force_sync=True)
        if lock.op == Op.PESSIMISTIC_LOCK:
            await self._drop_pessimistic(lock, backoff)
        else:
            await self._resolve(lock, fate.commit_ts, backoff)
        return fate

    async def _fate(self, lock: Lock, caller_ts: int, backoff: Backoff, *, force_sync: bool) -> Fate:
        known = self._fates.get(lock.start_ts)
        if known is not None:
            return known
        current_ts = LATEST if lock.ttl_ms == 0 else await self._cluster.pd.timestamp(backoff)
        expired = _expired(lock.start_ts, lock.ttl_ms, current_ts)
        while True:
            request = messages.check_txn_status(
                lock.primary,
                lock.start_ts,
                caller_ts=caller_ts,
                current_ts=current_ts,
                # The primary may be on its way still, while a secondary is there: only time tells.
                roll_back_missing=expired,
                force_sync=force_sync,
                pessimistic=lock.op == Op.PESSIMISTIC_LOCK,
            )
            answer = await self._cluster.ask_at(lock.primary, messages.CHECK_TXN_STATUS, request, backoff)
            if 2 not in answer:
                break
            if 8 not in parse(answer[2]):
                raise Conflict(f"the state of a transaction cannot be found: {messages.text_of(answer[2])}")
            if lock.op == Op.PESSIMISTIC_LOCK:
                return Fate(lock.ttl_ms)
            await backoff.wait_for_others("a lock whose primary lock is missing")
            current_ts = await self._cluster.pd.timestamp(backoff)
            expired = _expired(lock.start_ts, lock.ttl_ms, current_ts)
        primary = messages.lock(answer[6]) if 6 in answer else None
        fate = Fate(answer.get(3, 0), answer.get(4, 0), answer.get(5, 0), primary)
        if primary is not None and primary.asynchronous and not force_sync:
            if _expired(lock.start_ts, fate.ttl_ms, current_ts):
                return fate._replace(ttl_ms=0)
        elif fate.ttl_ms == 0 and (fate.commit_ts or fate.action in _FINAL):
            self._remember(lock.start_ts, fate)
        return fate

    def _remember(self, start_ts: int, fate: Fate) -> None:
        if len(self._fates) >= REMEMBERED:
            del self._fates[next(iter(self._fates))]
        self._fates[start_ts] = fate._replace(primary=None)

    # -- asynchronous commits

    async def _finish_asynchronous(self, lock: Lock, primary: Lock, backoff: Backoff) -> Fate:
        """End a transaction whose owner is gone as its locks have decided it."""
        commit_ts = await self._decided(primary, backoff)
        fate = Fate(commit_ts=commit_ts)
        await self._resolve_keys([*primary.secondaries, lock.primary], lock.start_ts, commit_ts, backoff)
        self._remember(lock.start_ts, fate)  # not before: of a fate that is known, the primary lock is taken to be gone
        return fate

    async def _decided(self, primary: Lock, backoff: Backoff) -> int:
        """The commit timestamp: the largest that one of the locks asks for, or what those that are gone were given; or 0.

        A store that is asked for a lock that never came leaves a mark, so that it cannot come any more.
        """
        commit_ts = primary.min_commit_ts
        gone: set[int] = set()
        keys = list(primary.secondaries)
        while keys:
            later: list[bytes] = []
            for region, mine in (await self._cluster.regions.group(keys, backoff)).items():
                request = messages.check_secondary_locks(mine, primary.start_ts)
                answer = await self._cluster.ask(region, messages.CHECK_SECONDARY_LOCKS, request, backoff)
                if answer is None:
                    later += mine
                    continue
                found, locks = parse(answer), [messages.lock(each) for each in all_of(answer, 3)]
                if 2 in found:
                    raise Conflict(f"the locks of a transaction cannot be found: {messages.text_of(found[2])}")
                if len(locks) < len(mine):
                    gone.add(found.get(4, 0))
                    continue
                if not all(each.asynchronous for each in locks):
                    raise _NotAsynchronous
                commit_ts = max(commit_ts, *(each.min_commit_ts for each in locks))
            keys = later
        if len(gone) > 1:
            raise Conflict(f"a transaction was ended at several times: {sorted(gone)}")
        return gone.pop() if gone else commit_ts

    # -- removing locks

    async def _resolve(self, lock: Lock, commit_ts: int, backoff: Backoff) -> None:
        small = lock.size < SMALL
        if small and lock.key == lock.primary:
            return  # done by whoever looked at the transaction's state
        request = messages.resolve_lock(lock.start_ts, commit_ts, [lock.key] if small else [])
        answer = await self._cluster.ask_at(lock.key, messages.RESOLVE_LOCK, request, backoff)
        _require_resolved(answer.get(2))

    async def _resolve_keys(self, keys: list[bytes], start_ts: int, commit_ts: int, backoff: Backoff) -> None:
        while keys:
            later: list[bytes] = []
            for region, mine in (await self._cluster.regions.group(keys, backoff)).items():
                request = messages.resolve_lock(start_ts, commit_ts, mine)
                answer = await self._cluster.ask(region, messages.RESOLVE_LOCK, request, backoff)
                if answer is None:
                    later += mine
                else:
                    _require_resolved(parse(answer).get(2))
            keys = later

    async def _drop_pessimistic(self, lock: Lock, backoff: Backoff) -> None:
        if lock.key == lock.primary:
            return
        request = messages.pessimistic_rollback(lock.key, lock.start_ts, lock.for_update_ts or LATEST)
        answer = await self._cluster.ask_at(lock.key, messages.PESSIMISTIC_ROLLBACK, request, backoff)
        _require_resolved(answer.get(2))


_FINAL: Final = frozenset({Action.NONE, Action.EXPIRED_ROLLED_BACK, Action.MISSING_ROLLED_BACK})


def _expired(start_ts: int, ttl_ms: int, now: int) -> bool:
    return physical(now) >= physical(start_ts) + ttl_ms


def _require_resolved(error: bytes | None) -> None:
    if error is not None:
        raise Conflict(f"a lock cannot be resolved: {messages.text_of(error)}")


def lock_of(error: bytes) -> Lock:
    """The lock that a KeyError tells of.  Any other error is a Conflict."""
    found = parse(error)
    if 1 not in found:
        raise Conflict(f"the store answers with an error: {messages.text_of(error)}")
    return messages.lock(found[1])
