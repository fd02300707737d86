"""Objects in a dictionary: for tests and for trying jfs out.  They live as long as the process."""

import threading
import time
from collections.abc import Iterable, Iterator

from jfs.errors import ObjectMissing
from jfs.object.store import Buffer, Errand, ObjectInfo


class MemoryStore:
    """The `mem` storage.  Safe to share between threads."""

    def __init__(self, name: str = "") -> None:
        self._name = name.strip("/")
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def describe(self) -> str:
        return f"mem://{self._name}/"

    def create(self) -> None:
        """A dictionary needs no making."""

    def local_path(self, key: str) -> str | None:
        return None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._find(key)[0]
        return data[offset:] if length is None else data[offset : offset + length]

    def errand(self, key: str, size: int) -> Errand | None:
        """None: there is nothing to wait for."""
        return None

    def put(self, key: str, data: Buffer) -> None:
        with self._lock:
            self._objects[key] = (bytes(data), time.time())

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def head(self, key: str) -> ObjectInfo:
        data, mtime = self._find(key)
        return ObjectInfo(key, len(data), mtime)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        for key in keys:
            try:
                found = self.head(key)
            except ObjectMissing:  # removed since
                continue
            yield found

    def sync(self, keys: Iterable[str]) -> None:
        """Nothing here survives the process, and nothing promised that it would."""

    def sync_all(self) -> None:
        """As `sync`."""

    def close(self) -> None:
        """The objects stay: another handle on this store may hold them."""

    def _find(self, key: str) -> tuple[bytes, float]:
        with self._lock:
            try:
                return self._objects[key]
            except KeyError:
                raise ObjectMissing(key) from None
