"""The engine on TiKV, by the client in `jfs.tikv`: optimistic transactions.

Strategy: writes and guards stay in Python until commit and go out together; a guard is a lock-only mutation.  What one
transaction reads, it reads once.  A transaction that only reads asks for its first key as it is now, which needs no
timestamp: most read no other.  If it reads on, what it has read is compared with what was there at its timestamp.
"""

import logging
import ssl
from collections.abc import Iterable
from errno import EIO
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import parse_qsl

import trio

from jfs import units
from jfs.errors import Conflict, FsError, Unavailable, UserError
from jfs.meta.kv.buffered import BufferedWrites
from jfs.meta.kv.transaction import KvTransaction
from jfs.tikv.client import LATEST, Client, Mutation, Op, Snapshot, tls_context
from jfs.tikv.errors import Refused, Undetermined

log = logging.getLogger(__name__)

PREFIX_END: Final = b"\xfd"
DEFAULT_PORT: Final = 2379
PATIENCE_S: Final = 3.0
"""How long one call is tried; whoever runs the transaction may run it again."""
OPEN_S: Final = 9.0
LEAST_GC_INTERVAL_S: Final = 3600.0
PHYSICAL_SHIFT: Final = 18
TLS: Final = ("ca", "cert", "key", "verify-cn")

Pair = tuple[bytes, bytes]


def open_tikv(rest: str) -> "TikvEngine":
    """From a meta URL without its scheme: `HOST:PORT,HOST:PORT/PREFIX?gc-interval=3h&ca=FILE&cert=FILE&key=FILE`.  UserError."""
    address, _, query = rest.partition("?")
    hosts, _, prefix = address.partition("/")
    endpoints = [_endpoint(host) for host in hosts.split(",") if host]
    if not endpoints:
        raise UserError("a tikv URL names its placement drivers: tikv://HOST:2379,HOST:2379/PREFIX")
    gc_interval_s = 3 * 3600.0
    files: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in TLS:
            files[name] = value
        elif name == "gc-interval":
            gc_interval_s = _duration(value)
        else:
            raise UserError(f"unknown parameter {name} of a tikv URL; there are gc-interval, ca, cert and key")
    return TikvEngine(endpoints, prefix.strip("/").encode() + PREFIX_END, gc_interval_s, _context(files))


def _endpoint(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        return f"{host}:{DEFAULT_PORT}"
    if not name or not port.isdigit():
        raise UserError(f"{host} is no address of a placement driver: HOST:PORT is wanted")
    return host


def _duration(text: str) -> float:
    try:
        return units.parse_duration(text)
    except ValueError as error:
        raise UserError(f"gc-interval={text}: {error}") from None


def _context(files: dict[str, str]) -> ssl.SSLContext | None:
    if not files:
        return None
    if "verify-cn" in files:
        raise UserError(
            "parameter verify-cn of the meta URL is not supported: a server's name is checked as its address"
        )
    if "ca" not in files or ("cert" in files) != ("key" in files):
        raise UserError("TLS to TiKV takes the parameters ca, cert and key of the meta URL, or ca alone")
    cert, key = files.get("cert"), files.get("key")
    try:
        return tls_context(Path(files["ca"]), Path(cert) if cert else None, Path(key) if key else None)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"the TLS files of the meta URL cannot be used: {error}") from None


