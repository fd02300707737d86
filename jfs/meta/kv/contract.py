"""What a key-value engine offers: an ordered map of byte strings with optimistic transactions.

A transaction reads one snapshot plus its own writes.  Its commit raises `Conflict`, and changes nothing, if a key that it
wrote *or guarded* was written or guarded by a commit since the snapshot: a guard of a key that has no value must be seen by
other guards of it.  Reads may raise `Conflict` too, where the engine cannot serve the snapshot.
"""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class KeyValues(Protocol):
    """One transaction's view of the keys.  Keys come without the volume's prefix: the engine adds and removes it."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that exist, in one round trip."""
        ...

    async def get_each(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The same, but where only reading goes on each as it is now: not all of one moment, and nothing is kept of them."""

    async def warm(self, keys: Iterable[bytes]) -> None:
        """These keys are about to be read one by one: fetch them in one round trip, if that saves any."""

    async def scan(self, start: bytes, end: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        """The first `limit` keys of [start, end) and their values, in byte order."""
        ...

    def set(self, key: bytes, value: bytes) -> None:
        """Buffered until commit; read back by this transaction at once."""

    def delete(self, key: bytes) -> None:
        """As `set`; a missing key is fine."""

    def guard(self, key: bytes) -> None:
        """Commit only if nobody wrote or guarded the key since the snapshot."""


class KeyValueStore(Protocol):
    """A place where one volume's keys are."""

    def transaction(self, *, write: bool) -> AbstractAsyncContextManager[KeyValues]:
        """Commits at the end of its body, drops everything if the body raised."""
        ...
