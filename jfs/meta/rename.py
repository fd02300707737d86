"""Rename: move a name, over another one or in exchange with it."""

import errno
from collections.abc import Callable
from typing import Final

import msgspec

from jfs.errors import CorruptRecord, FsError
from jfs.meta.access import (
    W,
    require,
    require_directory,
    require_may_add,
    require_may_empty,
    require_may_remove,
    require_new_name,
    usage,
)
from jfs.meta.namespace import names_changed, require_old_name
from jfs.meta.transaction import Transaction
from jfs.meta.types import ROOT_INO, TYPE_DIR, Attr, Cred, Dentry, Entry, Ino, is_trash
from jfs.meta.unlink import Removal, Removed, discard, require_empty

NOREPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4


class Renamed(msgspec.Struct, frozen=True, gc=False):
    """The inode that moved, what its new name pointed at before if that is gone, or what changed places with it."""

    ino: Ino
    attr: Attr
    replaced: Removed | None = None
    exchanged: Entry | None = None


class _Move(msgspec.Struct, gc=False):
    """A rename, loaded: both names, both directories (one object where they are the same), source and target."""

    parent: Ino
    name: bytes
    folder: Attr
    new_parent: Ino
    new_name: bytes
    new_folder: Attr
    source: Entry
    target: Entry | None

    @property
    def across(self) -> bool:
        return self.parent != self.new_parent


async def rename(
    tx: Transaction,
    cred: Cred,
    parent: Ino,
    name: bytes,
    new_parent: Ino,
    new_name: bytes,
    flags: int,
    hour: Ino | None,
    opened: Callable[[Ino], bool],
    sid: int,
    now_ns: int,
    *,
    skip_mtime_ns: int = 0,
) -> Renamed:
    """POSIX rename(2) with renameat2's NOREPLACE and EXCHANGE.

    Raises ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL (a directory into its own subtree), EPERM, EACCES.
    """
    _require_flags(flags)
    require_old_name(name)
    require_new_name(new_name)
    move = await _load(tx, parent, name, new_parent, new_name)
    if parent == new_parent and name == new_name:
        return Renamed(move.source.ino, move.source.attr)
    _require_may_move(move, cred, flags)
    target = move.target
    if target is not None and target.ino == move.source.ino:
        return Renamed(move.source.ino, move.source.attr)
    if move.across:
        await _require_no_cycle(tx, move, cred, flags)
    if flags & EXCHANGE:
        return await _exchange(tx, move, now_ns, skip_mtime_ns)
    return await _replace(tx, move, Removal(hour, opened, sid, now_ns), skip_mtime_ns)


def _require_flags(flags: int) -> None:
    if flags & WHITEOUT:
        raise FsError(errno.EOPNOTSUPP)
    if flags not in (0, NOREPLACE, EXCHANGE):
        raise FsError(errno.EINVAL)


async def _load(tx: Transaction, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes) -> _Move:
    await tx.warm(attrs=(parent, new_parent), names=((parent, name), (new_parent, new_name)))
    if parent == new_parent:
        folder = new_folder = require_directory(await tx.attr(parent))
    else:
        folders = await tx.attrs((parent, new_parent))
        folder = require_directory(folders.get(parent))
        new_folder = require_directory(folders.get(new_parent))
    source = await tx.lookup(parent, name)
    if source is None:
        raise FsError(errno.ENOENT)
    target = await tx.lookup(new_parent, new_name)
    return _Move(parent, name, folder, new_parent, new_name, new_folder, source, target)


def _require_may_move(move: _Move, cred: Cred, flags: int) -> None:
    require_may_empty(move.parent, move.folder, cred)
    require_may_add(move.new_parent, move.new_folder, cred)
    require_may_remove(move.folder, move.source.attr, cred)
    target = move.target
    if target is None:
        if flags & EXCHANGE:
            raise FsError(errno.ENOENT)
        return
    if flags & NOREPLACE:
        raise FsError(errno.EEXIST)
    require_may_empty(move.new_parent, move.new_folder, cred)
    require_may_remove(move.new_folder, target.attr, cred)
    if flags & EXCHANGE:
        require_may_add(move.parent, move.folder, cred)
    elif target.ino != move.source.ino:
        _require_same_kind(move.source.attr, target.attr)


def _require_same_kind(source: Attr, target: Attr) -> None:
    if source.type == TYPE_DIR and target.type != TYPE_DIR:
        raise FsError(errno.ENOTDIR)
    if source.type != TYPE_DIR and target.type == TYPE_DIR:
        raise FsError(errno.EISDIR)


