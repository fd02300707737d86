"""Operations on extended attributes.  Changing one moves the inode's ctime, as POSIX says (the peer's does not)."""

import errno
from typing import Final

from jfs.errors import FsError
from jfs.meta import inodes
from jfs.meta.access import require_outside_trash
from jfs.meta.transaction import Transaction
from jfs.meta.types import FLAG_APPEND, FLAG_IMMUTABLE, Cred, Ino

MAX_XATTR_NAME: Final = 255
MAX_XATTR_VALUE: Final = 65536
CREATE: Final = 1
REPLACE: Final = 2


def require_xattr_name(name: bytes) -> None:
    if not name:
        raise FsError(errno.EINVAL)
    if len(name) > MAX_XATTR_NAME:
        raise FsError(errno.ERANGE)


async def getxattr(tx: Transaction, ino: Ino, name: bytes) -> bytes:
    """Raises ENODATA, ENOENT."""
    require_xattr_name(name)
    value = await tx.xattr(ino, name)
    if value is None:
        raise await _none(tx, ino)
    return value


async def listxattr(tx: Transaction, ino: Ino) -> list[bytes]:
    """Raises ENOENT."""
    names = await tx.xattr_names(ino)
    if not names:
        await inodes.getattr(tx, ino)
    return names


async def setxattr(
    tx: Transaction,
    cred: Cred,
    ino: Ino,
    name: bytes,
    value: bytes,
    flags: int,
    now_ns: int,
    *,
    opened: bool = False,
) -> None:
    """Flags: 0, CREATE (EEXIST where it is there), REPLACE (ENODATA where it is not).  A value as it was: no write.

    With `opened` the caller holds a handle, which may outlive the file's move into the trash.
    """
    require_xattr_name(name)
    if len(value) > MAX_XATTR_VALUE:
        raise FsError(errno.ERANGE)
    if flags not in (0, CREATE, REPLACE):
        raise FsError(errno.EINVAL)
    known = await tx.xattr(ino, name)
    if flags == CREATE and known is not None:
        raise FsError(errno.EEXIST)
    if flags == REPLACE and known is None:
        raise await _none(tx, ino)
    await _touch(tx, ino, now_ns, write=known != value, opened=opened)
    if known != value:
        tx.put_xattr(ino, name, value)


async def removexattr(tx: Transaction, cred: Cred, ino: Ino, name: bytes, now_ns: int, *, opened: bool = False) -> None:
    """Raises ENODATA, ENOENT."""
    require_xattr_name(name)
    if await tx.xattr(ino, name) is None:
        raise await _none(tx, ino)
    await _touch(tx, ino, now_ns, write=True, opened=opened)
    tx.delete_xattr(ino, name)


async def _none(tx: Transaction, ino: Ino) -> FsError:
    """Why an attribute is not there: ENODATA, or the inode is gone with it."""
    await inodes.getattr(tx, ino)
    return FsError(errno.ENODATA)


async def _touch(tx: Transaction, ino: Ino, now_ns: int, *, write: bool, opened: bool) -> None:
    """The inode may be changed, and its ctime moves."""
    attr = await inodes.getattr(tx, ino)
    if not opened:
        require_outside_trash(ino, attr)
    if attr.flags & (FLAG_IMMUTABLE | FLAG_APPEND):
        raise FsError(errno.EPERM)
    if write:
        attr.ctime_ns = now_ns
        tx.put_attr(ino, attr)
