"""The bodies of requests, as the arguments of handlers.

Each function takes (buffer, length of the request, inode of its header, who asks).
"""

import os
from typing import Any, Final, Protocol

from jfs.fuse import kernel
from jfs.fuse.kernel import BODY, CREATE_IN, FLAGS_IN, HANDLE_IN, INODE_IN, READ_IN, SETATTR_IN, WRITE_DATA, WRITE_IN
from jfs.meta.inodes import AttrChange
from jfs.meta.types import Cred, Ino

NANO: Final = 1_000_000_000


class Landing(Protocol):
    """Guesses where the data of the next write belongs."""

    landed: memoryview | None
    """Set to the data of a write that lies in the room."""

    def room(self) -> memoryview | None:
        """Called right before each attempt to read a request."""


def no_more(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return ()


def inode(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return (ino,)


def asked_inode(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return cred, ino


def name(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return cred, ino, buffer[BODY : size - 1]


def mknod(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    mode, rdev, _, _ = CREATE_IN.unpack_from(buffer, BODY)
    return cred, ino, buffer[BODY + CREATE_IN.size : size - 1], mode, rdev


def mkdir(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    mode, _ = FLAGS_IN.unpack_from(buffer, BODY)
    return cred, ino, buffer[BODY + FLAGS_IN.size : size - 1], mode


def symlink(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    name, target = buffer[BODY : size - 1].split(b"\0")
    return cred, ino, name, target


def link(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    (old,) = INODE_IN.unpack_from(buffer, BODY)
    return cred, old, ino, buffer[BODY + INODE_IN.size : size - 1]


def rename(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    (folder,) = INODE_IN.unpack_from(buffer, BODY)
    old, new = buffer[BODY + INODE_IN.size : size - 1].split(b"\0")
    return cred, ino, old, folder, new, 0


def rename2(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    (folder,) = INODE_IN.unpack_from(buffer, BODY)
    at = BODY + INODE_IN.size
    flags, _ = FLAGS_IN.unpack_from(buffer, at)
    old, new = buffer[at + FLAGS_IN.size : size - 1].split(b"\0")
    return cred, ino, old, folder, new, flags


def attributes(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    """(who, inode, handle or None, changes, size or None, whether atime and mtime are to be the present)"""
    fields = SETATTR_IN.unpack_from(buffer, BODY)
    given, _, fh, length, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid = fields
    change = AttrChange(
        mode=mode & 0o7777 if given & kernel.FATTR_MODE else None,
        uid=uid if given & kernel.FATTR_UID else None,
        gid=gid if given & kernel.FATTR_GID else None,
        atime_ns=atime * NANO + atime_ns if given & kernel.FATTR_ATIME else None,
        mtime_ns=mtime * NANO + mtime_ns if given & kernel.FATTR_MTIME else None,
        ctime_ns=ctime * NANO + ctime_ns if given & kernel.FATTR_CTIME else None,
    )
    return (
        cred,
        ino,
        fh if given & kernel.FATTR_FH else None,
        change,
        length if given & kernel.FATTR_SIZE else None,
        bool(given & kernel.FATTR_ATIME_NOW),
        bool(given & kernel.FATTR_MTIME_NOW),
    )


def flags(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return cred, ino, FLAGS_IN.unpack_from(buffer, BODY)[0]


def create(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    flags, mode, _, _ = CREATE_IN.unpack_from(buffer, BODY)
    return cred, ino, buffer[BODY + CREATE_IN.size : size - 1], mode, flags


def read(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    fh, offset, length, _ = READ_IN.unpack_from(buffer, BODY)
    return fh, offset, length


def write(landing: Landing, buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    """(handle, offset, data, flags of the descriptor); the data is valid until the request is answered.

    Pages that a mapping changed know their place: O_APPEND is for write(2) alone.
    """
    fh, offset, length, kind, flags = WRITE_IN.unpack_from(buffer, BODY)
    if kind & kernel.WRITE_CACHE:
        flags &= ~os.O_APPEND
    data = landing.landed
    if data is None:
        data = memoryview(buffer)[WRITE_DATA : WRITE_DATA + length]
    return fh, offset, data, flags


def handle(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return (HANDLE_IN.unpack_from(buffer, BODY)[0],)


def fsync(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    fh, flags, _ = HANDLE_IN.unpack_from(buffer, BODY)
    return fh, bool(flags & kernel.FSYNC_DATA)


def setxattr(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    length, flags = FLAGS_IN.unpack_from(buffer, BODY)
    name = buffer[BODY + FLAGS_IN.size : size - length - 1]
    return cred, ino, name, buffer[size - length : size], flags


def getxattr(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    room, _ = FLAGS_IN.unpack_from(buffer, BODY)
    return ino, buffer[BODY + FLAGS_IN.size : size - 1], room


def listxattr(buffer: Any, size: int, ino: Ino, cred: Cred) -> tuple[Any, ...]:
    return ino, FLAGS_IN.unpack_from(buffer, BODY)[0]
