"""Reading local files without ever waiting for a disk: open descriptors kept at hand, and preadv(2) with RWF_NOWAIT.

A file whose name or bytes the kernel does not hold in memory is "not now": the caller asks a thread instead.
"""

import ctypes
import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from jfs.chunk.file_range import STEP, FileRange, LocalFile, is_in_memory

MOST: Final = 2048
SHARE: Final = 8
"""Of the files that the process may have open, one in so many."""

_SYS_OPENAT2: Final = 437
_RESOLVE_CACHED: Final = 0x20
_AT_FDCWD: Final = -100

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_how = _OpenHow(os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
_how_pointer = ctypes.byref(_how)
_how_size = ctypes.sizeof(_how)


def open_cached(path: str) -> int:
    """open(2) for reading that fails with BlockingIOError where the path's lookup would have to wait."""
    fd: int = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), _how_pointer, _how_size)
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EPERM, errno.EINVAL):  # before Linux 5.12, or forbidden by a sandbox
        return os.open(path, os.O_RDONLY)
    raise OSError(code, os.strerror(code), path)


def bring_in(path: str, offset: int, length: int, *, wait: bool) -> None:
    """Have the kernel read a range into memory (`length` 0: to the end), and `wait` for it.  For threads."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # whoever reads it will say what is wrong
        return
    try:
        _bring_in(fd, offset, length, wait=wait)
    except OSError:
        return
    finally:
        os.close(fd)


def _bring_in(fd: int, offset: int, length: int, *, wait: bool) -> None:
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
    if wait:
        for place in (*range(offset, offset + length, STEP), offset + length - 1):
            os.pread(fd, 1, place)


class Descriptors:
    """Descriptors of the files read last.  For one thread."""

    def __init__(self, capacity: int = MOST) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._capacity = capacity if soft == resource.RLIM_INFINITY else min(capacity, soft // SHARE)
        self._open: OrderedDict[str, LocalFile] = OrderedDict()
        self._used: set[str] = set()
        self.tells = True
        """False once it has turned out that nobody tells us what is in memory: the file system does not know RWF_NOWAIT, or the
        files are others' and the kernel keeps that to them."""

    def __len__(self) -> int:
        return len(self._open)

    def read(self, path: str, offset: int, length: int) -> bytearray | None:
        """All `length` bytes at `offset` if they are in memory, else None."""
        data = bytearray(length)
        return data if self.read_into(path, offset, (data,), length) else None

    def read_into(self, path: str, offset: int, buffers: Sequence[bytearray], length: int) -> bool:
        """Fill the buffers, of `length` bytes in all, with what is in memory; whether all of it was."""
        try:
            return os.preadv(self._file(path).fd, buffers, offset, os.RWF_NOWAIT) == length
        except OSError:  # not there, not in memory, or a file system that cannot tell: a thread will find out which
            return False

    def lend(self, path: str, offset: int, length: int) -> FileRange | None:
        """All `length` bytes at `offset`, as they lie in memory; None where they do not, or that cannot be told."""
        try:
            file = self._file(path)
            lent = file.sound and is_in_memory(file.fd, offset, length)
            return FileRange(file, offset, length) if lent else None
        except OSError as error:
            self.tells = self.tells and error.errno != errno.EOPNOTSUPP
            return None

    def bring_in(self, path: str, offset: int, length: int) -> None:
        """Wait for the disk here and now."""
        try:
            file = self._open.get(path) or self._add(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            _bring_in(file.fd, offset, length, wait=True)
        except OSError:  # whoever reads it will say what is wrong
            return

    def _file(self, path: str) -> LocalFile:
        file = self._open.get(path)
        if file is None:
            file = self._add(path, open_cached(path))
        else:
            self._open.move_to_end(path)
        self._used.add(path)
        return file

    def _add(self, path: str, fd: int) -> LocalFile:
        file = self._open[path] = LocalFile(fd, path)
        if len(self._open) > self._capacity:
            oldest, _ = self._open.popitem(last=False)
            self._used.discard(oldest)
        return file

    def drop(self, path: str) -> None:
        """Close the file's descriptor: a removed file's space comes back only then."""
        if self._open.pop(path, None) is not None:
            self._used.discard(path)

    def drop_idle(self) -> None:
        """Close what nobody read since the last call of this: other clients may have removed those files."""
        for path in [path for path in self._open if path not in self._used]:
            self.drop(path)
        self._used.clear()

    def close(self) -> None:
        self._open.clear()
        self._used.clear()
