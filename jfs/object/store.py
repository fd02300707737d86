"""The contract that every object store keeps.

Calls block: the chunk layer runs them in threads, several at once, so a store must be safe to share between threads.  Keys
are text without a leading slash, relative to the store's root (a volume's store is a `Prefix` of the bucket's).  Objects are
immutable in practice: a key is put once with its bytes; putting the same bytes again must be harmless.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

Buffer = bytes | bytearray | memoryview


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    """An object as listed: key, size in bytes, time of last change in unix seconds."""

    key: str
    size: int
    mtime: float


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a remote store is asked: `connections` are kept open, the timeouts (seconds) bound a whole request."""

    connections: int = 16
    get_timeout: float = 60.0
    put_timeout: float = 60.0
    storage_class: str = ""


class Errand(Protocol):
    """An object on its way, for who must not wait; exactly one of a `go_on` that ends it and `drop` comes last."""

    deadline: float
    """On the monotonic clock: nothing is worth waiting for after it."""

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is something to take."""
        ...

    def go_on(self) -> bytes | None:
        """Take what has come: all of the object, or None while it has not.  Raises StoreError."""
        ...

    def drop(self) -> None:
        """Give it up."""


class ObjectStore(Protocol):
    """A bucket, or a part of one."""

    def describe(self) -> str:
        """A URL to show to people, without secrets, with a trailing slash: `file:///var/jfs/`."""
        ...

    def create(self) -> None:
        """Make the bucket if it is missing; harmless if it is there."""

    def local_path(self, key: str) -> str | None:
        """Where the object's exact bytes are a file of this machine: its path, whether it is there or not; else None."""
        ...

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes in [offset, offset+length), fewer at its end.  Raises ObjectMissing, StoreError."""
        ...

    def errand(self, key: str, size: int) -> Errand | None:
        """Ask for the whole object, of `size` bytes, without waiting.  None: not now, or not here; `get` is the way.

        Only for small objects: what comes is checked by `go_on`.  Nothing is tried again.
        """
        ...

    def put(self, key: str, data: Buffer) -> None:
        """Store the object whole: no reader ever sees a part of it.  Idempotent.  Raises StoreError."""

    def delete(self, key: str) -> None:
        """Remove the object; one that is missing is success.  Raises StoreError."""

    def head(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing, StoreError."""
        ...

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix` and is greater than `after`, in key order."""
        ...

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects, put before, survive a power cut.  Remote stores: at once, put means stored."""

    def sync_all(self) -> None:
        """The same for all objects, whoever put them."""

    def close(self) -> None:
        """Let go of connections and descriptors."""
