"""A store that can be exchanged while it is in use: keys are renewed and buckets move while a volume is mounted."""

from collections.abc import Iterable, Iterator

from jfs.object.store import Buffer, ObjectInfo, ObjectStore


class Current:
    """`inner`, whichever it is now.  Calls under way end on the store that they began on."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    def exchange(self, inner: ObjectStore) -> None:
        """Go on with another store."""
        old, self.inner = self.inner, inner
        old.close()

    def describe(self) -> str:
        return self.inner.describe()

    def create(self) -> None:
        self.inner.create()

    def local_path(self, key: str) -> str | None:
        return self.inner.local_path(key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(key, offset, length)

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

    def close(self) -> None:
        self.inner.close()
