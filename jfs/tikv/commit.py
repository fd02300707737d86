"""Committing a transaction.

A small one whose keys are all in one region commits in one phase: one request, which the store executes whole or not at all.
Any other takes two: locks on all keys, then the decision at the primary key, then the other locks are removed in the
background (whoever meets one meanwhile finds out at the primary).

What happened is never guessed.  A request of the second kind may be sent again until there is an answer.  Where the answer to
a one-phase commit is lost, the primary key is asked, in a way that keeps a commit which has not happened yet from happening
at all.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from jfs.errors import Conflict, Unavailable
from jfs.tikv import messages
from jfs.tikv.backoff import Backoff
from jfs.tikv.cluster import Cluster, Lost
from jfs.tikv.errors import Refused, Undetermined
from jfs.tikv.locks import Locks, lock_of
from jfs.tikv.messages import LATEST, Lock, Mutation, Op
from jfs.tikv.parallel import in_parallel
from jfs.tikv.regions import Region
from jfs.tikv.wire import all_of, parse

log = logging.getLogger(__name__)

TTL_MS: Final = 3000
LONGEST_TTL_MS: Final = 20000
BATCH_BYTES: Final = 512 << 10
"""A request has no more, if it has more than one key; a transaction that has more takes two phases."""
MIB: Final = 1 << 20
COMMIT_TS_EXPIRED: Final = 7
ABORT: Final = 3
"""The KeyError for all that has no other: refusals, but failures within the store too."""
TOO_LARGE: Final = b"KeyTooLarge"
SETTLE_S: Final = 60.0
"""How long it is tried to find out what became of a commit."""

Part = tuple[Region, list[Mutation]]
Item = TypeVar("Item")


class Commit:
    """One try to commit one transaction."""

    def __init__(
        self, cluster: Cluster, locks: Locks, start_ts: int, mutations: Sequence[Mutation], *, began: float
    ) -> None:
        """`began` is the time on trio's clock when the transaction did.  The mutations have a key once each."""
        self._cluster = cluster
        self._locks = locks
        self._start_ts = start_ts
        self._mutations = mutations
        self._primary = next((each.key for each in mutations if each.op != Op.LOCK), mutations[0].key)
        self._backoff = cluster.backoff()
        size = sum(len(each.key) + len(each.value) for each in mutations)
        elapsed_ms = int((trio.current_time() - began) * 1000)
        self._ttl_ms = _ttl_ms(size) + elapsed_ms
        self._small = size <= BATCH_BYTES
        self._ended: set[Lock] = set()
        """Locks that a prewrite met, and that should be gone."""

    async def run(self) -> int:
        """The commit's timestamp.  Conflict and Unavailable: it did not happen, and will not.  Refused.  Undetermined.

        Not to be cancelled: shield it.
        """
        parts = await self._parts(self._mutations)
        while self._small and len(parts) == 1:
            done = await self._one_phase(parts[0])
            if done is not None:
                return done
            parts = await self._parts(self._mutations)
        return await self._two_phases(parts)

    async def _parts(self, mutations: Sequence[Mutation]) -> list[Part]:
        """By regions, and pieces of a request's size; the primary's first."""
        by_key = {each.key: each for each in mutations}
        parts: list[Part] = []
        for region, keys in (await self._cluster.regions.group(by_key, self._backoff)).items():
            mine = [by_key[key] for key in keys]
            parts += [(region, piece) for piece in _pieces(mine, lambda each: len(each.key) + len(each.value))]
        parts.sort(key=lambda part: all(each.key != self._primary for each in part[1]))
        return parts

    # -- one phase

    async def _one_phase(self, part: Part) -> int | None:
        """The commit's timestamp, or None where the regions have changed."""
        region, mutations = part
        request = self._prewrite(mutations) + messages.ONE_PHASE
        while True:
            try:
                answer = await self._cluster.ask(region, messages.PREWRITE, request, self._backoff, exactly=True)
            except Lost as why:
                return await self._settle(str(why))
            if answer is None:
                return None
            failed = _failure(all_of(answer, 2))
            if failed is not None:
                return await self._settle(failed)
            if await self._obstructed(answer):
                continue
            commit_ts: int = parse(answer).get(4, 0)
            if commit_ts:
                return commit_ts
            # The store could not: it has placed locks instead.
            return await self._decide([part])

    async def _settle(self, why: str) -> int:
        """The commit's timestamp, if it happened; else it will not any more, and is Unavailable."""
        backoff = Backoff(SETTLE_S)
        request = messages.check_txn_status(
            # A lock of this transaction, which may be there, counts as expired at the end of time.
            self._primary,
            self._start_ts,
            caller_ts=0,
            current_ts=LATEST,
            roll_back_missing=True,
        )
        try:
            answer = await self._cluster.ask_at(self._primary, messages.CHECK_TXN_STATUS, request, backoff)
        except Unavailable as error:
            raise Undetermined(f"{why}; and then: {error}") from error
        if 2 in answer or answer.get(3, 0):
            raise Undetermined(f"{why}; and then: {messages.text_of(answer.get(2, b''))}")
        commit_ts: int = answer.get(4, 0)
        log.info("a commit whose answer was lost %s", "has happened" if commit_ts else "has not happened")
        if not commit_ts:
            raise Unavailable(why)
        return commit_ts

    # -- two phases

    async def _two_phases(self, parts: list[Part]) -> int:
        try:
            if len(parts) == 1:
                await self._place(parts[0])
            else:
                await in_parallel([partial(self._place, part) for part in parts])
        except (Conflict, Refused):
            self._in_background(self._roll_back, [each.key for each in self._mutations])
            raise
        return await self._decide(parts)

    async def _place(self, part: Part) -> None:
        """The locks of one request.  As nothing is decided yet, it may be sent as often as need be."""
        region, mutations = part
        request = self._prewrite(mutations)
        while True:
            answer = await self._cluster.ask(region, messages.PREWRITE, request, self._backoff)
            if answer is None:
                parts = await self._parts(mutations)
                if len(parts) == 1:
                    region = parts[0][0]
                    continue
                for each in parts:
                    await self._place(each)
                return
            if not await self._obstructed(answer):
                return

    async def _decide(self, parts: list[Part]) -> int:
        """Commit the primary, whose answer is the transaction's, and the others in the background."""
        try:
            while True:
                commit_ts = await self._cluster.pd.timestamp(self._backoff)
                region = await self._cluster.regions.of(self._primary, self._backoff)
                keys = self._with_primary(region, parts)
                request = messages.commit(keys, self._start_ts, commit_ts)
                answer = await self._cluster.ask(region, messages.COMMIT, request, self._backoff, exactly=True)
                if answer is None:
                    continue
                error = parse(answer).get(2)
                if error is None:
                    self._finish(commit_ts, set(keys))
                    return commit_ts
                failed = _failure([error])
                if failed is not None:
                    raise Lost(failed)
                if COMMIT_TS_EXPIRED not in parse(error):  # else a reader was there: a later time will do
                    raise Conflict(f"a transaction was rolled back by others: {messages.text_of(error)}")
        except Lost as why:
            commit_ts = await self._settle(str(why))
            self._finish(commit_ts, set())
            return commit_ts
        except Conflict:
            self._in_background(self._roll_back, [each.key for each in self._mutations])
            raise

    def _finish(self, commit_ts: int, done: set[bytes]) -> None:
        """The decision is made: remove the locks of the keys that are not done."""
        rest = [each.key for each in self._mutations if each.key not in done]
        if rest:
            self._in_background(partial(self._commit_rest, commit_ts), rest)

    def _with_primary(self, region: Region, parts: list[Part]) -> list[bytes]:
        """The keys that are committed together with the primary: those that were sent with it, if they still are there."""
        keys = [each.key for each in parts[0][1] if region.has(each.key)]
        return keys if self._primary in keys else [self._primary]

    async def _commit_rest(self, commit_ts: int, keys: list[bytes]) -> None:
        await self._everywhere(keys, messages.COMMIT, lambda mine: messages.commit(mine, self._start_ts, commit_ts))

    async def _roll_back(self, keys: list[bytes]) -> None:
        await self._everywhere(
            keys, messages.BATCH_ROLLBACK, lambda mine: messages.batch_rollback(mine, self._start_ts)
        )

    # -- what both need

    def _prewrite(self, mutations: Sequence[Mutation]) -> bytes:
        # Of a commit in one phase the store takes the earliest time after the start and after every snapshot that it has
        # served: what a reader has seen stays as it was.  PD is not asked for a later one: an operation of jfs asks
        # for its start timestamp after the call that it serves began, so all that was over before that is earlier anyway.
        return messages.prewrite(
            mutations,
            self._primary,
            self._start_ts,
            ttl_ms=self._ttl_ms,
            size=len(self._mutations),
            min_commit_ts=self._start_ts + 1,
        )

    async def _obstructed(self, answer: bytes) -> bool:
        """Whether a prewrite met locks and is to be sent again.  Conflict, Refused."""
        errors = all_of(answer, 2)
        if not errors:
            return False
        locks = []
        for error in errors:
            said = parse(error)
            if TOO_LARGE in said.get(ABORT, b""):
                raise Refused(said[ABORT].decode(errors="replace"))
            if 4 in said:
                raise Conflict(f"another transaction was faster: {messages.text_of(said[4])}")
            lock = lock_of(error)
            if lock.start_ts > self._start_ts:
                raise Conflict("a later transaction has locked a key")
            locks.append(lock)
        if not await self._locks.for_writer(locks, self._start_ts, self._backoff):
            await self._backoff.wait_for_others("a transaction under way holds a lock")
        elif not self._ended.isdisjoint(locks):
            await self._backoff.wait_for_others("a lock of a transaction that has ended stays where it is")
        self._ended.update(locks)
        return True

    async def _everywhere(self, keys: list[bytes], path: str, request_of: Callable[[list[bytes]], bytes]) -> None:
        """Send a request about some keys to all of their regions."""
        backoff = self._cluster.backoff()
        while keys:
            later: list[bytes] = []
            for region, mine in (await self._cluster.regions.group(keys, backoff)).items():
                for piece in _pieces(mine, len):
                    answer = await self._cluster.ask(region, path, request_of(piece), backoff)
                    if answer is None:
                        later += piece
                    elif 2 in parse(answer):
                        log.debug("the end of a transaction: %s", messages.text_of(parse(answer)[2]))
            keys = later

    def _in_background(self, work: Callable[[list[bytes]], Awaitable[None]], keys: list[bytes]) -> None:
        self._cluster.background(partial(_tidy, partial(work, keys)))


def _pieces(items: Sequence[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """What one request takes of them at a time."""
    piece: list[Item] = []
    size = 0
    for each in items:
        more = size_of(each)
        if piece and size + more > BATCH_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(each)
        size += more
    if piece:
        yield piece


async def _tidy(work: Callable[[], Awaitable[None]]) -> None:
    """What is left undone is done by whoever meets the locks."""
    try:
        await work()
    except (Conflict, Refused) as error:
        log.debug("locks of a transaction stay for others: %s", error)
    except Exception:  # nobody waits for this: raised, it would end the program's event loop
        log.exception("locks of a transaction stay for others")


def _failure(errors: Sequence[bytes]) -> str | None:
    """What went wrong within the store, which says nothing of what became of the request."""
    for error in errors:
        why = parse(error).get(ABORT)
        if why is not None and TOO_LARGE not in why:
            return f"the store failed: {why.decode(errors='replace')}"
    return None


def _ttl_ms(size: int) -> int:
    """How long locks hold from the transaction's start: what other clients of TiKV use."""
    if size < BATCH_BYTES // 2:
        return TTL_MS
    return max(TTL_MS, min(LONGEST_TTL_MS, int(6000 * math.sqrt(size / MIB))))
