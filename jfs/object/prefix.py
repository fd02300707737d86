"""A part of a bucket as a store of its own: every key gets a prefix on its way down and loses it on its way up."""

from collections.abc import Iterable, Iterator

from jfs.object.decorator import Decorator
from jfs.object.store import Buffer, Errand, ObjectInfo, ObjectStore


class Prefix(Decorator):
    """`inner`, seen from `prefix` (which ends with a slash)."""

    def __init__(self, inner: ObjectStore, prefix: str) -> None:
        super().__init__(inner)
        self._prefix = prefix

    def describe(self) -> str:
        return self.inner.describe() + self._prefix

    def local_path(self, key: str) -> str | None:
        return self.inner.local_path(self._prefix + key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(self._prefix + key, offset, length)

    def errand(self, key: str, size: int) -> Errand | None:
        return self.inner.errand(self._prefix + key, size)

    def put(self, key: str, data: Buffer) -> None:
        self.inner.put(self._prefix + key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(self._prefix + key)

    def head(self, key: str) -> ObjectInfo:
        found = self.inner.head(self._prefix + key)
        return ObjectInfo(key, found.size, found.mtime)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        skip = len(self._prefix)
        for found in self.inner.list(self._prefix + prefix, self._prefix + after if after else ""):
            yield ObjectInfo(found.key[skip:], found.size, found.mtime)

    def sync(self, keys: Iterable[str]) -> None:
        self.inner.sync([self._prefix + key for key in keys])
