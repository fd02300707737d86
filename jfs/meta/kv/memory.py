"""The engine in memory: every version of every key that an open transaction may still read.  For tests; nothing is kept.

It is the strictest engine that the contract allows, and deterministic: guards of one key conflict with each other, and
`fail_commits` makes chosen commits lose a race that nobody ran.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from types import TracebackType

from jfs.errors import Conflict
from jfs.meta.kv.buffered import BufferedWrites
from jfs.meta.kv.transaction import KvTransaction

_Version = tuple[int, bytes | None]


class MemoryStore:
    """Keys in order, each with its versions, oldest first; a version without a value is a deleted key."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.versions: dict[bytes, list[_Version]] = {}
        self.changed: dict[bytes, int] = {}
        self.now = 0
        self.open: dict[int, int] = {}
        """How many transactions read each snapshot."""

    def get(self, key: bytes, snapshot: int) -> bytes | None:
        for version, value in reversed(self.versions.get(key, ())):
            if version <= snapshot:
                return value
        return None

    def range(self, start: bytes, end: bytes) -> list[bytes]:
        """Every key of [start, end) that some snapshot may have."""
        return self.keys[bisect_left(self.keys, start) : bisect_left(self.keys, end)]

    def commit(self, snapshot: int, writes: dict[bytes, bytes | None], guards: set[bytes]) -> None:
        touched = guards.union(writes)
        for key in touched:
            if self.changed.get(key, 0) > snapshot:
                raise Conflict(f"write conflict on {key.hex()}")
        self.now += 1
        for key in touched:
            self.changed[key] = self.now
        oldest = min(self.open, default=self.now)
        for key, value in writes.items():
            self._append(key, value, oldest)

    def _append(self, key: bytes, value: bytes | None, oldest: int) -> None:
        """Add a version; forget those that no snapshot can read."""
        versions = self.versions.get(key)
        if versions is None:
            if value is None:
                return
            versions = self.versions[key] = []
            insort(self.keys, key)
        versions.append((self.now, value))
        while len(versions) > 1 and versions[1][0] <= oldest:
            del versions[0]
        if len(versions) == 1 and value is None:
            del self.versions[key]
            del self.keys[bisect_left(self.keys, key)]


class MemoryKeys(BufferedWrites):
    """One transaction on a store."""

    __slots__ = ("_snapshot", "_store")

    def __init__(self, store: MemoryStore, snapshot: int, *, write: bool) -> None:
        super().__init__(write=write)
        self._store = store
        self._snapshot = snapshot

    def _read(self, key: bytes) -> bytes | None:
        if key in self._writes:
            return self._writes[key]
        return self._store.get(key, self._snapshot)

    async def get(self, key: bytes) -> bytes | None:
        return self._read(key)

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        return {key: value for key in keys if (value := self._read(key)) is not None}

    async def get_each(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        return await self.get_many(keys)

    async def warm(self, keys: Iterable[bytes]) -> None:
        """Nothing is far away."""

    async def scan(self, start: bytes, end: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        keys = self._store.range(start, end)
        if own := [key for key in self._writes if start <= key < end]:
            keys = sorted({*keys, *own})
        found: list[tuple[bytes, bytes]] = []
        for key in keys:
            if limit is not None and len(found) >= limit:
                break
            if (value := self._read(key)) is not None:
                found.append((key, value))
        return found

    def commit(self) -> None:
        self._store.commit(self._snapshot, self._writes, self._guards)

    @property
    def dirty(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._writes or self._guards)


class MemoryTransaction:
    """The `async with` of one typed transaction."""

    __slots__ = ("_engine", "_keys", "_snapshot", "_write")

    def __init__(self, engine: "MemoryEngine", *, write: bool) -> None:
        self._engine = engine
        self._write = write

    async def __aenter__(self) -> KvTransaction:
        store = self._engine.store
        self._snapshot = store.now
        store.open[self._snapshot] = store.open.get(self._snapshot, 0) + 1
        self._keys = MemoryKeys(store, self._snapshot, write=self._write)
        return KvTransaction(self._keys)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        readers = self._engine.store.open
        readers[self._snapshot] -= 1
        if not readers[self._snapshot]:
            del readers[self._snapshot]
        if kind is None and self._keys.dirty:
            self._engine.before_commit()
            self._keys.commit()


class MemoryEngine:
    """An empty volume in memory."""

    scheme = "memkv"
    inline = True

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.commits = 0
        self._failing: set[int] = set()

    def fail_commits(self, *numbers: int) -> None:
        """Let the nth commits from now on (1: the next) raise `Conflict`."""
        self._failing = {self.commits + number for number in numbers}

    def before_commit(self) -> None:
        """Count a commit; Conflict where it was chosen to fail."""
        self.commits += 1
        if self.commits in self._failing:
            raise Conflict(f"commit {self.commits} was chosen to fail")

    def transaction(self, *, write: bool) -> MemoryTransaction:
        return MemoryTransaction(self, write=write)

    def watch(self) -> None:
        """A transaction costs hardly more than a look would."""

    def disk(self) -> int | None:
        """None."""
        return None

    async def open(self) -> None:
        """It is here."""

    async def prepare(self) -> None:
        """Nothing to make: keys need no schema."""

    async def sync(self) -> None:
        """Nothing outlives the process."""

    def wants_checkpoint(self) -> bool:
        return False

    async def checkpoint(self) -> None:
        """There is no log."""

    async def collect(self, now_s: int) -> None:
        """Nothing piles up."""

    async def close(self) -> None:
        """Let go of nothing: an engine may be looked at after a test."""
