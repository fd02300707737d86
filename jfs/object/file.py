"""Objects as files under a folder, laid out as the peer lays them out: `{root}{key}`.

Strategy: an object appears by rename from `.jfs.{base}.tmp.{random}` in its own folder, so no reader ever sees half of one,
and a put that fails takes its temporary file away.  What a killed process left shows in listings after an hour, so that gc
finds it.  Nothing is flushed by put; `sync` is what makes objects durable, and it
pays once for many.
"""

import contextlib
import ctypes
import errno
import itertools
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn

from jfs.errors import ObjectMissing, StoreError, StoreFull, UserError
from jfs.object.store import Buffer, Errand, ObjectInfo

TEMP_PREFIX: Final = ".jfs."
TEMP_MARK: Final = ".tmp."

# No put takes so long: a temporary file of that age was left by a process that died.
LEFT_BEHIND_S: Final = 3600

# From this many objects on, one syncfs(2) costs less than flushing them (and their folders) one by one.
SYNCFS_FROM: Final = 8

# Disks may be mounted at folders so far below the root: a volume's own, chunks/ in it, and those in chunks/.
DISKS_ABOVE: Final = 3

_libc = ctypes.CDLL(None, use_errno=True)


def is_temporary(name: str) -> bool:
    """A put in progress, or left behind by a killed process."""
    return name.startswith(TEMP_PREFIX) and TEMP_MARK in name


def raise_store_error(error: OSError, key: str) -> NoReturn:
    """The OS's answer in the store's words."""
    message = f"{key}: {error.strerror or error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        raise ObjectMissing(message) from error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StoreFull(message) from error
    raise StoreError(message) from error


