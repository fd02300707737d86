"""Operations that take a name away: unlink and rmdir, into the trash or for good."""

import errno
from collections.abc import Callable

import msgspec

from jfs.errors import FsError
from jfs.meta.access import (
    require_directory,
    require_may_empty,
    require_may_remove,
    usage,
)
from jfs.meta.namespace import names_changed, require_old_name
from jfs.meta.transaction import Transaction
from jfs.meta.trash import trash_name
from jfs.meta.types import (
    FLAG_SKIP_TRASH,
    TYPE_DIR,
    TYPE_FILE,
    TYPE_SYMLINK,
    Attr,
    Cred,
    DeletedFile,
    Dentry,
    Entry,
    Ino,
    is_trash,
)


class Removed(msgspec.Struct, frozen=True, gc=False):
    """What became of an inode that lost a name.  `attr` is None where its record is gone; `deleted`: data to remove."""

    ino: Ino
    attr: Attr | None
    deleted: DeletedFile | None = None
    sustained: bool = False
    trashed: bool = False


class Removal(msgspec.Struct, frozen=True, gc=False):
    """The circumstances of a removal: the hour directory (None: no trash), who has the file open, whose session."""

    hour: Ino | None
    opened: Callable[[Ino], bool]
    sid: int
    now_ns: int


async def unlink(
    tx: Transaction,
    cred: Cred,
    parent: Ino,
    name: bytes,
    hour: Ino | None,
    opened: Callable[[Ino], bool],
    sid: int,
    now_ns: int,
    *,
    skip_trash: bool = False,
    skip_mtime_ns: int = 0,
) -> Removed:
    """Remove a dentry; the inode goes with its last link.  Raises ENOENT, EPERM, EACCES (POSIX unlink(2))."""
    folder, entry = await _find(tx, cred, parent, name)
    if entry is None:
        return await _drop_dangling(tx, parent, name)
    if entry.attr.type == TYPE_DIR:
        raise FsError(errno.EPERM)
    require_may_remove(folder, entry.attr, cred)

    tx.delete_dentry(parent, name)
    names_changed(tx, parent, folder, now_ns, skip_mtime_ns=skip_mtime_ns)
    removal = Removal(None if skip_trash else hour, opened, sid, now_ns)
    return await discard(tx, parent, name, entry, removal)


async def rmdir(
    tx: Transaction,
    cred: Cred,
    parent: Ino,
    name: bytes,
    hour: Ino | None,
    opened: Callable[[Ino], bool],
    sid: int,
    now_ns: int,
    *,
    skip_trash: bool = False,
    skip_mtime_ns: int = 0,
) -> Removed:
    """Remove an empty directory.  Raises ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EACCES (POSIX rmdir(2)).

    Unlike the peer's, its statistics go with it into the trash: clients may have more to add, which has to sum up if it
    is restored.
    """
    folder, entry = await _find(tx, cred, parent, name)
    if entry is None:
        return await _drop_dangling(tx, parent, name)
    require_directory(entry.attr)
    await require_empty(tx, entry.ino)
    require_may_remove(folder, entry.attr, cred)

    tx.delete_dentry(parent, name)
    names_changed(tx, parent, folder, now_ns, subdirs=-1, skip_mtime_ns=skip_mtime_ns)
    removal = Removal(None if skip_trash else hour, opened, sid, now_ns)
    return await discard(tx, parent, name, entry, removal)


async def _find(tx: Transaction, cred: Cred, parent: Ino, name: bytes) -> tuple[Attr, Entry | None]:
    """The directory that a name is to leave, and what the name points at; None where the inode or the name is missing."""
    require_old_name(name)
    await tx.warm(attrs=(parent,), names=((parent, name),))
    folder = require_directory(await tx.attr(parent))
    require_may_empty(parent, folder, cred)
    return folder, await tx.lookup(parent, name)


async def _drop_dangling(tx: Transaction, parent: Ino, name: bytes) -> Removed:
    """A dentry whose inode is missing can still be removed; it was never part of anybody's books."""
    dentry = await tx.dentry(parent, name)
    if dentry is None:
        raise FsError(errno.ENOENT)
    tx.delete_dentry(parent, name)
    return Removed(dentry.ino, None)


async def require_empty(tx: Transaction, ino: Ino) -> None:
    """The directory has no names and, until this commits, gets none."""
    if await tx.dentries(ino, None, 1):
        raise FsError(errno.ENOTEMPTY)
    tx.guard_names(ino)


async def discard(tx: Transaction, parent: Ino, name: bytes, entry: Entry, removal: Removal) -> Removed:
    """What happens to an inode whose dentry `name` in `parent` was just taken away: trash, one link less, or the end."""
    ino, attr = entry.ino, entry.attr
    length, space = usage(attr)
    tx.charge_dir(parent, -length, -space, -1)
    if attr.type == TYPE_DIR:
        tx.delete_dir_quota(ino)
    hour = removal.hour
    if hour is not None and not is_trash(parent) and not attr.flags & FLAG_SKIP_TRASH:
        trashed = trash_name(parent, ino, name)
        if attr.nlink == 1 or attr.type == TYPE_DIR or await tx.dentry(hour, trashed) is None:
            await _move_to_trash(tx, parent, hour, trashed, entry, removal.now_ns)
            return Removed(ino, attr, trashed=True)
    if attr.type != TYPE_DIR and attr.nlink > 1:
        attr.nlink -= 1
        attr.ctime_ns = removal.now_ns
        if attr.parent == 0:
            await tx.add_parent(ino, parent, -1)
        tx.put_attr(ino, attr)
        return Removed(ino, attr)
    return await _delete(tx, ino, attr, removal)


async def _move_to_trash(tx: Transaction, parent: Ino, hour: Ino, name: bytes, entry: Entry, now_ns: int) -> None:
    ino, attr = entry.ino, entry.attr
    if attr.parent == 0:
        await tx.add_parent(ino, hour, 1)
        await tx.add_parent(ino, parent, -1)
    else:
        attr.parent = hour
    attr.ctime_ns = now_ns
    tx.put_attr(ino, attr)
    tx.guard_name(hour, name)
    tx.put_dentry(hour, name, Dentry(attr.type, ino))
    tx.charge_dir(hour, *usage(attr), 1)


async def _delete(tx: Transaction, ino: Ino, attr: Attr, removal: Removal) -> Removed:
    """The last link is gone.  An open file lives on without a name; the data of a closed one is to be removed."""
    await tx.delete_xattrs(ino)
    if attr.parent == 0:
        await tx.delete_parents(ino)
    if attr.type == TYPE_FILE and removal.opened(ino):
        attr.nlink = 0
        attr.ctime_ns = removal.now_ns
        tx.put_attr(ino, attr)
        tx.put_sustained(removal.sid, ino)
        return Removed(ino, attr, sustained=True)
    tx.delete_attr(ino)
    tx.charge(-usage(attr)[1], -1)
    if attr.type == TYPE_SYMLINK:
        tx.delete_symlink(ino)
    elif attr.type == TYPE_DIR:
        tx.delete_dir_stat(ino)
    elif attr.type == TYPE_FILE:
        deleted = DeletedFile(ino, attr.length, removal.now_ns // 1_000_000_000)
        tx.put_deleted_file(deleted)
        return Removed(ino, None, deleted)
    return Removed(ino, None)
