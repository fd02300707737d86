"""The engine on TiKV: optimistic transactions of the `tikv-client` library.

Strategy: writes and guards stay in Python until commit and go out together; a guard is a lock-only mutation.  What one
transaction reads, it reads once.  Every transaction asks the cluster for a timestamp first: the library cannot ask a store
for "the latest", and a timestamp from the future would be taken at its word, to the harm of all later commits.

An answer that is lost leaves open whether a commit happened.  Each commit therefore writes a marker, a key of this client
with a value that no other commit has, and where the library reports a failure that is no conflict, reading the marker
settles it.  Such a transaction is not rolled back: that could undo the part of a commit which is still on its way.
"""

import itertools
import logging
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from errno import EIO
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qsl

import trio

from jfs import units
from jfs.errors import Conflict, FsError, Unavailable, UserError
from jfs.meta.kv.rust_calls import Call, Sequel
from jfs.meta.kv.transaction import KvTransaction

log = logging.getLogger(__name__)

PREFIX_END: Final = b"\xfd"
DEFAULT_PORT: Final = 2379
ANSWER_S: Final = 9.0
"""How long the placement driver may take to answer; its client library would wait for ever."""
STORE_TIMEOUT_S: Final = 2.0
"""The library's time-out of one request to a store; it makes about eleven tries."""
SETTLE_S: Final = 60.0
"""How long the outcome of a commit is asked for; the locks of a lost one hold for up to 20 s."""
SETTLE_PAUSE_S: Final = 0.2
PAGE: Final = 4096
"""Keys asked for in one request.  An answer may have 4 MiB: where it would have more, a fraction is asked for."""
FRACTION: Final = 8
"""Large, because the library tries a request in vain for 1.5 s before it says that the answer is too long."""
MARKER: Final = b"J"
"""First letter of the markers' keys, which is none of the format's."""
MARKER_AGE_S: Final = 24 * 3600
LEAST_GC_INTERVAL_S: Final = 3600.0

_SLOT: Final = struct.Struct(">8sH")
_MARK: Final = struct.Struct(">qq")
_PHYSICAL_SHIFT: Final = 18

_CONFLICTS: Final = ("WriteConflict", "conflict: Some(", "deadlock: Some(")
_LOCKED: Final = ("Failed to resolve lock", "ResolveLockError", "TxnLockNotFound", "TxnNotFound")
_REFUSED: Final = ("KeyTooLarge", "raft entry is too large")
_SURE: Final = _CONFLICTS + _REFUSED
"""Failures of a commit that certainly did not happen."""
_TOO_LONG: Final = "message length too large"
_NO_LEADER: Final = "Leader of region"
_TLS: Final = ("ca", "cert", "key", "verify-cn")

Pair = tuple[bytes, bytes]


class TooLong(Exception):
    """An answer would not fit into one message: less is to be asked for."""


def open_tikv(rest: str) -> "TikvEngine":
    """From a meta URL without its scheme: `HOST:PORT,HOST:PORT/PREFIX?gc-interval=3h`.  UserError."""
    address, _, query = rest.partition("?")
    hosts, _, prefix = address.partition("/")
    endpoints = [_endpoint(host) for host in hosts.split(",") if host]
    if not endpoints:
        raise UserError("a tikv URL names its placement drivers: tikv://HOST:2379,HOST:2379/PREFIX")
    gc_interval_s = 3 * 3600.0
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _TLS:
            raise UserError(f"parameter {name} of the meta URL: its client library has no TLS, so tikv:// has none yet")
        if name != "gc-interval":
            raise UserError(f"unknown parameter {name} of a tikv URL; there is gc-interval")
        try:
            gc_interval_s = units.parse_duration(value)
        except ValueError as error:
            raise UserError(f"gc-interval={value}: {error}") from None
    return TikvEngine(endpoints, prefix.strip("/").encode() + PREFIX_END, gc_interval_s)


