"""Writeback's books: which blocks are staged, which of them is to be uploaded next, and whether one more may be staged.

Strategy: the state lives on the trio loop, and so do file calls on small blocks where the disk is one that the loop waits for
anyway; others go to threads (`disk_threads`).  The oldest block is due first
(`upload_queue`), once `--upload-delay` and `--upload-hours` let it, and then once the writers of the moment do (`pacing`); a disk
that runs full, and a mount that is being drained, override all three.  A block stays in the books until the store has it for
good (`uploader` sees to that) or until it is removed.

What is not staged goes to the store at once: while the folder's disk is short of room (half of `--free-space-ratio`), fails or hangs,
while `--max-stage-write` blocks are being staged already, and while the mount is drained.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import trio

from jfs.chunk.cache import DiskCache
from jfs.chunk.disk_threads import Hangs
from jfs.chunk.hours import parse_hours
from jfs.chunk.options import ChunkOptions
from jfs.chunk.pacing import Pace
from jfs.chunk.staging_dir import Found, StagingDir
from jfs.chunk.stats import StagingCounts
from jfs.chunk.upload_queue import UploadQueue
from jfs.errors import StoreError
from jfs.object.store import Buffer
from jfs.units import show_size

PRESSED: Final = 0.5
"""Of `--free-space-ratio`: with less than that free nothing more is staged (the peer's figure)."""

CROWDED: Final = 0.5
"""Of `--max-stage-write`: with more blocks being staged at once uploads no longer yield."""

REST_S: Final = 1.0
LONGEST_REST_S: Final = 60.0
"""So long a folder that failed gets no new blocks; doubled with each failure in a row."""

MOST_AT_ONCE: Final = 32
"""Small blocks that one thread uploads in a row."""

log = logging.getLogger(__name__)


class Staged:
    """A block that is staged."""

    __slots__ = (
        "attempted",
        "dropped",
        "failures",
        "folder",
        "key",
        "since",
        "size",
        "ticket",
        "uploaded_before",
        "uploading",
    )

    def __init__(self, folder: StagingDir, key: str, size: int, since: float, *, attempted: bool) -> None:
        self.folder = folder
        self.key = key
        self.size = size
        self.since = since
        self.attempted = attempted
        """The store may have the object already."""
        self.uploading = False
        self.dropped = False
        self.ticket = 0
        """Of its entry in the queue; an entry with another ticket is void."""
        self.failures = 0
        self.uploaded_before = 0
        """How many blocks the mount had uploaded when this failed last."""


class _Rest:
    """A folder that failed is left alone for a while."""

    __slots__ = ("failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0


class Staging:
    """The staged blocks of one mount."""

    def __init__(self, cache: DiskCache, options: ChunkOptions, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives unix seconds."""
        self._cache = cache
        self._options = options
        self._clock = clock
        self._hours = parse_hours(options.upload_hours)
        checksums = options.verify_cache_checksum != "none"
        self._dirs = {
            each.folder: StagingDir(each, mode=options.cache_mode, checksums=checksums) for each in cache.dirs
        }
        self._rests = {folder: _Rest() for folder in self._dirs}
        self._blocks: dict[str, Staged] = {}
        self._queue = UploadQueue(self._wait)
        self._busy: set[Staged] = set()
        self._moving: set[str] = set()
        """Perhaps on the disk, and on their way into the books or out of them: a scan passes them by."""
        self._doomed: dict[str, StagingDir | None] = {}
        """Those of them that were deleted, until their files have gone; and where they lie, if that is known."""
        self._due = trio.lowlevel.ParkingLot()
        self._settled = trio.lowlevel.ParkingLot()
        self._pace = Pace()
        self._short = False
        """A disk has less than `--free-space-ratio` free: uploads no longer yield."""
        self._pressed = False
        """It has so little that nothing more is staged, and no delay counts."""
        self._quiet_until = 0.0
        """The log has just been told of that."""
        self.scanned = False
        """Whether the books hold all that earlier mounts left."""
        self.draining = False
        self.counts = StagingCounts()

    # -- what is staged

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: str) -> bool:
        return key in self._blocks

    def get(self, key: str) -> Staged | None:
        return self._blocks.get(key)

    @property
    def dirs(self) -> list[StagingDir]:
        return list(self._dirs.values())

    def oldest(self) -> Staged | None:
        """The block that waits for the longest time."""
        waiting = self._queue.oldest()
        return min((*self._busy, *([] if waiting is None else [waiting])), key=_since, default=None)

    def age(self, block: Staged) -> float:
        """Seconds since it was staged."""
        return max(self._clock() - block.since, 0.0)

    def snapshot(self) -> StagingCounts:
        """The counters, with what is staged right now."""
        oldest = self.oldest()
        self.counts.blocks = len(self._blocks)
        self.counts.oldest_s = 0.0 if oldest is None else self.age(oldest)
        return self.counts

    def say_what_stays(self) -> None:
        """At the end of the mount."""
        if self._blocks:
            log.warning(
                "%d blocks (%s) are staged and not uploaded yet: the next mount with this cache folder does it",
                len(self._blocks),
                show_size(self.counts.bytes),
            )

    # -- staging

    async def put(self, key: str, data: Buffer, *, inline: bool) -> bool:
        """Stage the block, on the loop if it may be `inline`.  False: it was not, and has to go to the store at once."""
        attempted = key in self._blocks and await self.make_way(key)
        folder = self._folder_for(key, len(data))
        if folder is None or key in self._moving:
            return False
        self._pace.staged(self._clock())
        self.counts.writing += 1
        self._moving.add(key)

        def over(done: bool) -> None:
            self._moving.discard(key)
            if done:
                self._has_staged(folder, key, len(data), attempted=attempted)

        try:
            if inline and folder.cache.disk == self._options.loop_disk:
                done = False
                try:
                    folder.write(key, data)
                    done = True
                finally:
                    over(done)
            else:
                undo = partial(folder.remove, key)
                await folder.disk.run(folder.write, key, data, writes=True, undo=undo, over=over)
        except OSError as error:
            if not isinstance(error, Hangs) or error.first:
                self.rest(folder, f"stage {key}", error)
            return False
        finally:
            self.counts.writing -= 1
        return True

    def _has_staged(self, folder: StagingDir, key: str, size: int, *, attempted: bool) -> None:
        self._rests[folder.cache.folder].failures = 0
        self.counts.write_bytes += size
        now = self._clock()
        self._pace.staged(now)
        self._add(Staged(folder, key, size, now, attempted=attempted))

    async def make_way(self, key: str) -> bool:
        """Forget the staged block that has the key of a new one, with its file; whether the store may have its object.

        It is the same block, put again, or one of a slice that a power cut took: its upload must not come after the new one's.
        """
        block = self._blocks.get(key)
        if block is None:
            return False
        await self.wait_upload(block)
        if not block.dropped:
            self._drop(block)
            try:
                await block.folder.disk.run(block.folder.remove, key)
            except OSError as error:  # the key stays among those that a scan passes by
                self.rest(block.folder, f"remove {key}", error)
            else:
                self.left([key])
        return block.attempted

    def _folder_for(self, key: str, size: int) -> StagingDir | None:
        options = self._options
        if not options.writeback or self.draining or size >= (options.writeback_threshold_size or size + 1):
            return None
        if 0 < options.max_stage_write <= self.counts.writing:
            return None
        home = self._cache.home(key)
        if home is None or self._rests[home.folder].until > self._clock():
            return None
        folder = self._dirs[home.folder]
        return folder if not folder.disk.hangs and self._has_room(folder) else None

    def _has_room(self, folder: StagingDir) -> bool | None:
        """Whether its disk has enough for staging; None: it does not say, and rests."""
        try:
            free = folder.free_share()
        except OSError as error:
            self.rest(folder, "look for free space", error)
            return None
        wanted = self._options.free_space_ratio
        short, pressed = free < wanted, free < wanted * PRESSED
        if short > self._short or pressed > self._pressed:
            if pressed > self._pressed and self._clock() >= self._quiet_until:
                self._quiet_until = self._clock() + LONGEST_REST_S
                path, needed = folder.cache.folder, 100 * wanted * PRESSED
                log.warning(
                    "staging folder %s: less than %g%% of its disk is free: blocks go to the store", path, needed
                )
            self._short |= short
            self._pressed |= pressed
            self._due.unpark_all()  # what is staged makes room
        return not pressed

    def look_for_room(self) -> None:
        """Now and then: whether a disk is still, or again, short of room."""
        if self._blocks:
            now = self._clock()
            awake = [
                folder for path, folder in self._dirs.items() if folder.cache.usable and self._rests[path].until <= now
            ]
            before, self._short = self._pressed, False
            roomy = [room for folder in awake if (room := self._has_room(folder)) is not None]
            if roomy:
                self._pressed = not all(roomy)
            if before > self._pressed:
                log.info("there is room for staged blocks again")

    def rest(self, folder: StagingDir, what: str, error: OSError | StoreError) -> None:
        """The folder failed: nothing is staged in it for a while; what lies there stays."""
        self.counts.errors += 1
        rest = self._rests[folder.cache.folder]
        pause = min(REST_S * 2.0 ** min(rest.failures, 10), LONGEST_REST_S)
        rest.failures += 1
        rest.until = self._clock() + pause
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        level = logging.INFO if full and rest.failures > 1 else logging.WARNING
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        log.log(level, "staging folder %s: %s: %s; blocks go to the store", folder.cache.folder, what, reason)

    def _add(self, block: Staged) -> None:
        self._blocks[block.key] = block
        self.counts.bytes += block.size
        self._enqueue(block)

    def _enqueue(self, block: Staged) -> None:
        # Behind another nobody has to look: whoever waits for that one calls the next.
        if self._queue.add(block) or self._wait_for_next() <= 0:
            self._due.unpark()

    def take_over(self, folder: StagingDir, found: Found) -> bool:
        """Enter what lies in the folder and is not in the books: an earlier mount's, or another's of the same folder."""
        known = found.key in self._blocks or found.key in self._moving
        if known or not os.path.exists(folder.path(found.key)):
            return False  # or uploaded or removed since it was found
        self._add(Staged(folder, found.key, found.size, found.since, attempted=True))
        return True

    # -- uploading

    async def next_due(self, most_bytes: int = 0) -> list[Staged]:
        """The oldest block that nobody uploads, once it is due, and those after it up to `most_bytes` in all.

        Give each back, or settle it.
        """
        while (wait := self._wait_for_next()) > 0:
            with trio.move_on_after(wait):
                await self._due.park()
        found: list[Staged] = []
        left = most_bytes
        while (block := self._queue.next()[1]) is not None and (not found or block.size <= left):
            left -= block.size
            found.append(block)
            self.claim(block)
            if len(found) == MOST_AT_ONCE or self._queue.fails(block.folder):
                break
        if self._queue:
            self._due.unpark()
        return found

    def _wait_for_next(self) -> float:
        return self._queue.next()[0]

    def _wait(self, block: Staged) -> float:
        """Seconds until the block may be uploaded."""
        options = self._options
        if self.draining or self._pressed or not options.writeback:
            return 0.0
        now = self._clock()
        delay = options.upload_delay
        left = min(max(block.since + delay - now, 0.0), delay)  # a clock that was set back delays nothing further
        wait = max(left, self._hours.wait(now + left) + left if self._hours is not None else 0.0)
        crowded = self.counts.writing > options.max_stage_write * CROWDED > 0
        if wait > 0 or self._short or crowded:
            return wait
        return self._pace.wait(now, block.since + delay, len(self._busy))

    def give_back(self, block: Staged) -> None:
        """The upload did not take place: the block waits for another."""
        self._end_upload(block)
        if not block.dropped:
            self._enqueue(block)

    def put_off(self, block: Staged, *, unreadable: bool = False) -> None:
        """The upload failed, in the store or because the block is `unreadable`: the others come first for a while."""
        if unreadable:
            self._queue.unreadable(block.folder)
        if not block.dropped:
            self._queue.put_off(block, unreadable=unreadable)
        self._end_upload(block)

    def was_read(self, block: Staged) -> None:
        """Its folder is sound."""
        self._queue.readable(block.folder)

    def settle(self, block: Staged) -> None:
        """The block is out of the books: the store has it, or it is no block at all.  Its file goes next: `left`."""
        self._queue.succeeded()
        self._end_upload(block)
        self._drop(block)

    def _end_upload(self, block: Staged) -> None:
        block.uploading = False
        if block in self._busy:
            self._busy.discard(block)
            self._queue.ended(block)
        self._pace.ended(self._clock())
        self._settled.unpark_all()
        if self._queue:
            self._due.unpark()

    def give_all_back(self) -> None:
        """Nobody uploads any more."""
        for block in list(self._busy):
            self.give_back(block)

    def _drop(self, block: Staged) -> None:
        if not block.dropped:
            block.dropped = True
            block.ticket = 0
            del self._blocks[block.key]
            self._queue.sweep(len(self._blocks))
            self._moving.add(block.key)
            self.counts.bytes -= block.size

    def left(self, keys: Iterable[str]) -> None:
        """The files of these blocks are gone; those of deleted ones that `unlink` has not removed are not."""
        self._moving.difference_update(set(keys) - self._doomed.keys())

    def is_moving(self, key: str) -> bool:
        """Whether the block's file may be there though it is not in the books."""
        return key in self._moving

    async def wait_upload(self, block: Staged) -> None:
        """Return once nobody uploads the block."""
        while block.uploading:
            await self._settled.park()

    def claim(self, block: Staged) -> None:
        """Upload the block out of turn.  Give it back, or settle it."""
        block.uploading = block.attempted = True
        self._busy.add(block)
        self._queue.started(block)

    def hurry(self, folder: StagingDir) -> None:
        """The folder is in use again: what failed there may be tried now."""
        self._queue.hurry(folder)
        self._due.unpark()

    def drain(self, *, on: bool) -> None:
        """From now on stage nothing, and upload everything at once; or the end of that."""
        self.draining = on
        if on:
            self._queue.hurry()
            self._due.unpark_all()

    # -- removing

    async def discard(self, keys: Iterable[str]) -> tuple[set[str], set[str]]:
        """Take deleted blocks out of the books: the keys to `unlink`, and those that the store was never given.

        The caller says when their files have `left`; if that fails, discarding them again gives the same keys to `unlink`.
        """
        gone: set[str] = set()
        never: set[str] = set()
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                if not self.scanned or key in self._moving:  # perhaps it lies there
                    gone.add(key)
                    self._moving.add(key)
                    self._doomed.setdefault(key, None)
                continue
            await self.wait_upload(block)
            if not block.dropped:
                self._drop(block)
                gone.add(key)
                self._doomed[key] = block.folder
                if not block.attempted:
                    never.add(key)
        return gone, never

    def unlink(self, key: str) -> bool:
        """Remove a deleted block's staged file, wherever it lies; whether there was one.  Blocking.  Raises OSError.

        A folder that is out of use is passed by unless the block is known to lie there: if it does, `gc` finds its object.
        """
        home = self._doomed.get(key)
        looked = [folder for folder in self._dirs.values() if folder.cache.usable or folder is home]
        removed = [folder.remove(key) for folder in looked]
        self._doomed.pop(key, None)
        return any(removed)


def _since(block: Staged) -> float:
    return block.since
