"""One folder of staged blocks, in the peer's layout: blocking calls on files, with no state but what the disk holds.

`{folder}/rawstaging/{object key}` holds the block's plain bytes and their checksum tail; it gets its name when it is whole.
`{folder}/raw/{object key}` is a second link to the same file: readers find it there as any cached block, and it stays when the
block is uploaded and the first link goes.  A file that cannot be its block (a power cut before anybody's fsync) is moved to
`rawdamaged/`: it is not data, and nobody uploads it.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from jfs.chunk import checksum
from jfs.chunk.cache_dir import LEFTOVER_AGE_S, CacheDir
from jfs.chunk.disk_threads import DiskThreads
from jfs.chunk.folders import STAGED, free_of, make_private, walk
from jfs.chunk.layout import parse_name
from jfs.errors import BadObject, StoreError
from jfs.object.file import FileStore, publish
from jfs.object.store import Buffer

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL

log = logging.getLogger(__name__)


class Found(msgspec.Struct, frozen=True, gc=False):
    """A staged block as found on the disk; `since` is when it was staged, unix seconds."""

    key: str
    size: int
    since: float


class FolderGone(OSError):
    """The folder is not there any more: its disk is not mounted, or somebody has deleted it.  What was staged may come back."""


class StagingDir:
    """The staged blocks of one cache folder.  Safe to share between threads, but for `disk`."""

    def __init__(self, cache: CacheDir, *, mode: int, checksums: bool) -> None:
        self.cache = cache
        self._mode = mode
        self._checksums = checksums
        self._root = f"{cache.folder}/{STAGED}/"
        self._flusher = FileStore(self._root)
        self.disk = DiskThreads()

    def path(self, key: str) -> str:
        return self._root + key

    def require(self) -> None:
        """Raises FolderGone, OSError.  Only where the folder is there does a file that is missing mean anything."""
        if not self.cache.is_ours():
            raise FolderGone(errno.ENODEV, "the cache folder has gone", self.cache.folder)

    def write(self, key: str, data: Buffer, wanted: Callable[[], bool] = lambda: True) -> None:
        """Stage the block; it survives this process, and with `sync` the power.  Raises OSError, and leaves nothing then.

        ECANCELED if it is not `wanted` any more once it is written.
        """
        path = self._root + key
        temp = f"{path}.tmp"
        tail = checksum.tail_of(data) if self._checksums else b""
        publish(self._create(temp), temp, path, data, tail, mode=self._mode, wanted=wanted)
        try:
            self._link(key)
        except OSError as error:  # it is staged all the same, and `load` finds it
            log.warning("staged block %s is not in the cache: %s", path, error.strerror)
        else:
            self.cache.adopt(key, len(data))

    def _create(self, temp: str) -> int:
        try:
            return os.open(temp, _NEW, self._mode)
        except FileNotFoundError:
            self.require()
            make_private(os.path.dirname(temp))
            self._flusher.forget_folders()
            return os.open(temp, _NEW, self._mode)

    def _link(self, key: str) -> None:
        cached = self.cache.path(key)
        try:
            os.link(self._root + key, cached)
        except FileNotFoundError:
            self.require()
            make_private(os.path.dirname(cached))
            os.link(self._root + key, cached)
        except FileExistsError:  # perhaps another block: of a slice that a power cut took, and whose id was drawn again
            self.cache.remove(key)
            os.link(self._root + key, cached)

    def load(self, key: str, size: int) -> bytes:
        """The staged block, verified.  Raises FileNotFoundError, OSError, and BadObject for what cannot be the block."""
        return _load(self._root + key, size)

    def load_cached(self, key: str, size: int) -> bytes:
        """The same from the second link."""
        return _load(self.cache.path(key), size)

    def remove(self, key: str) -> bool:
        """Forget the staged link; the cached one stays.  False: there was none.  Raises OSError."""
        try:
            os.unlink(self._root + key)
        except FileNotFoundError:
            return False
        return True

    def set_aside(self, key: str) -> str:
        """Move a file that is no block out of the way, with its cached link; where it is now.  Raises OSError."""
        aside = f"{self.cache.folder}/rawdamaged/{key}"
        self.require()
        if os.path.lexists(self._root + key):
            make_private(os.path.dirname(aside))
        os.rename(self._root + key, aside)
        self.cache.remove(key)
        return aside

    def sync(self, keys: Iterable[str]) -> None:
        """Make those of the blocks that are staged here durable, with their names.  Raises StoreError."""
        self._flusher.sync(keys)
        try:
            self.require()  # else the files that it passed by were not removed
        except OSError as error:
            raise StoreError(f"sync {self._root}: {error.strerror}") from error

    def sync_all(self) -> None:
        """The same for all that is staged here, whoever did it.  Raises StoreError."""
        self._flusher.sync_all()

    def scan(self, failed: Callable[[str, OSError], None]) -> Iterator[Found]:
        """What is staged, but for what cannot be read: `failed` hears of that.  Temporary files that nobody is writing go."""
        for key, found in walk(self._root, failed=failed):
            if key.endswith(".tmp"):
                if time.time() - found.st_mtime > LEFTOVER_AGE_S:
                    with contextlib.suppress(OSError):
                        os.unlink(self._root + key)
                continue
            name = parse_name(key)
            if name is not None:
                yield Found(key, name.size, found.st_mtime)

    def free_share(self) -> float:
        """The part of the disk's space or inodes that is free, whichever is less.  Raises OSError."""
        return min(free_of(self.cache.folder))


def _load(path: str, size: int) -> bytes:
    data = checksum.read_part(path, size, 0, size, "full")
    if data is None:
        raise BadObject(f"{path} is not a block of {size} bytes with its checksums")
    return data
