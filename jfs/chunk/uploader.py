"""Brings staged blocks to the store, in the background, until the store has them for good.

Order.  A staged file goes only when its object is as durable as the file was: a block that somebody's fsync has acknowledged is
flushed in the store first (remote stores: put means stored); one that nobody has asked for yet is left to the next sync.

A store that fails is asked again and again, by each worker after a short pause that grows to 1 s; the log says so at most each
minute.  A block that failed is put off for a growing time while others go on.  One that cannot be a block (see `staging_dir`) is
moved aside; one whose file is gone was uploaded by another mount of the same folder, or is looked for behind its second link.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

import trio

from jfs.chunk.disk_threads import FlushHangs, Hangs
from jfs.chunk.options import ChunkOptions
from jfs.chunk.staging import Staged, Staging
from jfs.chunk.staging_dir import FolderGone, Found, StagingDir
from jfs.chunk.stats import ChunkStats
from jfs.errors import BadObject, StoreError
from jfs.object.retry import delay_after
from jfs.object.store import Buffer
from jfs.units import show_size

RESCAN_S: Final = 3600.0
SCAN_AGAIN_S: Final = 5.0
"""So soon what could not be read is looked for again; doubled each time, up to the former."""

FLUSH_PATIENCE_S: Final = 60.0
"""A flush may have much to write; commits wait for it."""

LOOK_S: Final = 10.0
REPORT_S: Final = 60.0
TIDY_S: Final = 10.0
LONGEST_TIDY_S: Final = 600.0
"""So soon, at first and at last, files are removed that would not go after their upload."""

STALE_S: Final = 3600.0
"""A block that is staged for so long after it could have been uploaded is worth a warning."""

STALE_REPORT_S: Final = 3600.0
LOCAL_WORKERS: Final = 2
LOCAL_AT_ONCE: Final = 4 << 20
"""A folder takes blocks faster with fewer threads, which get several small ones at once: more of both only slow the mount down."""

TURN: Final = 1000
DAY_S: Final = 86400.0

log = logging.getLogger(__name__)


class Target:
    """The part of the block store that uploading needs; blocking calls, without patience of their own."""

    def __init__(
        self,
        put: Callable[[str, Buffer], None],
        exists: Callable[[str], bool],
        flush: Callable[[Iterable[str]], None],
        unsynced: Callable[[str], bool],
        stats: ChunkStats,
        *,
        local: bool,
    ) -> None:
        self.put = put
        self.exists = exists
        self.flush = flush
        self.unsynced = unsynced
        """Whether the key waits for a sync in which the store would flush it.  For the loop."""
        self.stats = stats
        self.local = local
        """The store is a folder of this machine: it is the processor that counts, not the way to the store."""


class Uploader:
    """The background of one mount's staging."""

    def __init__(self, staging: Staging, target: Target, options: ChunkOptions) -> None:
        self._staging = staging
        self._target = target
        # Not those of what goes past the staging folders: it must not wait for a disk that hangs.
        self._limiter = trio.CapacityLimiter(options.max_uploads)
        self._workers = min(options.max_uploads, LOCAL_WORKERS) if target.local else options.max_uploads
        self._at_once = LOCAL_AT_ONCE if target.local else 0
        self._stale_s = STALE_S + options.upload_delay + (DAY_S if options.upload_hours else 0.0)
        self._lost: set[str] = set()
        """Staged blocks of which a flush has failed: the kernel may have dropped their pages."""
        self._uploaded: list[Staged] = []
        self._behind: list[Staged] = []
        """Uploaded, and their staged files could not be removed."""
        self._finishing = trio.lowlevel.ParkingLot()
        self._failures = 0
        self._complained = False
        self._reported: dict[str, float] = {}
        self._stale_reported = float("-inf")
        self._opened = {folder: folder.cache.openings for folder in staging.dirs}
        self._reopened = trio.Event()

    async def run(self) -> None:
        """Until cancelled; an upload under way is then left to whoever comes next."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._workers):
                    nursery.start_soon(self._work)
                nursery.start_soon(self._finish)
                nursery.start_soon(self._tidy)
                nursery.start_soon(self._watch)
                await self._scan()
        finally:
            self._uploaded.clear()
            self._staging.give_all_back()

    # -- uploading

    async def _work(self) -> None:
        while True:
            blocks = await self._staging.next_due(self._at_once)
            self._target.stats.uploading += 1
            try:
                worked = await self._try(blocks)
            finally:
                self._target.stats.uploading -= 1
            if not worked:
                await trio.sleep(delay_after(self._failures))

    async def _try(self, blocks: list[Staged]) -> bool:
        """Upload some blocks; False: the store failed, and may need a pause."""
        done = await trio.to_thread.run_sync(
            self._transfer_until_failure, blocks, limiter=self._limiter, abandon_on_cancel=True
        )
        for block in blocks[len(done) :]:
            self._staging.give_back(block)
        for block, error in zip(blocks, done, strict=False):
            if not isinstance(error, OSError):
                self._staging.was_read(block)
            if error is None:
                self._succeeded()
                self._uploaded.append(block)
                self._finishing.unpark()
            elif isinstance(error, BadObject):
                await self._set_aside(block, error)
            else:
                self._failed(block, error)
        return not any(isinstance(error, StoreError) and not isinstance(error, BadObject) for error in done)

    def _transfer_until_failure(self, blocks: list[Staged]) -> list[Exception | None]:
        """What came of each block; fewer than there are blocks where one failed: the rest was not tried."""
        done: list[Exception | None] = []
        for block in blocks:
            try:
                self._transfer(block)
                done.append(None)
            except BadObject as error:
                done.append(error)
            except (StoreError, OSError) as error:
                done.append(error)
                break
        return done

    def _transfer(self, block: Staged) -> None:
        try:
            data = block.folder.load(block.key, block.size)
        except FileNotFoundError:
            block.folder.require()
            if self._target.exists(block.key):
                return  # another mount of this cache folder was here
            try:
                data = block.folder.load_cached(block.key, block.size)
            except FileNotFoundError:
                block.folder.require()
                raise BadObject(f"{block.folder.path(block.key)} is gone, and the store has no such object") from None
        self._target.put(block.key, data)

    async def upload(self, block: Staged) -> None:
        """Bring this block to the store now, durably.  Raises StoreError."""
        await self._staging.wait_upload(block)
        if block.dropped:
            return
        self._staging.claim(block)
        try:
            await trio.to_thread.run_sync(self._transfer, block, limiter=self._limiter)
            await trio.to_thread.run_sync(self._target.flush, [block.key])
        except OSError as error:
            self._staging.give_back(block)
            raise StoreError(f"staged block {block.key}: {error.strerror}") from error
        except BaseException:
            self._staging.give_back(block)
            raise
        self._done(block)
        await self._unlink([block])

    async def sync(self, blocks: list[Staged]) -> None:
        """Make these blocks durable where they are staged; what a failing disk may lose goes to the store.

        Raises StoreError; FlushHangs for those that lie on a disk that does not answer.
        """
        hanging: set[str] = set()
        for folder, those in _by_folder(blocks).items():
            lost: set[str] = set()
            keys = {block.key for block in those}
            try:
                await folder.disk.run(self._flush_staged, folder, keys, patience_s=FLUSH_PATIENCE_S)
                lost = keys & self._lost
            except Hangs as error:
                if error.first:
                    self._staging.rest(folder, "flush", error)
                hanging |= keys
            except StoreError as error:
                log.error("flushing %d staged blocks: %s; they go to the store now", len(those), error)
                self._staging.rest(folder, "flush", error)
                lost = keys
            for block in those:
                if block.key in lost:
                    await self.upload(block)
            self._lost -= lost
        if hanging:
            raise FlushHangs(f"the disk of {len(hanging)} staged blocks does not answer", hanging)

    def _flush_staged(self, folder: StagingDir, keys: set[str]) -> None:
        """By a thread, for which nobody may wait any more when it fails: no later flush of these makes that good."""
        try:
            folder.sync(keys)
        except StoreError:
            self._lost |= keys
            raise

    def _failed(self, block: Staged, error: Exception) -> None:
        unreadable = isinstance(error, OSError)
        self._staging.put_off(block, unreadable=unreadable)
        self._staging.counts.errors += 1
        self._failures += not unreadable
        if self._may_report("unreadable" if unreadable else "refused"):
            self._complained |= not unreadable
            log.warning("staged block %s cannot be uploaded yet: %s (%s)", block.key, error, self._waiting())

    def _may_report(self, what: str) -> bool:
        """Once a minute."""
        now = trio.current_time()
        due = now - self._reported.get(what, float("-inf")) >= REPORT_S
        if due:
            self._reported[what] = now
        return due

    def _succeeded(self) -> None:
        self._failures = 0
        if self._complained:
            self._complained = False
            log.info("staged blocks are uploaded again (%s)", self._waiting())

    def _waiting(self) -> str:
        counts = self._staging.snapshot()
        return f"{counts.blocks} blocks, {show_size(counts.bytes)}, wait, the oldest for {counts.oldest_s:.0f} s"

    async def _set_aside(self, block: Staged, error: BadObject) -> None:
        try:
            aside = await trio.to_thread.run_sync(block.folder.set_aside, block.key)
        except FolderGone as gone:
            self._failed(block, gone)
            return
        except FileNotFoundError:
            log.error("staged block %s is lost: %s", block.key, error)
        except OSError as failure:
            log.error("staged block %s is no block: %s; moving it aside: %s", block.key, error, failure.strerror)
        else:
            log.error("staged block %s is no block: %s; moved to %s", block.key, error, aside)
        self._staging.counts.errors += 1
        self._staging.settle(block)
        self._staging.left([block.key])

    # -- after the upload

    async def _finish(self) -> None:
        """Let go of staged files whose objects are safe; whatever was uploaded meanwhile shares one flush."""
        while True:
            while not self._uploaded:
                await self._finishing.park()
            batch, self._uploaded = self._uploaded, []
            # Who is still to be synced becomes the store's business here and now, in one step with the books.
            first: list[Staged] = []
            later: list[Staged] = []
            for block in batch:
                if self._target.unsynced(block.key):
                    self._done(block)
                    later.append(block)
                else:
                    first.append(block)
            try:
                await trio.to_thread.run_sync(self._flush, first)
            except StoreError as error:
                for block in first:
                    self._failed(block, error)
            else:
                for block in first:
                    self._done(block)
                later += first
            await self._unlink(later)

    async def _unlink(self, blocks: list[Staged]) -> None:
        """Remove the staged files of uploaded blocks; those that stay are tried again."""
        failures: dict[Staged, OSError] = {}
        for folder, those in _by_folder(blocks).items():
            try:
                failures |= await folder.disk.run(_unlink, those)
            except Hangs as hangs:
                failures |= dict.fromkeys(those, hangs)
        self._staging.left([block.key for block in blocks if block not in failures])
        self._behind += failures
        if failures and self._may_report("behind"):
            block, error = next(iter(failures.items()))
            log.warning("%d staged files stay behind after their upload: %s: %s", len(failures), block.key, error)

    async def _tidy(self) -> None:
        """Remove what stayed behind.  If it never goes the next mount uploads it once more: harmless."""
        pause = TIDY_S
        while True:
            await trio.sleep(pause)
            before, self._behind = self._behind, []
            if before:  # but for what was deleted meanwhile, with its file
                await self._unlink([block for block in before if self._staging.is_moving(block.key)])
            pause = TIDY_S if len(self._behind) < max(len(before), 1) else min(2 * pause, LONGEST_TIDY_S)

    def _flush(self, blocks: list[Staged]) -> None:
        if blocks:
            self._target.flush([block.key for block in blocks])

    def _done(self, block: Staged) -> None:
        self._staging.counts.delay_s += self._staging.age(block)
        self._staging.settle(block)

    # -- watching

    async def _scan(self) -> None:
        """Now and then, and when a folder has come back."""
        pause = SCAN_AGAIN_S
        while True:
            self._reopened = trio.Event()
            whole = await self._take_over()
            with trio.move_on_after(RESCAN_S if whole else pause):
                await self._reopened.wait()
            pause = SCAN_AGAIN_S if whole or self._reopened.is_set() else min(2 * pause, RESCAN_S)

    async def _take_over(self) -> bool:
        """Find what lies in the folders: of a mount that ended, or of one beside this; whether all could be read."""
        whole = True
        for folder in self._staging.dirs:
            found, failures = await trio.to_thread.run_sync(_scan, folder, abandon_on_cancel=True)
            if failures:
                whole = False
                self._staging.counts.errors += 1
                log.warning("looking for staged blocks: %s (and %d more such places)", failures[0], len(failures) - 1)
            count = size = 0
            for number, block in enumerate(found, 1):
                if self._staging.take_over(folder, block):
                    count, size = count + 1, size + block.size
                if number % TURN == 0:
                    await trio.lowlevel.checkpoint()
            if count:
                log.info("%d staged blocks (%s) found in %s", count, show_size(size), folder.cache.folder)
        self._staging.scanned |= whole
        return whole

    def _look_for_returns(self) -> None:
        """A folder may be in use again that was not: what lies there can be uploaded, and may not be known."""
        for folder, before in self._opened.items():
            if folder.cache.openings != before:
                self._opened[folder] = folder.cache.openings
                self._staging.hurry(folder)
                self._reopened.set()

    async def _watch(self) -> None:
        """Say when blocks stay staged for too long."""
        while True:
            await trio.sleep(LOOK_S)
            self._staging.look_for_room()
            self._look_for_returns()
            oldest = self._staging.oldest()
            late = oldest is not None and self._staging.age(oldest) > self._stale_s
            if late and oldest is not None and trio.current_time() - self._stale_reported >= STALE_REPORT_S:
                self._stale_reported = trio.current_time()
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(oldest.since))
                log.warning("block %s is staged since %s and not uploaded (%s)", oldest.key, since, self._waiting())


def _scan(folder: StagingDir) -> tuple[list[Found], list[str]]:
    """What is staged, oldest first; and what could not be read, with the reasons."""
    failures: list[str] = []

    def failed(path: str, error: OSError) -> None:
        failures.append(f"{path}: {error.strerror or error}")

    found = sorted(folder.scan(failed), key=lambda found: found.since)
    try:
        folder.require()
    except OSError as error:
        failed(folder.cache.folder, error)
    return found, failures


def _by_folder(blocks: list[Staged]) -> dict[StagingDir, list[Staged]]:
    folders: dict[StagingDir, list[Staged]] = {}
    for block in blocks:
        folders.setdefault(block.folder, []).append(block)
    return folders


def _unlink(blocks: list[Staged]) -> dict[Staged, OSError]:
    """Remove the staged files; those that stay, or that may be there again when their folder is."""
    failures: dict[Staged, OSError] = {}
    for block in blocks:
        try:
            block.folder.remove(block.key)
        except OSError as error:
            failures[block] = error
        else:
            block.folder.cache.released(block.key)
    for folder in {block.folder for block in blocks}:
        try:
            folder.require()
        except OSError as error:
            failures |= {block: error for block in blocks if block.folder is folder}
    return failures
