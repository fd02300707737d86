"""One store made of several buckets: a hash of the key says which one holds an object."""

import heapq
from collections.abc import Iterable, Iterator, Sequence

from jfs.errors import UserError
from jfs.object.store import Buffer, Errand, ObjectInfo, ObjectStore


def shard_of(key: str, shards: int) -> int:
    """The number of the bucket that holds `key`: FNV-1a of 32 bits, as the peer has it."""
    found = 0x811C9DC5
    for byte in key.encode():
        found = ((found ^ byte) * 0x01000193) & 0xFFFFFFFF
    return found % shards


def shard_buckets(bucket: str, shards: int) -> list[str]:
    """The buckets' names: `%d` in the pattern is their number.  UserError for a pattern that gives no such names."""
    if bucket.count("%d") != 1 or bucket.replace("%d", "").count("%") != 0:
        raise UserError(f"with --shards the bucket must contain one %d, and no other %, not {bucket!r}")
    return [bucket.replace("%d", str(number)) for number in range(shards)]


class Sharded:
    """`stores` as one."""

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        self.stores = stores

    def _of(self, key: str) -> ObjectStore:
        return self.stores[shard_of(key, len(self.stores))]

    def describe(self) -> str:
        return f"shard{len(self.stores)}://{self.stores[0].describe()}"

    def create(self) -> None:
        for store in self.stores:
            store.create()

    def local_path(self, key: str) -> str | None:
        return self._of(key).local_path(key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._of(key).get(key, offset, length)

    def errand(self, key: str, size: int) -> Errand | None:
        return self._of(key).errand(key, size)

    def put(self, key: str, data: Buffer) -> None:
        self._of(key).put(key, data)

    def delete(self, key: str) -> None:
        self._of(key).delete(key)

    def head(self, key: str) -> ObjectInfo:
        return self._of(key).head(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        parts = [store.list(prefix, after) for store in self.stores]
        return heapq.merge(*parts, key=lambda info: info.key)

    def sync(self, keys: Iterable[str]) -> None:
        by_store: dict[int, list[str]] = {}
        for key in keys:
            by_store.setdefault(shard_of(key, len(self.stores)), []).append(key)
        for number, part in by_store.items():
            self.stores[number].sync(part)

    def sync_all(self) -> None:
        for store in self.stores:
            store.sync_all()

    def close(self) -> None:
        for store in self.stores:
            store.close()
