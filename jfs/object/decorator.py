"""A store around a store that changes nothing: what a decorator does not override goes straight through."""

from collections.abc import Iterable, Iterator

from jfs.object.store import Buffer, Errand, ObjectInfo, ObjectStore


class Decorator:
    """`inner`, as it is."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    def describe(self) -> str:
        return self.inner.describe()

    def create(self) -> None:
        self.inner.create()

    def local_path(self, key: str) -> str | None:
        return self.inner.local_path(key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(key, offset, length)

    def errand(self, key: str, size: int) -> Errand | None:
        return self.inner.errand(key, size)

    def put(self, key: str, data: Buffer) -> None:
        self.inner.put(key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def head(self, key: str) -> ObjectInfo:
        return self.inner.head(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix, after)

    def sync(self, keys: Iterable[str]) -> None:
        self.inner.sync(keys)

    def sync_all(self) -> None:
        self.inner.sync_all()

    def close(self) -> None:
        self.inner.close()
