"""Ranges of local files whose bytes the kernel holds in memory: to be handed on by splice(2), without a copy in ours.

cachestat(2) (Linux 6.5) tells whether all pages are there, reads of single bytes that must not wait whether they are filled
and whether the file is as long as it should be.  Without cachestat nothing is lent.
"""

import ctypes
import errno
import os
from struct import Struct
from typing import Final

PAGE: Final = 4096
STEP: Final = 128 << 10
"""Disks answer large requests in pieces of about this size, not always in order."""

_SYS_CACHESTAT: Final = 451
_RANGE: Final = Struct("=QQ")
_PAGES_THERE: Final = Struct("=Q")
_ANSWER_BYTES: Final = 40

# Not CDLL: the call takes a microsecond, and to let go of the interpreter would take another.
_syscall = ctypes.PyDLL(None).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
_syscall.restype = ctypes.c_long

# Made once: nobody resizes them, so their addresses stay.
_asked = bytearray(_RANGE.size)
_answer = bytearray(_ANSWER_BYTES)
_asked_at = ctypes.addressof((ctypes.c_char * _RANGE.size).from_buffer(_asked))
_answer_at = ctypes.addressof((ctypes.c_char * _ANSWER_BYTES).from_buffer(_answer))
_byte = (bytearray(1),)


class LocalFile:
    """A file open for reading, until nobody refers to it any more: a range that is lent outlives the closing of its name."""

    __slots__ = ("fd", "path", "sound")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.sound = True
        """False once a range of it could not be handed on: from then on it is read, which knows what to do about faults."""

    def __del__(self) -> None:
        os.close(self.fd)


class FileRange:
    """`length` bytes at `offset`, all of them in the file."""

    __slots__ = ("_length", "file", "offset")

    def __init__(self, file: LocalFile, offset: int, length: int) -> None:
        self.file = file
        self.offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length


def can_tell() -> bool:
    """Whether this kernel says what it holds in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_SYS_CACHESTAT, -1, None, None, 0)
    return ctypes.get_errno() == errno.EBADF


def is_in_memory(fd: int, offset: int, length: int) -> bool:
    """Whether a read of the range would neither wait for a disk nor come short.  For the loop's thread.

    Raises OSError, EOPNOTSUPP where that cannot be told: by this file system, or to users who may not write the file.
    """
    end = offset + length
    _RANGE.pack_into(_asked, 0, offset, length)
    if _syscall(_SYS_CACHESTAT, fd, _asked_at, _answer_at, 0) != 0:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    pages: int = _PAGES_THERE.unpack_from(_answer)[0]
    if pages < (end - 1) // PAGE - offset // PAGE + 1:
        return False
    place = end - 1
    while place >= offset:
        if os.preadv(fd, _byte, place, os.RWF_NOWAIT) != 1:
            return False
        place -= STEP
    return True
