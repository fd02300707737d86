"""The records of a volume's metadata as Python values.  Their bytes are in `schema` (key-value) and `sql/`.

Rules for this file: no I/O, no bytes of the format, no POSIX rules; times are nanoseconds since the epoch in one int.
"""

import stat
from typing import Final

import msgspec

Ino = int

ROOT_INO: Final = 1
TRASH_INO: Final = 0x7FFFFFFF10000000

TYPE_FILE: Final = 1
TYPE_DIR: Final = 2
TYPE_SYMLINK: Final = 3
TYPE_FIFO: Final = 4
TYPE_BLOCK: Final = 5
TYPE_CHAR: Final = 6
TYPE_SOCKET: Final = 7

FLAG_IMMUTABLE: Final = 1
FLAG_APPEND: Final = 2
FLAG_SKIP_TRASH: Final = 32

CHUNK_SIZE: Final = 1 << 26
MAX_NAME: Final = 255
MAX_SYMLINK: Final = 4096
MAX_FILE_SIZE: Final = (1 << 57) - 1
DIR_LENGTH: Final = 4096

S_IFMT_OF: Final = {
    TYPE_FILE: stat.S_IFREG,
    TYPE_DIR: stat.S_IFDIR,
    TYPE_SYMLINK: stat.S_IFLNK,
    TYPE_FIFO: stat.S_IFIFO,
    TYPE_BLOCK: stat.S_IFBLK,
    TYPE_CHAR: stat.S_IFCHR,
    TYPE_SOCKET: stat.S_IFSOCK,
}
TYPE_OF_S_IFMT: Final = {value: key for key, value in S_IFMT_OF.items()}


def is_trash(ino: Ino) -> bool:
    """The trash root or an hour directory in it."""
    return ino >= TRASH_INO


def int64(value: int) -> int:
    """The value in 64 bits with a sign, gone round: books that pass through what does not fit are right again after it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def charged_space(length: int) -> int:
    """Bytes of usage charged for an inode of this length: whole 4 KiB pages, at least one (format: A4)."""
    return (length + 4095) & ~4095 if length > 0 else 4096


class Attr(msgspec.Struct, gc=False):
    """An inode's attributes.  `mode` is the 12 permission bits; `parent` 0 means several hard links."""

    type: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    nlink: int = 1
    length: int = 0
    rdev: int = 0
    parent: Ino = 0
    flags: int = 0
    access_acl: int = 0
    default_acl: int = 0
    tier: int = 0


class Dentry(msgspec.Struct, frozen=True, gc=False):
    """What a name in a directory points at."""

    type: int
    ino: Ino


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A name resolved: the inode and its attributes."""

    ino: Ino
    attr: Attr


class DirEntry(msgspec.Struct, frozen=True, gc=False):
    """One row of a directory listing.  `attr` is None where the inode's record is missing (a dangling dentry)."""

    name: bytes
    dentry: Dentry
    attr: Attr | None


class Slice(msgspec.Struct, frozen=True, gc=False):
    """One record of a chunk: `length` bytes at `pos` in the chunk, from `offset` in slice `id` of `size` bytes.

    id 0 is zeros: ignore `size` and `offset`.
    """

    pos: int
    id: int
    size: int
    offset: int
    length: int


class SliceRef(msgspec.Struct, frozen=True, gc=False):
    """A stored slice, whole: its id and its size in bytes."""

    id: int
    size: int


class DirStat(msgspec.Struct, gc=False):
    """What a directory's direct children add up to: file lengths, charged space, inodes."""

    length: int = 0
    space: int = 0
    inodes: int = 0


class Quota(msgspec.Struct, gc=False):
    """Limits (0 or negative: none) and usage, bytes and inodes."""

    max_space: int = 0
    max_inodes: int = 0
    used_space: int = 0
    used_inodes: int = 0


class Session(msgspec.Struct, frozen=True):
    """A client's lease on the volume: `expire` in unix seconds, `info` as the JSON text that it wrote about itself."""

    sid: int
    expire: int
    info: bytes


class DeletedFile(msgspec.Struct, frozen=True, gc=False):
    """An inode that is gone and whose data is not: its length in bytes and when it went, unix seconds."""

    ino: Ino
    length: int
    when: int


class DelayedSlices(msgspec.Struct, frozen=True):
    """Slices that a compaction replaced at `when` (unix seconds), kept as long as trash is.

    `id`: of its first new slice; an id of its own where it needed no slice.
    """

    id: int
    when: int
    slices: list[SliceRef]


class Flock(msgspec.Struct, frozen=True, gc=False):
    """One BSD lock: kind is b"R" or b"W"."""

    ino: Ino
    sid: int
    owner: int
    kind: bytes


class Plock(msgspec.Struct, frozen=True, gc=False):
    """One owner's POSIX locks of an inode: records of (type, pid, start, end), 24 bytes each, end inclusive."""

    ino: Ino
    sid: int
    owner: int
    records: bytes


class AclRule(msgspec.Struct, frozen=True, gc=False):
    """A POSIX ACL: permission bits (0xFFFF: not set), and (id, bits) of named users and groups."""

    owner: int = 0xFFFF
    group: int = 0xFFFF
    mask: int = 0xFFFF
    other: int = 0xFFFF
    users: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()


class Cred(msgspec.Struct, frozen=True, gc=False):
    """Who asks.  With `check` False the kernel has checked permission bits already (default_permissions)."""

    uid: int = 0
    gid: int = 0
    umask: int = 0
    groups: tuple[int, ...] = ()
    check: bool = False


ROOT: Final = Cred()