class TikvKeys(BufferedWrites):
    """One transaction's view of the keys."""

    __slots__ = ("_client", "_prefix", "_seen", "_snapshot")

    def __init__(self, client: Client, prefix: bytes, snapshot: Snapshot | None, *, write: bool) -> None:
        """`snapshot` is the one to read; None leaves it to the first read."""
        super().__init__(write=write)
        self._client = client
        self._prefix = prefix
        self._snapshot = snapshot
        self._seen: dict[bytes, bytes | None] = {}

    # -- reading

    async def get(self, key: bytes) -> bytes | None:
        if key in self._writes:
            return self._writes[key]
        if key in self._seen:
            return self._seen[key]
        if self._snapshot is None and not self._seen:
            value = await self._client.snapshot(LATEST).get(self._prefix + key)
            self._seen[key] = value
            return value
        if self._snapshot is None:
            await self._fetch([key])
            return self._seen[key]
        value = self._seen[key] = await self._snapshot.get(self._prefix + key)
        return value

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        wanted = list(dict.fromkeys(keys))
        if len(wanted) > 1 and not self._seen and not self._writes:
            return await self._fetch(wanted)
        await self.warm(wanted)
        writes, seen = self._writes, self._seen
        found = {key: writes[key] if key in writes else seen[key] for key in wanted}
        return {key: value for key, value in found.items() if value is not None}

    async def get_each(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        if self._snapshot is not None or self._seen or self._writes:
            return await self.get_many(keys)
        prefix, cut = self._prefix, len(self._prefix)
        stored = await self._client.snapshot(LATEST).batch_get([prefix + key for key in keys])
        return {key[cut:]: value for key, value in stored.items()}

    async def warm(self, keys: Iterable[bytes]) -> None:
        missing = [key for key in keys if key not in self._seen and key not in self._writes]
        if len(missing) == 1:
            await self.get(missing[0])
        elif missing:
            await self._fetch(missing)

    async def _fetch(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """Read these, and see that what was read before is of the same time; those that exist."""
        snapshot, early = self._snapshot, self._seen
        if snapshot is None:
            snapshot = await self._settle_on_snapshot()
            keys = [*keys, *early]
        prefix, cut = self._prefix, len(self._prefix)
        stored = await snapshot.batch_get([prefix + key for key in keys])
        found = {key[cut:]: value for key, value in stored.items()}
        fresh: dict[bytes, bytes | None] = dict.fromkeys(keys)
        fresh.update(found)
        if any(fresh.get(key, value) != value for key, value in early.items()):
            raise Conflict("a key has changed while the transaction began")
        early.update(fresh)
        return found

    async def _settle_on_snapshot(self) -> Snapshot:
        timestamp = await self._client.timestamp()
        self._snapshot = self._client.snapshot(timestamp)
        return self._snapshot

    async def scan(self, start: bytes, end: bytes, limit: int | None = None) -> list[Pair]:
        if start >= end:
            return []
        if self._snapshot is None:
            if self._seen:
                await self._fetch([])
            else:
                await self._settle_on_snapshot()
        own = {key: value for key, value in self._writes.items() if start <= key < end}
        if not own:
            return await self._scan(start, end, limit)
        # As many more as own deletions may hide; own keys behind the last one found are cut off again.
        stored = await self._scan(start, end, None if limit is None else limit + len(own))
        merged = {**dict(stored), **own}
        found = [(key, value) for key, value in sorted(merged.items()) if value is not None]
        return found if limit is None else found[:limit]

    async def _scan(self, start: bytes, end: bytes, limit: int | None) -> list[Pair]:
        assert self._snapshot is not None
        prefix, cut = self._prefix, len(self._prefix)
        pairs = await self._snapshot.scan(prefix + start, prefix + end, limit)
        return [(key[cut:], value) for key, value in pairs]

    # -- writing

    def mutations(self) -> list[Mutation]:
        """What there is to commit."""
        prefix, writes = self._prefix, self._writes
        changes = [
            Mutation(Op.DELETE, prefix + key) if value is None else Mutation(Op.PUT, prefix + key, value)
            for key, value in writes.items()
        ]
        return changes + [Mutation(Op.LOCK, prefix + key) for key in self._guards if key not in writes]


class TikvTransaction:
    """The `async with` of one typed transaction."""

    __slots__ = ("_began", "_client", "_engine", "_keys", "_start_ts", "_typed", "_write")

    def __init__(self, engine: "TikvEngine", *, write: bool) -> None:
        self._engine = engine
        self._write = write

    async def __aenter__(self) -> KvTransaction:
        engine = self._engine
        client = self._client = engine.client()
        snapshot = None
        if self._write:
            self._began = trio.current_time()
            try:
                self._start_ts = await client.timestamp()
            except Unavailable as error:
                engine.failed(str(error))
                raise
            snapshot = client.snapshot(self._start_ts)
        self._keys = TikvKeys(client, engine.prefix, snapshot, write=self._write)
        self._typed = KvTransaction(self._keys)
        return self._typed

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            if self._write and (mutations := self._keys.mutations()):
                await self._commit(mutations)
            self._engine.answered()
        elif isinstance(error, Unavailable):
            self._engine.failed(str(error))
        elif isinstance(error, Refused):
            log.error("TiKV refuses a request: %s", error)
            raise FsError(EIO) from error

    async def _commit(self, mutations: list[Mutation]) -> None:
        try:
            version = await self._client.commit(self._start_ts, mutations, began=self._began)
            self._typed.charges.version = version
        except Unavailable as error:
            self._engine.failed(str(error))
            raise
        except Refused as error:
            log.error("TiKV refuses the transaction: %s", error)
            raise FsError(EIO) from error
        except Undetermined as error:
            self._engine.failed(str(error))
            log.error("it is unknown whether a transaction was committed: %s", error)
            raise FsError(EIO) from error


class TikvEngine:
    """One volume in a cluster.  Connects when it is first asked, so that a process may fork before."""

    scheme = "tikv"
    inline = False

    def __init__(
        self,
        endpoints: list[str],
        prefix: bytes,
        gc_interval_s: float = 0.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.prefix = prefix
        self._endpoints = endpoints
        self._gc_interval_s = gc_interval_s
        self._context = context
        self._gc_refused = False
        self._client: Client | None = None
        self._away: bool | None = None
        """None before the first answer: whoever opens the engine tells of that."""

    def transaction(self, *, write: bool) -> TikvTransaction:
        return TikvTransaction(self, write=write)

    def watch(self) -> None:
        """To look would be a round trip."""

    def client(self) -> Client:
        """The client of this trio run."""
        client = self._client
        if client is None or client.token is not trio.lowlevel.current_trio_token():
            client = self._client = Client(self._endpoints, self._context, patience_s=PATIENCE_S)
        return client

    def failed(self, why: str) -> None:
        """A call had no answer: said once, until one has."""
        if self._away is False:
            log.warning("the metadata store %s does not answer, trying again: %s", ",".join(self._endpoints), why[:300])
            self._away = True

    def answered(self) -> None:
        if self._away:
            log.info("the metadata store answers again")
        self._away = False

    # -- the rest of an engine

    def disk(self) -> int | None:
        """None."""
        return None

    async def open(self) -> None:
        where = ",".join(self._endpoints)
        with trio.move_on_after(OPEN_S):
            try:
                async with self.transaction(write=False) as tx:
                    await tx.settings()
                return
            except Unavailable as error:
                raise UserError(f"the metadata store tikv://{where} cannot be reached: {error}") from error
        raise UserError(f"the metadata store tikv://{where} does not answer within {OPEN_S:g} s")

    async def prepare(self) -> None:
        """Nothing to make: keys need no schema."""

    async def sync(self) -> None:
        """A commit is on the disks of a majority before it is acknowledged."""

    def wants_checkpoint(self) -> bool:
        return False

    async def checkpoint(self) -> None:
        """The cluster has its own log."""

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    async def collect(self, now_s: int) -> None:
        """Let the cluster forget versions older than the URL's gc-interval, as the peer does."""
        if self._gc_interval_s <= 0:
            return
        client = self.client()
        interval_ms = int(max(self._gc_interval_s, LEAST_GC_INTERVAL_S) * 1000)
        try:
            await client.collect(await client.timestamp() - (interval_ms << PHYSICAL_SHIFT))
        except Unavailable as error:
            log.info("old versions are left for the next time: %s", error)
        except Conflict as error:
            if not self._gc_refused:
                log.warning("the cluster refuses to collect old versions, which is left to its own settings: %s", error)
            self._gc_refused = True
