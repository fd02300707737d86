"""The trash: a directory per hour under `.trash`, whose entries are named after where they were removed from."""

import calendar
import errno
import time
from typing import Final

from jfs.errors import FsError
from jfs.meta.access import folder_attr
from jfs.meta.transaction import Transaction
from jfs.meta.types import MAX_NAME, TRASH_INO, TYPE_DIR, Dentry, DirStat, Ino, charged_space

_HOUR_FORMAT: Final = "%Y-%m-%d-%H"
_PAGE: Final = 1000


def trash_name(parent: Ino, ino: Ino, name: bytes) -> bytes:
    """What a removed entry is called in the trash; enough to put it back unless the name was very long."""
    return (b"%d-%d-%s" % (parent, ino, name))[:MAX_NAME]


def hour_name(now_ns: int) -> bytes:
    """The name of the directory that takes what is removed in this hour (UTC)."""
    return time.strftime(_HOUR_FORMAT, time.gmtime(now_ns // 1_000_000_000)).encode()


def hour_of(name: bytes) -> int | None:
    """The hour's start in unix seconds; None for a name that is not an hour's."""
    try:
        return calendar.timegm(time.strptime(name.decode(), _HOUR_FORMAT))
    except ValueError:
        return None


async def ensure_hour(tx: Transaction, now_ns: int) -> Ino:
    """The hour directory of `now_ns`, made if it is the first removal in this hour."""
    name = hour_name(now_ns)
    dentry = await tx.dentry(TRASH_INO, name)
    if dentry is not None:
        return dentry.ino
    ino = TRASH_INO + await tx.add_counter("nextTrash", 1)
    tx.put_dentry(TRASH_INO, name, Dentry(TYPE_DIR, ino))
    tx.put_attr(ino, folder_attr(0o555, TRASH_INO, now_ns))
    tx.put_dir_stat(ino, DirStat())
    tx.charge(charged_space(0), 1)
    return ino


async def expired_hours(tx: Transaction, before: int) -> list[tuple[bytes, Ino]]:
    """Hour directories that started before `before` (unix seconds), oldest first."""
    expired: list[tuple[bytes, Ino]] = []
    after: bytes | None = None
    while True:
        page = await tx.dentries(TRASH_INO, after, _PAGE)
        for name, dentry in page:
            hour = hour_of(name)
            if hour is not None and hour < before:
                expired.append((name, dentry.ino))
        if len(page) < _PAGE:
            return expired
        after = page[-1][0]


async def remove_hour(tx: Transaction, name: bytes) -> None:
    """Remove an emptied hour directory.  Raises ENOENT, ENOTEMPTY."""
    dentry = await tx.dentry(TRASH_INO, name)
    if dentry is None:
        raise FsError(errno.ENOENT)
    if await tx.dentries(dentry.ino, None, 1):
        raise FsError(errno.ENOTEMPTY)
    tx.guard_names(dentry.ino)
    tx.delete_dentry(TRASH_INO, name)
    tx.delete_attr(dentry.ino)
    tx.delete_dir_stat(dentry.ino)
    tx.charge(-charged_space(0), -1)
