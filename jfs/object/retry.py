"""Patience: a store that tries again while the one below fails.

The peer sleeps try² seconds between tries, so `--io-retries 10` outlasts an outage of minutes and then wakes up late.  Here
the same option buys the same time in all, spent on short waits with jitter: work goes on within two seconds of the store's
return.  What a second try cannot change (a missing object, a bad one, a full store) is raised at once.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from jfs.errors import BadObject, ObjectMissing, StoreError, StoreFull
from jfs.object.decorator import Decorator
from jfs.object.store import Buffer, ObjectInfo, ObjectStore

T = TypeVar("T")

FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 1.0
FINAL: Final = (ObjectMissing, BadObject, StoreFull)

log = logging.getLogger(__name__)


def patience(io_retries: int) -> float:
    """Seconds that the peer's back-off would last: 1² + 2² + … + n²."""
    return io_retries * (io_retries + 1) * (2 * io_retries + 1) / 6


def delay_after(attempt: int) -> float:
    """Seconds to wait after failure number `attempt` (from 0): doubling, bounded, with jitter."""
    return min(FIRST_DELAY * 2.0 ** min(attempt, 20), LONGEST_DELAY) * random.uniform(0.5, 1.0)


class Retry(Decorator):
    """`inner`, tried again until it works or the patience of `io_retries` is used up."""

    def __init__(
        self,
        inner: ObjectStore,
        io_retries: int = 10,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        super().__init__(inner)
        self._patience = patience(io_retries)
        self._closed = threading.Event()
        self._clock = clock
        self._wait = wait or self._closed.wait

    def _run(self, what: str, call: Callable[[], T]) -> T:
        deadline: float | None = None
        attempt = 0
        while True:
            try:
                return call()
            except FINAL:
                raise
            except StoreError as error:
                now = self._clock()
                if deadline is None:
                    deadline = now + self._patience
                delay = delay_after(attempt)
                if now >= deadline:
                    raise
                attempt += 1
                log.warning("%s: %s; trying again (%d)", what, error, attempt)
                if self._wait(min(delay, deadline - now)):
                    raise

    def create(self) -> None:
        self._run("create", self.inner.create)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._run(f"get {key}", lambda: self.inner.get(key, offset, length))

    def put(self, key: str, data: Buffer) -> None:
        self._run(f"put {key}", lambda: self.inner.put(key, data))

    def delete(self, key: str) -> None:
        self._run(f"delete {key}", lambda: self.inner.delete(key))

    def head(self, key: str) -> ObjectInfo:
        return self._run(f"head {key}", lambda: self.inner.head(key))

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """A listing that breaks goes on after the last key that it gave."""
        place = after
        rest = self.inner.list(prefix, place)

        def step() -> ObjectInfo | None:
            nonlocal rest
            try:
                return next(rest, None)
            except StoreError:
                rest = self.inner.list(prefix, place)
                raise

        while (found := self._run(f"list {prefix}", step)) is not None:
            place = found.key
            yield found

    def sync(self, keys: Iterable[str]) -> None:
        """Never tried again: after a failed flush the kernel calls the lost pages clean, and a second one would lie."""
        self.inner.sync(keys)

    def close(self) -> None:
        """Those who wait for another try give up now."""
        self._closed.set()
        self.inner.close()