async def _require_no_cycle(tx: Transaction, move: _Move, cred: Cred, flags: int) -> None:
    """No directory moves into its own subtree, also if another client moves one of its new ancestors meanwhile."""
    if move.source.attr.type == TYPE_DIR:
        require(move.source.attr, cred, W)
        await _require_outside(tx, move.new_parent, move.new_folder, move.source.ino, move.parent)
    target = move.target
    if flags & EXCHANGE and target is not None and target.attr.type == TYPE_DIR:
        require(target.attr, cred, W)
        await _require_outside(tx, move.parent, move.folder, target.ino, move.new_parent)


async def _require_outside(tx: Transaction, ino: Ino, attr: Attr, moving: Ino, old_parent: Ino) -> None:
    """`ino` is not in the tree of `moving`: walk up, guarding each step, to the root or to where `moving` is now.

    Above its old parent there is nothing to find: that would be a cycle already.
    """
    seen: set[Ino] = set()
    while ino not in (ROOT_INO, old_parent):
        if ino == moving:
            raise FsError(errno.EINVAL)
        if ino in seen:
            raise CorruptRecord(f"inode {ino}", "a directory is its own ancestor")
        seen.add(ino)
        tx.guard_attr(ino)
        ino = attr.parent
        above = await tx.attr(ino)
        attr = require_directory(above)


async def _replace(tx: Transaction, move: _Move, removal: Removal, skip_mtime_ns: int) -> Renamed:
    ino, attr = move.source.ino, move.source.attr
    is_dir = int(attr.type == TYPE_DIR)
    replaced: Removed | None = None
    replaced_dirs = 0
    if move.target is not None:
        if move.target.attr.type == TYPE_DIR:
            await require_empty(tx, move.target.ino)
            replaced_dirs = 1
        replaced = await discard(tx, move.new_parent, move.new_name, move.target, removal)

    tx.delete_dentry(move.parent, move.name)
    tx.put_dentry(move.new_parent, move.new_name, Dentry(attr.type, ino))
    attr.ctime_ns = removal.now_ns
    if move.across:
        await _change_parent(tx, move.source, move.parent, move.new_parent)
    tx.put_attr(ino, attr)
    now_ns = removal.now_ns
    moved = is_dir if move.across else 0
    if move.across:
        names_changed(tx, move.parent, move.folder, now_ns, subdirs=-moved, skip_mtime_ns=skip_mtime_ns)
    if not names_changed(
        tx, move.new_parent, move.new_folder, now_ns, subdirs=moved - replaced_dirs, skip_mtime_ns=skip_mtime_ns
    ):
        tx.guard_name(move.new_parent, move.new_name)
    return Renamed(ino, attr, replaced)


async def _exchange(tx: Transaction, move: _Move, now_ns: int, skip_mtime_ns: int) -> Renamed:
    source, target = move.source, move.target
    if target is None or is_trash(move.parent):
        raise FsError(errno.ENOENT if target is None else errno.EPERM)
    tx.put_dentry(move.parent, move.name, Dentry(target.attr.type, target.ino))
    tx.put_dentry(move.new_parent, move.new_name, Dentry(source.attr.type, source.ino))
    source.attr.ctime_ns = target.attr.ctime_ns = now_ns
    arriving = 0
    if move.across:
        await _change_parent(tx, source, move.parent, move.new_parent)
        await _change_parent(tx, target, move.new_parent, move.parent)
        arriving = int(source.attr.type == TYPE_DIR) - int(target.attr.type == TYPE_DIR)
        names_changed(tx, move.parent, move.folder, now_ns, subdirs=-arriving, skip_mtime_ns=skip_mtime_ns)
    tx.put_attr(source.ino, source.attr)
    tx.put_attr(target.ino, target.attr)
    names_changed(tx, move.new_parent, move.new_folder, now_ns, subdirs=arriving, skip_mtime_ns=skip_mtime_ns)
    return Renamed(source.ino, source.attr, exchanged=target)


async def _change_parent(tx: Transaction, entry: Entry, parent: Ino, new_parent: Ino) -> None:
    """The inode's dentry moved between directories: where it hangs, and what both directories add up to."""
    attr = entry.attr
    if attr.parent == 0:
        await tx.add_parent(entry.ino, new_parent, 1)
        await tx.add_parent(entry.ino, parent, -1)
    else:
        attr.parent = new_parent
    length, space = usage(attr)
    tx.charge_dir(parent, -length, -space, -1)
    tx.charge_dir(new_parent, length, space, 1)
