"""The kernel's side of FUSE, as bytes: numbers and records of protocol 7.41 (linux/fuse.h), little-endian as on our machines.

A request is a 40-byte header and a body; a reply a 16-byte header and a body; a message of our own accord is a reply to
request 0 whose errno field holds its kind.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 41
OLDEST_MINOR: Final = 28
"""Linux 4.20, from which on requests may be larger than 128 KiB."""


class Op(IntEnum):
    """Requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


MOST_OPS: Final = 64
"""More than there are numbers of requests."""

# INIT: what both sides can do.
ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
EXPORT_SUPPORT: Final = 1 << 4
BIG_WRITES: Final = 1 << 5
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22

# OPEN and CREATE: what the kernel may do with the handle.
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5

# SETATTR: which fields count.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_CTIME: Final = 1 << 10

FSYNC_DATA: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
"""WRITE: pages of a mapping or of the page cache, not a write(2)."""

NOTIFY_INVAL_INODE: Final = 2

IN_HEADER: Final = Struct("<IIQQIIIHH")
"""length, operation, unique number, inode, uid, gid, pid, length of extensions, -"""

OUT_HEADER: Final = Struct("<IiQ")
"""length, -errno or 0, the request's unique number"""

BODY: Final = IN_HEADER.size

INIT_IN: Final = Struct("<IIII")
"""major, minor, max_readahead, flags; more follows"""

INIT_OUT: Final = Struct("<IIIIHHIIHHIIH22x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages, map_alignment,
flags2, max_stack_depth, request_timeout"""

ATTR: Final = "QQQqqqIIIIIIIIII"
"""inode, size, 512-byte blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags"""

ENTRY_OUT: Final = Struct("<QQQQII" + ATTR)
"""inode, generation, seconds the name is valid, seconds the attributes are, nanoseconds of both, attributes"""

ATTR_OUT: Final = Struct("<QII" + ATTR)
"""seconds and nanoseconds that the attributes are valid, -, attributes"""

DIRENT: Final = Struct("<QQII")
"""inode, offset of the next row, length of the name, type; the name follows, filled up to 8 bytes"""

FLAGS_IN: Final = Struct("<II")
"""OPEN, OPENDIR, RENAME2 (after the directory), MKDIR (mode, umask), GETXATTR and LISTXATTR (size), SETXATTR (size, flags)"""

OPEN_OUT: Final = Struct("<QIi")
"""handle, FOPEN_..., -"""

CREATE_IN: Final = Struct("<IIII")
"""flags, mode, umask, -; MKNOD: mode, rdev, umask, -"""

HANDLE_IN: Final = Struct("<QII")
"""handle, flags, -: FLUSH, FSYNC, RELEASE and their kin; GETATTR has the flags first"""

READ_IN: Final = Struct("<QQII")
"""handle, offset, size, flags; more follows"""

WRITE_IN: Final = Struct("<QQII8xI4x")
"""handle, offset, size, WRITE_..., lock owner, the O_... of the descriptor as they are now; the data follows"""

WRITE_DATA: Final = BODY + WRITE_IN.size
COUNT_OUT: Final = Struct("<II")
"""bytes written; the length of an extended attribute"""

SETATTR_IN: Final = Struct("<IIQQQqqqIIIIIII4x")
"""FATTR_..., -, handle, size, lock owner, atime, mtime, ctime, their nanoseconds, mode, -, uid, gid"""

INODE_IN: Final = Struct("<Q")
"""RENAME and RENAME2: the new directory; LINK: the inode; INTERRUPT: the unique number of what is interrupted"""

STATFS_OUT: Final = Struct("<QQQQQIII28x")
"""blocks, free, available, inodes, free, block size, longest name, fragment size"""

INVAL_INODE: Final = Struct("<Qqq")
"""inode, offset (negative: attributes alone), length"""
