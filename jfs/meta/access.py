"""The POSIX rules about names, permissions and ownership, as pure functions on attributes: no records, no I/O."""

import errno
import stat
from typing import Final

from jfs.errors import FsError
from jfs.meta.types import (
    DIR_LENGTH,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    FLAG_SKIP_TRASH,
    MAX_NAME,
    MAX_SYMLINK,
    TRASH_INO,
    TYPE_DIR,
    TYPE_FILE,
    TYPE_SYMLINK,
    Attr,
    Cred,
    Ino,
    charged_space,
    is_trash,
)

R: Final = 4
W: Final = 2
X: Final = 1

_FIXED: Final = FLAG_IMMUTABLE | FLAG_APPEND


def require_name(name: bytes) -> None:
    """A name that a directory can hold: 1..255 bytes, no slash, no NUL."""
    if len(name) > MAX_NAME:
        raise FsError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL)


def require_new_name(name: bytes) -> None:
    """A name that may be added: every directory has `.` and `..` already."""
    require_name(name)
    if name in (b".", b".."):
        raise FsError(errno.EEXIST)


def require_symlink_target(target: bytes) -> None:
    if len(target) > MAX_SYMLINK:
        raise FsError(errno.ENAMETOOLONG)
    if not target:
        raise FsError(errno.ENOENT)
    if b"\0" in target:
        raise FsError(errno.EINVAL)


def in_group(cred: Cred, gid: int) -> bool:
    return gid == cred.gid or gid in cred.groups


def permitted(attr: Attr, cred: Cred, mask: int) -> bool:
    """Whether the mode bits grant all of `mask` (R, W, X) to the caller; root lacks only X on a file nobody may run."""
    if cred.uid == 0:
        return not mask & X or attr.type == TYPE_DIR or bool(attr.mode & 0o111)
    if cred.uid == attr.uid:
        granted = attr.mode >> 6
    elif in_group(cred, attr.gid):
        granted = attr.mode >> 3
    else:
        granted = attr.mode
    return granted & mask == mask


def require(attr: Attr, cred: Cred, mask: int) -> None:
    """EACCES where the mode bits refuse, unless the kernel has looked at them already."""
    if cred.check and not permitted(attr, cred, mask):
        raise FsError(errno.EACCES)


def require_directory(attr: Attr | None) -> Attr:
    if attr is None:
        raise FsError(errno.ENOENT)
    if attr.type != TYPE_DIR:
        raise FsError(errno.ENOTDIR)
    return attr


def require_may_add(ino: Ino, folder: Attr, cred: Cred) -> None:
    """Names may be added to a directory that is neither trash nor thrown away nor immutable."""
    if is_trash(ino):
        raise FsError(errno.EPERM)
    if folder.parent > TRASH_INO:
        raise FsError(errno.ENOENT)
    require(folder, cred, W | X)
    if folder.flags & FLAG_IMMUTABLE:
        raise FsError(errno.EPERM)


def require_may_empty(ino: Ino, folder: Attr, cred: Cred) -> None:
    """Names may leave a directory that is neither immutable nor append-only; only root takes them out of the trash."""
    if ino == TRASH_INO or (is_trash(ino) and cred.uid != 0):
        raise FsError(errno.EPERM)
    require(folder, cred, W | X)
    if folder.flags & _FIXED:
        raise FsError(errno.EPERM)


def require_may_remove(folder: Attr, child: Attr, cred: Cred) -> None:
    """The sticky bit: only root and the two owners may take `child` away; nobody takes away what is fixed."""
    if folder.mode & stat.S_ISVTX and cred.uid not in (0, folder.uid, child.uid):
        raise FsError(errno.EACCES)
    if child.flags & _FIXED:
        raise FsError(errno.EPERM)


def require_changeable(attr: Attr) -> None:
    """Neither immutable nor append-only."""
    if attr.flags & _FIXED:
        raise FsError(errno.EPERM)


def require_outside_trash(ino: Ino, attr: Attr) -> None:
    """What is in the trash stays as it was."""
    if is_trash(ino) or attr.parent > TRASH_INO:
        raise FsError(errno.EPERM)


def folder_attr(mode: int, parent: Ino, now_ns: int, *, nlink: int = 2) -> Attr:
    """A directory that belongs to the volume itself and to root: the root, the trash, its hours."""
    return Attr(
        type=TYPE_DIR,
        mode=mode,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        nlink=nlink,
        length=DIR_LENGTH,
        parent=parent,
    )


def new_attr(folder: Attr, parent: Ino, cred: Cred, attr_type: int, mode: int, now_ns: int) -> Attr:
    """The attributes that a new inode in `folder` starts with: umask, setgid and skip-trash inheritance."""
    mode = 0o777 if attr_type == TYPE_SYMLINK else mode & 0o7777 & ~cred.umask
    gid = cred.gid
    if folder.mode & stat.S_ISGID:
        gid = folder.gid
        if attr_type == TYPE_DIR:
            mode |= stat.S_ISGID
        elif cred.check and cred.uid != 0 and mode & stat.S_IXGRP and not in_group(cred, gid):
            mode &= ~stat.S_ISGID
    return Attr(
        type=attr_type,
        mode=mode,
        uid=cred.uid,
        gid=gid,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        nlink=2 if attr_type == TYPE_DIR else 1,
        parent=parent,
        flags=folder.flags & FLAG_SKIP_TRASH,
        default_acl=folder.default_acl if attr_type == TYPE_DIR else 0,
        tier=folder.tier,
    )


def without_privileges(mode: int, cred: Cred) -> int:
    """Mode bits of a non-directory after its owner changed: suid goes, sgid too unless root keeps a non-executable one."""
    mode &= ~stat.S_ISUID
    if cred.uid != 0 or mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


def usage(attr: Attr) -> tuple[int, int]:
    """(length, space) that a directory's statistics and the volume's usage count for one entry of this inode."""
    if attr.type == TYPE_FILE:
        return attr.length, charged_space(attr.length)
    return 0, charged_space(0)