def _endpoint(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        return f"{host}:{DEFAULT_PORT}"
    if not name or not port.isdigit():
        raise UserError(f"{host} is no address of a placement driver: HOST:PORT is wanted")
    return host


def _library() -> Any:
    """The client library's compiled part, whose connect takes a time-out.  UserError where there is none."""
    # One thread for its runtime: what it does between two waits is too little to hand from one thread to another.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    try:
        from tikv_client import tikv_client
    except ImportError as error:
        raise UserError(
            "tikv:// needs the package tikv-client, which exists for Linux on x86-64 only "
            f"(pip install tikv-client; best with Python 3.11): {error}"
        ) from None
    return tikv_client


class Link:
    """A client of the library, for one event loop, and how its calls fail."""

    def __init__(self, client: Any, engine: "TikvEngine") -> None:
        self.client = client
        self.token = trio.lowlevel.current_trio_token()
        self.broken = False
        self._engine = engine

    async def ask(self, function: Callable[..., object], *args: object) -> Any:
        """One call.  Raises Conflict, Unavailable, TooLong, FsError."""
        call = Call()
        call.start(function, *args)
        try:
            answer = await call.wait()
        except Exception as error:
            raise self.failure(error) from error
        self._engine.answered()
        return answer

    async def begin(self) -> Any:
        """A transaction of the library.  One that comes when nobody waits any more is ended, or it would complain."""
        call = Call(on_orphan=end)
        call.start(self.client.begin, False)
        return await self._in_time(call)

    async def now(self) -> int:
        """The cluster's time."""
        call = Call()
        call.start(self.client.current_timestamp)
        return int(await self._in_time(call))

    async def _in_time(self, call: Call) -> Any:
        with trio.move_on_after(ANSWER_S):
            try:
                return await call.wait()
            except Exception as error:
                raise self.failure(error) from error
        raise self.failure(Exception(f"the placement driver does not answer within {ANSWER_S:g} s"))

    def failure(self, error: Exception) -> Exception:
        """What an error of the library means; all that it gives is text."""
        text = str(error)
        if any(word in text for word in _CONFLICTS):
            return Conflict(_shortened(text))
        if any(word in text for word in _LOCKED):
            return Conflict(f"a lock is in the way: {_shortened(text)}")
        if _TOO_LONG in text:
            return TooLong(text)
        if any(word in text for word in _REFUSED):
            log.error("TiKV refuses the transaction: %s", _shortened(text))
            return FsError(EIO)
        if isinstance(error, TypeError):
            return error
        # A region that the client got to know without a leader stays so for it: only a new client finds the leader.
        if _NO_LEADER in text or type(error) is not Exception:
            self.broken = True
        self._engine.failed(text)
        return Unavailable(_shortened(text))


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def end(transaction: Any) -> None:
    """Roll back without waiting: every transaction of the library that was not committed has to be."""
    Call().start(transaction.rollback)


class TikvKeys:
    """One transaction's view of the keys."""

    __slots__ = ("_guards", "_link", "_prefix", "_reader", "_seen", "_write", "_writes")

    def __init__(self, link: Link, prefix: bytes, reader: Any, *, write: bool) -> None:
        self._link = link
        self._prefix = prefix
        self._reader = reader
        self._write = write
        self._writes: dict[bytes, bytes | None] = {}
        self._guards: set[bytes] = set()
        self._seen: dict[bytes, bytes | None] = {}

    # -- reading

    async def get(self, key: bytes) -> bytes | None:
        if key in self._writes:
            return self._writes[key]
        if key in self._seen:
            return self._seen[key]
        try:
            value: bytes | None = await self._link.ask(self._reader.get, self._prefix + key)
        except TooLong as error:
            raise _too_long(key) from error
        self._seen[key] = value
        return value

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        wanted = list(dict.fromkeys(keys))
        await self.warm(wanted)
        writes, seen = self._writes, self._seen
        found = {key: writes[key] if key in writes else seen[key] for key in wanted}
        return {key: value for key, value in found.items() if value is not None}

    async def warm(self, keys: Iterable[bytes]) -> None:
        missing = [key for key in keys if key not in self._seen and key not in self._writes]
        if len(missing) == 1:
            await self.get(missing[0])
            return
        for first in range(0, len(missing), PAGE):
            await self._fetch(missing[first : first + PAGE])

    async def _fetch(self, keys: list[bytes]) -> None:
        cut = len(self._prefix)
        try:
            pairs = await self._link.ask(self._reader.batch_get, [self._prefix + key for key in keys])
        except TooLong as error:
            if len(keys) == 1:
                raise _too_long(keys[0]) from error
            part = -(-len(keys) // FRACTION)
            for first in range(0, len(keys), part):
                await self._fetch(keys[first : first + part])
            return
        self._seen.update(dict.fromkeys(keys))
        self._seen.update({bytes(key)[cut:]: bytes(value) for key, value in pairs})

    async def scan(self, start: bytes, end: bytes, limit: int | None = None) -> list[Pair]:
        if start >= end:
            return []
        own = {key: value for key, value in self._writes.items() if start <= key < end}
        if not own:
            return await self._scan(start, end, limit)
        # As many more as own deletions may hide; own keys behind the last one found are cut off again.
        stored = await self._scan(start, end, None if limit is None else limit + len(own))
        merged = {**dict(stored), **own}
        found = [(key, value) for key, value in sorted(merged.items()) if value is not None]
        return found if limit is None else found[:limit]

    async def _scan(self, start: bytes, end: bytes, limit: int | None) -> list[Pair]:
        cut = len(self._prefix)
        last = self._prefix + end
        after = self._prefix + start
        page = PAGE
        found: list[Pair] = []
        while limit is None or len(found) < limit:
            wanted = page if limit is None else min(page, limit - len(found))
            try:
                pairs = await self._link.ask(self._reader.scan, after, last, wanted)
            except TooLong as error:
                if wanted == 1:
                    raise _too_long(after[cut:]) from error
                page = -(-wanted // FRACTION)
                continue
            found += [(bytes(key)[cut:], bytes(value)) for key, value in pairs]
            if len(pairs) < wanted:
                break
            after = bytes(pairs[-1][0]) + b"\0"
        return found

    # -- writing

    def set(self, key: bytes, value: bytes) -> None:
        self._require_write()
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        self._require_write()
        self._writes[key] = None

    def guard(self, key: bytes) -> None:
        self._require_write()
        self._guards.add(key)

    def _require_write(self) -> None:
        if not self._write:
            raise RuntimeError("write in a transaction that was opened for reading")

    @property
    def dirty(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._writes or self._guards)

    async def commit(self, marker: bytes, mark: bytes) -> int:
        """Send everything and commit; the commit's timestamp.  Raises what the library raises."""
        prefix, transaction = self._prefix, self._reader
        call = Sequel(transaction.commit)
        started = 1
        call.start(transaction.put, prefix + marker, mark)
        for key, value in self._writes.items():
            if value is None:
                call.start(transaction.delete, prefix + key)
            else:
                call.start(transaction.put, prefix + key, value)
            started += 1
        guards = [prefix + key for key in self._guards if key not in self._writes]
        if guards:
            call.start(transaction.lock_keys, guards)
            started += 1
        call.complete(started)
        return int(await call.wait())


def _too_long(key: bytes) -> FsError:
    log.error("the value of key %s is too long to be read: over 4 MiB", key.hex())
    return FsError(EIO)


class TikvTransaction:
    """The `async with` of one typed transaction."""

    __slots__ = ("_began", "_engine", "_keys", "_link", "_reader", "_typed", "_write")

    def __init__(self, engine: "TikvEngine", *, write: bool) -> None:
        self._engine = engine
        self._write = write

    async def __aenter__(self) -> KvTransaction:
        engine = self._engine
        link = self._link = await engine.link()
        self._began = trio.current_time()
        if self._write:
            self._reader = await link.begin()
        else:
            self._reader = link.client.snapshot(await link.now(), False)
        self._keys = TikvKeys(link, engine.prefix, self._reader, write=self._write)
        self._typed = KvTransaction(self._keys)
        return self._typed

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._write:
            return
        if error is not None or not self._keys.dirty:
            end(self._reader)
            return
        with trio.CancelScope(shield=True):
            await self._commit()

    async def _commit(self) -> None:
        engine = self._engine
        slot = engine.slot_for(self._began)
        marker = MARKER + _SLOT.pack(engine.identity, slot)
        mark = _MARK.pack(next(engine.marks), int(time.time()))
        try:
            self._typed.charges.version = await self._keys.commit(marker, mark)
        except Exception as error:
            meaning = self._link.failure(error)
            if any(word in str(error) for word in _SURE):
                end(self._reader)
                raise meaning from error
            del self._reader, self._keys  # as long as it exists, the library keeps its locks alive
            if not await self._settle(marker, mark, error):
                raise meaning from error
        finally:
            engine.slots.append((trio.current_time(), slot))
        engine.answered()

    async def _settle(self, marker: bytes, mark: bytes, error: Exception) -> bool:
        """Whether a commit happened that the library says has failed.  EIO where it cannot be found out."""
        deadline = trio.current_time() + SETTLE_S
        while True:
            try:
                link = await self._engine.link()
                now = await link.now()
                key = self._engine.prefix + marker
                stored: bytes | None = await link.ask(link.client.snapshot(now, False).get, key)
                self._typed.charges.version = now
            except Conflict as failure:
                if trio.current_time() >= deadline:
                    log.error("it is unknown whether a transaction was committed (%s): %s", error, failure)
                    raise FsError(EIO) from error
                await trio.sleep(SETTLE_PAUSE_S)
                continue
            log.info("a commit whose answer was lost %s", "has happened" if stored == mark else "has not happened")
            return stored == mark


class TikvEngine:
    """One volume in a cluster.  Connects when it is first asked, so that a process may fork before."""

    scheme = "tikv"
    inline = False

    def __init__(self, endpoints: list[str], prefix: bytes, gc_interval_s: float = 0.0) -> None:
        self.prefix = prefix
        self.identity = os.urandom(8)
        self.slots: deque[tuple[float, int]] = deque()
        """Markers that no commit under way uses, and since when."""
        self.more_slots = itertools.count()
        self.marks = itertools.count(1)
        self._endpoints = endpoints
        self._gc_interval_s = gc_interval_s
        self._gc_refused = False
        self._link: Link | None = None
        self._connecting: trio.Lock | None = None
        self._away: bool | None = None
        """None before the first answer: whoever opens the engine tells of that."""

    def transaction(self, *, write: bool) -> TikvTransaction:
        return TikvTransaction(self, write=write)

    def slot_for(self, began: float) -> int:
        """A marker whose last commit was over before a transaction began at `began`: it must not conflict with that."""
        if self.slots and self.slots[0][0] < began:
            return self.slots.popleft()[1]
        return next(self.more_slots)

    # -- the connection

    async def link(self) -> Link:
        """The connection; made where there is none, or none that is any good.  Unavailable."""
        link = self._link
        if link is not None and not link.broken and link.token is trio.lowlevel.current_trio_token():
            return link
        return await self._connect()

    async def _connect(self) -> Link:
        token = trio.lowlevel.current_trio_token()
        if self._connecting is None or (self._link is not None and self._link.token is not token):
            self._connecting = trio.Lock()
            self._link = None
        async with self._connecting:
            if self._link is not None and not self._link.broken:
                return self._link
            call = Call()
            call.start(_library().TransactionClient.connect, self._endpoints, STORE_TIMEOUT_S)
            where = ",".join(self._endpoints)
            with trio.move_on_after(ANSWER_S):
                try:
                    link = self._link = Link(await call.wait(), self)
                except Exception as error:
                    self.failed(str(error))
                    raise Unavailable(f"cannot connect to TiKV at {where}: {_shortened(str(error))}") from error
                return link
            self.failed("no answer")
            raise Unavailable(f"cannot connect to TiKV at {where}: no answer within {ANSWER_S:g} s")

    def failed(self, why: str) -> None:
        """A call had no answer: said once, until one has."""
        if self._away is False:
            log.warning(
                "the metadata store %s does not answer, trying again: %s", ",".join(self._endpoints), _shortened(why)
            )
            self._away = True

    def answered(self) -> None:
        if self._away:
            log.info("the metadata store answers again")
        self._away = False

    # -- the rest of an engine

    async def open(self) -> None:
        where = ",".join(self._endpoints)
        with trio.move_on_after(ANSWER_S):
            try:
                async with self.transaction(write=False) as tx:
                    await tx.settings()
                return
            except Unavailable as error:
                raise UserError(f"the metadata store tikv://{where} cannot be reached: {error}") from error
        raise UserError(f"the metadata store tikv://{where} does not answer within {ANSWER_S:g} s")

    async def prepare(self) -> None:
        """Nothing to make: keys need no schema."""

    async def sync(self) -> None:
        """A commit is on the disks of a majority before it is acknowledged."""

    def wants_checkpoint(self) -> bool:
        return False

    async def checkpoint(self) -> None:
        """The cluster has its own log."""

    async def close(self) -> None:
        """Take this client's markers away, if the cluster is there to be told so, and let go of the connection."""
        if self.slots and self._link is not None and trio.lowlevel.in_trio_run():
            own = MARKER + self.identity
            try:
                with trio.move_on_after(ANSWER_S):
                    await self._drop_markers(lambda key, _: key.startswith(own))
            except (Conflict, FsError) as error:
                log.debug("the commits' markers stay for now: %s", error)
        self._link = None

    async def _drop_markers(self, unwanted: Callable[[bytes, int], bool]) -> None:
        """Delete the markers of which `unwanted(key, unix seconds)` is true."""
        async with self.transaction(write=True) as tx:
            for key, value in await tx.kv.scan(MARKER, MARKER + b"\xff"):
                if unwanted(key, _MARK.unpack(value)[1] if len(value) == _MARK.size else 0):
                    tx.kv.delete(key)

    async def collect(self, now_s: int) -> None:
        """Let the cluster forget versions older than the URL's gc-interval, as the peer does, and drop old markers."""
        await self._drop_markers(lambda _, made: made < now_s - MARKER_AGE_S)
        if self._gc_interval_s <= 0:
            return
        link = await self.link()
        interval_ms = int(max(self._gc_interval_s, LEAST_GC_INTERVAL_S) * 1000)
        safe_point = await link.now() - (interval_ms << _PHYSICAL_SHIFT)
        try:
            await link.ask(link.client.gc, safe_point)
        except Conflict as error:
            if not self._gc_refused:
                log.warning("the cluster refuses to collect old versions, which is left to its own settings: %s", error)
            self._gc_refused = True
