"""How a handle is read: the places where reading goes on and on, each of which is worth reading ahead of.

Pure.  The kernel's own read-ahead sends requests of a range at once, and they come in any order; so a read belongs to a
stream if it is near the stream's end, and a stream is sequential while it skips no more than it reads.
"""

from typing import Final

SEQUENTIAL_FROM: Final = 4
"""Reads in a row before blocks are fetched ahead."""

NEAR: Final = 4 << 20
MOST: Final = 4
"""Streams of one handle: threads may share a descriptor, and a file may hold several tables."""

GROWTH: Final = 2
"""So many times what was read on end is read ahead."""


class Stream:
    """One place."""

    __slots__ = ("ahead", "end", "loading", "read", "reads", "skipped")

    def __init__(self, end: int) -> None:
        self.end = end
        self.reads = 0
        self.read = 0
        self.skipped = 0
        """Bytes before `end` that were not read yet."""
        self.ahead = end
        """Up to where blocks were asked for."""
        self.loading = False
        """Whether the next chunk's records are being looked up."""

    def went_on(self, offset: int, end: int) -> None:
        """A read of [offset, end)."""
        if offset > self.end:
            self.skipped += offset - self.end
        elif end <= self.end:
            self.skipped = max(0, self.skipped - (end - offset))
        self.reads += 1
        self.read += end - offset
        self.end = max(self.end, end)

    def window(self, most: int) -> int:
        """How far to read ahead, bytes; `most` at most."""
        self.read = min(self.read, most)
        self.skipped = min(self.skipped, most + 1)
        if self.reads < SEQUENTIAL_FROM or self.skipped > self.read:
            return 0
        return min(most, GROWTH * self.read)


class Streams:
    """Those of one handle, the latest used last."""

    __slots__ = ("streams",)

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def read(self, offset: int, end: int) -> Stream:
        """The stream that a read of [offset, end) belongs to, with that read in it."""
        streams = self.streams
        stream = min(streams, key=lambda each: abs(offset - each.end), default=None)
        if stream is None or abs(offset - stream.end) > NEAR:
            if len(streams) == MOST:
                del streams[0]
            stream = Stream(offset)
        elif streams[-1] is not stream:
            streams.remove(stream)
        if not streams or streams[-1] is not stream:
            streams.append(stream)
        stream.went_on(offset, end)
        return stream
