"""Which staged block is uploaded next: the oldest of those that may be tried, from a folder that can be read.

A block whose upload failed is put off: the next oldest goes on meanwhile.  If the store refused it the pause grows only when
others were uploaded since its failure before: where nothing gets through it is the store's return that must not be missed.

Each folder has a lane of its own, so that one whose reads fail holds up nobody: while it does, one upload at a time reads from
it, with pauses, and others' blocks come first but for one try now and then.  Times are of trio's clock, which nobody sets.
"""

import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from jfs.chunk.staging import Staged
    from jfs.chunk.staging_dir import StagingDir

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 600.0
"""So long a block that failed is put off; doubled with each failure of its own."""

READ_PAUSE_S: Final = 0.001
LONGEST_READ_PAUSE_S: Final = 0.02
"""Between two reads from a folder that fails: of a hundred thousand blocks that cannot be read each is tried."""

FOLDER_PAUSE_S: Final = 1.0
LONGEST_FOLDER_PAUSE_S: Final = 60.0
"""So long a folder whose reads fail comes after the others; doubled with each failure in a row."""

MOST_VOID: Final = 1000
"""Entries of removed blocks that the queue keeps at least: with a delay they would pile up."""


def growing(first: float, failures: int, longest: float) -> float:
    """Seconds to wait after so many failures: doubling, bounded."""
    return min(first * 2.0 ** min(failures - 1, 20), longest)


class Lane:
    """The blocks of one folder that nobody uploads."""

    __slots__ = ("again", "failures", "later", "queue", "running", "until")

    def __init__(self) -> None:
        self.queue: list[tuple[float, int, Staged]] = []
        self.later: list[tuple[float, int, Staged]] = []
        """Those that are put off, by when they may be tried again."""
        self.running = 0
        self.failures = 0
        """Reads that failed since the last that did not."""
        self.again = self.until = 0.0

    def ripen(self, now: float) -> None:
        """Drop void entries from the front; what was put off until now is in the queue again."""
        while self.later and (self.later[0][0] <= now or _void(self.later[0])):
            _, ticket, block = heapq.heappop(self.later)
            if block.ticket == ticket:
                heapq.heappush(self.queue, (block.since, ticket, block))
        while self.queue and _void(self.queue[0]):
            heapq.heappop(self.queue)

    def sweep(self) -> None:
        for entries in (self.queue, self.later):
            entries[:] = [entry for entry in entries if not _void(entry)]
            heapq.heapify(entries)


def _void(entry: "tuple[float, int, Staged]") -> bool:
    return entry[1] != entry[2].ticket


class UploadQueue:
    """The staged blocks of one mount that nobody uploads."""

    def __init__(self, wait: "Callable[[Staged], float]") -> None:
        """`wait` gives the seconds until a block may be uploaded that is the oldest and has not failed."""
        self._wait = wait
        self._lanes: dict[StagingDir, Lane] = {}
        self._serial = 0
        self._uploaded = 0

    def __len__(self) -> int:
        """Entries, void ones too."""
        return sum(len(lane.queue) + len(lane.later) for lane in self._lanes.values())

    def lane(self, folder: "StagingDir") -> Lane:
        found = self._lanes.get(folder)
        if found is None:
            found = self._lanes[folder] = Lane()
        return found

    def add(self, block: "Staged") -> bool:
        """Whether the block is the first of its lane now."""
        queue = self.lane(block.folder).queue
        heapq.heappush(queue, (block.since, self._ticket(block), block))
        return queue[0][2] is block

    def _ticket(self, block: "Staged") -> int:
        self._serial += 1
        block.ticket = self._serial
        return self._serial

    def put_off(self, block: "Staged", *, unreadable: bool) -> None:
        """The block's upload failed: in the store, or because its file is `unreadable`."""
        if unreadable or block.failures == 0 or self._uploaded > block.uploaded_before:
            block.failures += 1
        block.uploaded_before = self._uploaded
        pause = growing(FIRST_PAUSE_S, block.failures, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
        heapq.heappush(self.lane(block.folder).later, (trio.current_time() + pause, self._ticket(block), block))

    def next(self) -> "tuple[float, Staged | None]":
        """Seconds until a block may be uploaded; and the block, if that is now."""
        now = trio.current_time()
        soonest = float("inf")
        first: tuple[bool, float, int, Staged] | None = None
        for lane in self._lanes.values():
            lane.ripen(now)
            if lane.later:
                soonest = min(soonest, max(lane.later[0][0], lane.again) - now)
            if not lane.queue or (lane.failures and lane.running):  # whoever reads from it calls the next
                continue
            left = max(self._wait(lane.queue[0][2]), lane.again - now)
            if left > 0:
                soonest = min(soonest, left)
            elif first is None or (lane.until > now, *lane.queue[0]) < first:
                first = (lane.until > now, *lane.queue[0])
        return (soonest, None) if first is None else (0.0, first[3])

    def oldest(self) -> "Staged | None":
        """The block that was staged first."""
        now = trio.current_time()
        found: list[Staged] = []
        for lane in self._lanes.values():
            lane.ripen(now)
            found += [entry[2] for entry in (*lane.queue[:1], *lane.later) if not _void(entry)]
        return min(found, key=_since, default=None)

    def hurry(self, folder: "StagingDir | None" = None) -> None:
        """What is put off, in this folder or in all, may be tried now."""
        for each, lane in self._lanes.items():
            if folder in (None, each):
                lane.again = lane.until = 0.0
                lane.ripen(float("inf"))

    def sweep(self, valid: int) -> None:
        """Forget void entries once they are the most part of the queue."""
        if len(self) > 2 * valid + MOST_VOID:
            for lane in self._lanes.values():
                lane.sweep()

    # -- uploads under way

    def started(self, block: "Staged") -> None:
        block.ticket = 0
        self.lane(block.folder).running += 1

    def ended(self, block: "Staged") -> None:
        self.lane(block.folder).running -= 1

    def succeeded(self) -> None:
        self._uploaded += 1

    def fails(self, folder: "StagingDir") -> bool:
        """Whether the last read from the folder failed."""
        return self.lane(folder).failures > 0

    def unreadable(self, folder: "StagingDir") -> None:
        lane = self.lane(folder)
        lane.failures += 1
        now = trio.current_time()
        lane.again = now + growing(READ_PAUSE_S, lane.failures, LONGEST_READ_PAUSE_S)
        lane.until = now + growing(FOLDER_PAUSE_S, lane.failures, LONGEST_FOLDER_PAUSE_S)

    def readable(self, folder: "StagingDir") -> None:
        lane = self.lane(folder)
        lane.failures, lane.again, lane.until = 0, 0.0, 0.0


def _since(block: "Staged") -> float:
    return block.since
