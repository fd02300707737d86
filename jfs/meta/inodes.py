"""Operations on an inode's attributes: stat, chmod, chown, utimes, and the access time of what is read."""

import errno
import stat
from typing import Final

import msgspec

from jfs.errors import FsError
from jfs.meta.access import W, in_group, permitted, require_outside_trash, without_privileges
from jfs.meta.transaction import Transaction
from jfs.meta.types import FLAG_APPEND, FLAG_IMMUTABLE, TYPE_DIR, Attr, Cred, Ino

SECOND: Final = 1_000_000_000
DAY_NS: Final = 24 * 3600 * SECOND
LAST_NS: Final = ((1 << 63) - 1) * 1000


class AttrChange(msgspec.Struct, frozen=True, gc=False):
    """What setattr(2)'s kin shall change; None leaves a field as it is.  Times in ns, or the time of the operation."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    flags: int | None = None
    atime_now: bool = False
    mtime_now: bool = False


async def getattr(tx: Transaction, ino: Ino) -> Attr:  # noqa: A001 - the system call's name
    """Raises ENOENT."""
    attr = await tx.attr(ino)
    if attr is None:
        raise FsError(errno.ENOENT)
    return attr


async def setattr(  # noqa: A001 - the system call's name
    tx: Transaction, cred: Cred, ino: Ino, change: AttrChange, now_ns: int, *, opened: bool = False
) -> Attr:
    """Change mode, owner, times or flags.  Nothing is written where nothing changes.

    Raises ENOENT, EPERM (POSIX chmod(2), chown(2), utimensat(2); immutable, in the trash), EACCES.  With `opened` the
    caller holds a handle, which may outlive the file's move into the trash.
    """
    attr = await getattr(tx, ino)
    if not opened:
        require_outside_trash(ino, attr)
    if cred.check:
        require_may_change(attr, cred, change)
    if change.flags is None and attr.flags & (FLAG_IMMUTABLE | FLAG_APPEND):
        raise FsError(errno.EPERM)
    fresh = changed(attr, cred, change, now_ns)
    if fresh == attr:
        return attr
    fresh.ctime_ns = now_ns if change.ctime_ns is None else storable(change.ctime_ns)
    tx.put_attr(ino, fresh)
    return fresh


def changed(attr: Attr, cred: Cred, change: AttrChange, now_ns: int) -> Attr:
    """The attributes after the change, ctime aside."""
    fresh = msgspec.structs.replace(attr)
    if change.uid is not None or change.gid is not None:
        fresh.uid = attr.uid if change.uid is None else change.uid
        fresh.gid = attr.gid if change.gid is None else change.gid
        if attr.type != TYPE_DIR:
            fresh.mode = without_privileges(attr.mode, cred)
    if change.mode is not None:
        fresh.mode = change.mode & 0o7777
        if cred.check and cred.uid != 0 and attr.type != TYPE_DIR and not in_group(cred, fresh.gid):
            fresh.mode &= ~stat.S_ISGID
    if change.flags is not None:
        fresh.flags = change.flags
    if change.atime_now or change.atime_ns is not None:
        fresh.atime_ns = now_ns if change.atime_now or change.atime_ns is None else storable(change.atime_ns)
    if change.mtime_now or change.mtime_ns is not None:
        fresh.mtime_ns = now_ns if change.mtime_now or change.mtime_ns is None else storable(change.mtime_ns)
    return fresh


def storable(time_ns: int) -> int:
    """The nearest time that every engine can store: the relational schema counts microseconds in 64 bits."""
    return min(max(time_ns, -LAST_NS), LAST_NS)


def require_may_change(attr: Attr, cred: Cred, change: AttrChange) -> None:
    """POSIX: who may chmod, chown and set times."""
    if cred.uid == 0:
        return
    owner = cred.uid == attr.uid
    if (change.mode is not None or change.flags is not None) and not owner:
        raise FsError(errno.EPERM)
    if change.uid is not None and (not owner or change.uid != attr.uid):
        raise FsError(errno.EPERM)
    if change.gid is not None and not (owner and (change.gid == attr.gid or in_group(cred, change.gid))):
        raise FsError(errno.EPERM)
    if owner:
        return
    if change.atime_ns is not None or change.mtime_ns is not None:
        raise FsError(errno.EPERM)
    if (change.atime_now or change.mtime_now) and not permitted(attr, cred, W):
        raise FsError(errno.EACCES)


def atime_is_due(attr: Attr, mode: str, now_ns: int) -> bool:
    """Whether a read moves the access time, by mount mode: noatime, relatime, strictatime."""
    if mode == "noatime":
        return False
    if attr.atime_ns < attr.mtime_ns or attr.atime_ns < attr.ctime_ns:
        return True
    return now_ns - attr.atime_ns > (DAY_NS if mode == "relatime" else SECOND)


async def touch_atime(tx: Transaction, ino: Ino, mode: str, now_ns: int) -> Attr:
    """The inode was read.  Raises ENOENT."""
    attr = await getattr(tx, ino)
    if atime_is_due(attr, mode, now_ns):
        attr.atime_ns = now_ns
        tx.put_attr(ino, attr)
    return attr