def syncfs(fd: int) -> None:
    """Flush the whole file system that `fd` is on; since Linux 5.8 it also reports write-back errors."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def publish(
    fd: int,
    temp: str,
    path: str,
    *parts: Buffer,
    mode: int | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Fill the new file `temp`, close it and give it its name, with these permissions; a failure leaves neither.

    It gets no name if it is not `wanted` any more once it is whole: ECANCELED.
    """
    try:
        try:
            if mode is not None:
                os.fchmod(fd, mode)
            for part in parts:
                write_all(fd, part)
        finally:
            os.close(fd)
        if not wanted():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED), path)
        os.rename(temp, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
        raise


def write_all(fd: int, data: Buffer) -> None:
    """write(2) until everything is written."""
    written = os.write(fd, data)
    if written == len(data):
        return
    with memoryview(data) as whole:
        while written < len(whole):
            written += os.write(fd, whole[written:])


class FileStore:
    """The `file` storage.  Safe to share between threads."""

    def __init__(self, root: str) -> None:
        if not root.startswith("/"):
            raise UserError(f"file storage needs an absolute path, not {root!r}")
        self._root = root
        self._durable_folders: set[str] = set()
        self._serial = itertools.count(random.getrandbits(30))
        self._lock = threading.Lock()

    def describe(self) -> str:
        return f"file://{self._root}" if self._root.endswith("/") else f"file://{self._root}/"

    def create(self) -> None:
        try:
            os.makedirs(self._root, mode=0o777, exist_ok=True)
        except OSError as error:
            raise StoreError(f"create {self._root}: {error.strerror}") from error

    def local_path(self, key: str) -> str | None:
        return self._root + key

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            fd = os.open(self._root + key, os.O_RDONLY)
            try:
                if length is None:
                    length = max(os.fstat(fd).st_size - offset, 0)
                return _read_range(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise_store_error(error, key)

    def errand(self, key: str, size: int) -> Errand | None:
        """None: whoever cannot wait reads the file at `local_path`."""
        return None

    def put(self, key: str, data: Buffer) -> None:
        path = self._root + key
        folder, base = os.path.split(path)
        temp = f"{folder}/{TEMP_PREFIX}{base[:200]}{TEMP_MARK}{next(self._serial)}{random.getrandbits(16)}"
        try:
            publish(self._open_new(temp, folder), temp, path, data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"put {key}: {error.strerror}") from error
            raise StoreError(f"put {key}: {error.strerror}") from error

    def _open_new(self, temp: str, folder: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return os.open(temp, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(folder, mode=0o777, exist_ok=True)
            self._durable_folders.discard(folder)
            return os.open(temp, flags, 0o666)

    def delete(self, key: str) -> None:
        try:
            os.unlink(self._root + key)
        except (FileNotFoundError, NotADirectoryError):
            return
        except IsADirectoryError:
            self._delete_folder(key)
        except OSError as error:
            raise StoreError(f"delete {key}: {error.strerror}") from error

    def _delete_folder(self, key: str) -> None:
        """A key with a slash at its end is a folder, which goes when it is empty."""
        if not key.endswith("/"):
            return
        try:
            os.rmdir(self._root + key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise StoreError(f"delete {key}: {error.strerror}") from error

    def head(self, key: str) -> ObjectInfo:
        try:
            found = os.stat(self._root + key)
        except OSError as error:
            raise_store_error(error, key)
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissing(f"{key}: not a regular file")
        return ObjectInfo(key, found.st_size, found.st_mtime)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix[: prefix.rfind("/") + 1]
        try:
            yield from self._walk(folder, prefix, after)
        except OSError as error:
            raise StoreError(f"list {self._root}{prefix}: {error.strerror}") from error

    def _walk(self, folder: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """The folder's objects in key order: a sub-folder sorts as its name with a slash."""
        try:
            with os.scandir(self._root + folder) as scan:
                names = [entry.name + "/" if entry.is_dir() else entry.name for entry in scan]
        except (FileNotFoundError, NotADirectoryError):
            return
        names.sort(key=os.fsencode)
        for name in names:
            key = folder + name
            if name.endswith("/"):
                nested = key.startswith(prefix) or prefix.startswith(key)
                if nested and (key > after or after.startswith(key)):
                    yield from self._walk(key, prefix, after)
            elif key.startswith(prefix) and key > after:
                with contextlib.suppress(ObjectMissing):  # removed since the scan, or a device or socket
                    info = self.head(key)
                    if not is_temporary(name) or info.mtime < time.time() - LEFT_BEHIND_S:
                        yield info

    def sync(self, keys: Iterable[str]) -> None:
        wanted = sorted(set(keys))
        try:
            if len(wanted) >= SYNCFS_FROM:
                self._sync_file_systems(sorted({os.path.dirname(self._root + key) for key in wanted}))
            else:
                self._sync_each(wanted)
        except OSError as error:
            raise StoreError(f"sync {self._root}: {error.strerror}") from error

    def sync_all(self) -> None:
        folders = level = [self._root if self._root.endswith("/") else os.path.dirname(self._root)]
        try:
            for _ in range(DISKS_ABOVE):
                level = [found for folder in level for found in _folders_in(folder)]
                folders = folders + level
            self._sync_file_systems(folders)
        except OSError as error:
            raise StoreError(f"sync {self._root}: {error.strerror}") from error

    def _sync_file_systems(self, folders: Iterable[str]) -> None:
        """Those that the folders are on: a disk may be mounted at any folder below the root, or a link lead to it."""
        flushed: set[int] = set()
        for folder in folders:
            try:
                device = os.stat(folder).st_dev
                if device in flushed:
                    continue
                fd = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # removed since: nothing is left to lose
            try:
                syncfs(fd)
            finally:
                os.close(fd)
            flushed.add(device)

    def _sync_each(self, keys: Iterable[str]) -> None:
        folders: set[str] = set()
        for key in keys:
            path = self._root + key
            try:
                _flush(path)
            except FileNotFoundError:
                continue  # removed since: nothing is left to lose
            folders.add(os.path.dirname(path))
        for folder in sorted(folders):
            _flush(folder)
            self._sync_ancestors(folder)

    def _sync_ancestors(self, folder: str) -> None:
        """The entries of `folder` and its ancestors themselves; once per folder and process."""
        fresh = []
        while folder not in self._durable_folders and folder != "/":
            fresh.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(fresh):
            _flush(os.path.dirname(each))
            with self._lock:
                self._durable_folders.add(each)

    def forget_folders(self) -> None:
        """Folders were made (again) behind this store's back: the next sync flushes their entries too."""
        with self._lock:
            self._durable_folders.clear()

    def close(self) -> None:
        """Nothing is kept open."""


def _read_range(fd: int, length: int, offset: int) -> bytes:
    """One pread into one bytes object; more only if the kernel answers short before the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    missing = length - len(data)
    while missing > 0:
        part = os.pread(fd, missing, offset + length - missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _folders_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except FileNotFoundError:  # removed since, or never made
        return []


def _flush(path: str) -> None:
    """fdatasync a file or fsync a folder by its path."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else os.fdatasync(fd)
    finally:
        os.close(fd)
