"""Limits on what a client sends and fetches: one token bucket for each direction, shared by all its threads.

A request starts as soon as the bucket is not in debt, and pays its whole size: the first one after a quiet time does not
wait, and a large block puts off only those behind it.  Who came first goes first.  Nobody waits inside a request, where the
store's time-outs run.  Ranges that would keep the line to themselves for long are fetched in pieces, so that others get their
turn in between; a whole object is fetched whole, because only so the store can check it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from jfs.object.decorator import Decorator
from jfs.object.store import Buffer, Errand, ObjectStore

BYTES_PER_MEGABIT: Final = 1_000_000 / 8
# What a quiet line may make up for, and how long one piece of a download holds the line.
BURST_S: Final = 0.1
PIECE_S: Final = 0.25
LEAST_PIECE: Final = 128 << 10
# How large whole objects are thought to be until the first one has come.
FIRST_GUESS: Final = 4 << 20


class Bandwidth:
    """A token bucket.  Safe to share between threads."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], object] | None = None
    ) -> None:
        """Unlimited until `set_rate`.  `wait(seconds)` may return early."""
        self._changed = threading.Condition()
        self._clock = clock
        self._wait = wait or self._changed.wait
        self._rate = 0.0
        self._stopped = False
        # Bytes since the rate was set: `_taken` by requests, and `_earned` by time up to `_at`.
        self._taken = 0.0
        self._earned = 0.0
        self._at = clock()

    @property
    def rate(self) -> float:
        """Bytes a second; 0: no limit."""
        return 0.0 if self._stopped else self._rate

    def set_rate(self, rate: float) -> None:
        """Those who wait now wait for the new rate's turn; 0 lets everybody go."""
        with self._changed:
            self._earn()
            if not self._rate:
                self._earned = self._taken
            self._rate = rate
            self._changed.notify_all()

    def take(self, size: int) -> None:
        """Return when it is this caller's turn to move `size` bytes."""
        if not self._rate:
            return
        with self._changed:
            self._earn()
            place = self._taken
            self._taken += size
            while self.rate and (debt := place - self._earned) >= 1:
                self._wait(debt / self._rate)
                self._earn()

    def correct(self, taken: int, moved: int) -> None:
        """What was taken was a guess; so much was moved."""
        with self._changed:
            self._earned += max(taken - moved, 0)
            self._taken += max(moved - taken, 0)
            self._changed.notify_all()

    def stop(self) -> None:
        """The end: nobody waits any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _earn(self) -> None:
        now = self._clock()
        self._earned = min(self._earned + (now - self._at) * self._rate, self._taken + self._rate * BURST_S)
        self._at = now


class Limits:
    """Both directions of a client: what its own options say, else what the volume's settings say."""

    def __init__(self, upload: int | None = None, download: int | None = None) -> None:
        """Mbps; 0: no limit, whatever the settings say; None: as the settings say."""
        self._own = (upload, download)
        self.upload = Bandwidth()
        self.download = Bandwidth()

    def follow(self, upload: int, download: int) -> None:
        """The volume's settings, in Mbps; called again when they change."""
        for bandwidth, own, theirs in zip((self.upload, self.download), self._own, (upload, download), strict=True):
            rate = max(theirs if own is None else own, 0) * BYTES_PER_MEGABIT
            if rate != bandwidth.rate:
                bandwidth.set_rate(rate)

    def stop(self) -> None:
        """The client ends: whoever waits for his turn goes on at once."""
        self.upload.stop()
        self.download.stop()


class Limit(Decorator):
    """`inner`, at the pace of `limits`."""

    def __init__(self, inner: ObjectStore, limits: Limits) -> None:
        super().__init__(inner)
        self._limits = limits
        self._usual = FIRST_GUESS

    def local_path(self, key: str) -> str | None:
        """None under a limit: bytes that go past `get` and `put` would go past it too."""
        if self._limits.upload.rate or self._limits.download.rate:
            return None
        return self.inner.local_path(key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        rate = self._limits.download.rate
        if not rate:
            return self.inner.get(key, offset, length)
        if length is None:
            data = self._get_piece(key, offset, None, self._usual)
            self._usual = len(data)
            return data
        most = max(int(rate * PIECE_S), LEAST_PIECE)
        if length <= most:
            return self._get_piece(key, offset, length, length)
        pieces: list[bytes] = []
        done = 0
        while done < length:
            wanted = min(most, length - done)
            piece = self._get_piece(key, offset + done, wanted, wanted)
            pieces.append(piece)
            done += len(piece)
            if len(piece) < wanted:
                break
        return b"".join(pieces)

    def _get_piece(self, key: str, offset: int, length: int | None, guess: int) -> bytes:
        bandwidth = self._limits.download
        bandwidth.take(guess)
        moved = 0
        try:
            data = self.inner.get(key, offset, length)
            moved = len(data)
        finally:
            if moved != guess:
                bandwidth.correct(guess, moved)
        return data

    def errand(self, key: str, size: int) -> Errand | None:
        """None under a limit: whoever waits for his turn waits in a thread."""
        return None if self._limits.download.rate else self.inner.errand(key, size)

    def put(self, key: str, data: Buffer) -> None:
        self._limits.upload.take(len(data))
        self.inner.put(key, data)

    def close(self) -> None:
        self._limits.stop()
        self.inner.close()
