"""Repairs of what fsck finds.  Each looks again in its own transaction, so that a finding that is out of date harms nothing."""

import time
from typing import Final

from jfs.meta.access import folder_attr, usage
from jfs.meta.files import sustained_gone
from jfs.meta.transaction import Transaction
from jfs.meta.types import (
    ROOT_INO,
    TRASH_INO,
    TYPE_DIR,
    TYPE_FILE,
    DeletedFile,
    Dentry,
    Ino,
    SliceRef,
)
from jfs.meta.usage import count_dir

_PAGE: Final = 1000


async def names_of(tx: Transaction, parent: Ino, ino: Ino) -> list[bytes]:
    """The names that a directory has for an inode."""
    found: list[bytes] = []
    after: bytes | None = None
    while True:
        page = await tx.dentries(parent, after, _PAGE)
        found += [name for name, dentry in page if dentry.ino == ino]
        if len(page) < _PAGE:
            return found
        after = page[-1][0]


async def make_root(tx: Transaction) -> None:
    await _make_folder(tx, ROOT_INO, 0o777)


async def make_trash(tx: Transaction) -> None:
    await _make_folder(tx, TRASH_INO, 0o555)


async def _make_folder(tx: Transaction, ino: Ino, mode: int) -> None:
    if await tx.attr(ino) is not None:
        return
    now_ns = time.time_ns()
    nlink = 2 + await _subdirs(tx, ino) if ino != TRASH_INO else 2
    tx.put_attr(ino, folder_attr(mode, ROOT_INO, now_ns, nlink=nlink))


async def _subdirs(tx: Transaction, ino: Ino) -> int:
    count = 0
    after: bytes | None = None
    while True:
        page = await tx.entries(ino, after, _PAGE)
        count += sum(entry.attr is not None and entry.attr.type == TYPE_DIR for entry in page)
        if len(page) < _PAGE:
            return count
        after = page[-1].name


async def drop_entry(tx: Transaction, parent: Ino, name: bytes) -> None:
    """Remove a name whose inode does not exist."""
    dentry = await tx.dentry(parent, name)
    if dentry is not None and await tx.attr(dentry.ino) is None:
        tx.guard_attr(dentry.ino)
        tx.delete_dentry(parent, name)


async def retype_entry(tx: Transaction, parent: Ino, name: bytes) -> None:
    """Let a name say the type that its inode has."""
    entry = await tx.lookup(parent, name)
    if entry is not None:
        tx.put_dentry(parent, name, Dentry(entry.attr.type, entry.ino))


async def set_parent(tx: Transaction, ino: Ino, parent: Ino, name: bytes) -> None:
    """Let an inode with one name say where that is."""
    dentry = await tx.dentry(parent, name)
    attr = await tx.attr(ino)
    if dentry is not None and dentry.ino == ino and attr is not None and attr.parent != 0:
        attr.parent = parent
        tx.put_attr(ino, attr)


async def recount_dir_links(tx: Transaction, ino: Ino) -> None:
    attr = await tx.attr(ino)
    if attr is not None and attr.type == TYPE_DIR:
        attr.nlink = 2 + await _subdirs(tx, ino)
        tx.put_attr(ino, attr)


async def recount_dir_stat(tx: Transaction, ino: Ino) -> None:
    attr = await tx.attr(ino)
    if attr is not None and attr.type == TYPE_DIR:
        tx.put_dir_stat(ino, await count_dir(tx, ino))


async def recount_links(tx: Transaction, ino: Ino, candidates: tuple[Ino, ...]) -> None:
    """Count a file's names again, in the directories where it was found and where it is said to be."""
    attr = await tx.attr(ino)
    if attr is None or attr.type == TYPE_DIR:
        return
    stored = await tx.parents(ino)
    links = {parent: len(await names_of(tx, parent, ino)) for parent in {*candidates, *stored, attr.parent} if parent}
    count = sum(links.values())
    if count == 0:
        return
    single = attr.parent != 0 and count == 1
    attr.nlink = count
    attr.parent = next(parent for parent, number in links.items() if number) if single else 0
    tx.put_attr(ino, attr)
    if single:
        return
    for parent, number in links.items():
        if number != stored.get(parent, 0):
            await tx.add_parent(ino, parent, number - stored.get(parent, 0))


async def delete_nameless(tx: Transaction, ino: Ino, now_s: int) -> None:
    """Delete an inode without a name that no session holds."""
    attr = await tx.attr(ino)
    if attr is None or attr.nlink > 0:
        return
    await tx.delete_xattrs(ino)
    tx.delete_attr(ino)
    tx.charge(-usage(attr)[1], -1)
    if attr.type == TYPE_FILE:
        tx.put_deleted_file(DeletedFile(ino, attr.length, now_s))


async def end_dead_session(tx: Transaction, sid: int, now_s: int) -> None:
    """End a session whose lease has lapsed, and what it held."""
    session = await tx.session(sid)
    if session is not None and session.expire >= now_s:
        return
    await tx.release_locks(sid)
    for ino in await tx.sustained(sid):
        await sustained_gone(tx, sid, ino, now_s * 1_000_000_000)
    tx.delete_session(sid)


async def set_usage(tx: Transaction, space: int, inodes: int) -> None:
    tx.put_counter("usedSpace", space)
    tx.put_counter("totalInodes", inodes)


async def set_references(tx: Transaction, ref: SliceRef, count: int) -> None:
    """Let a slice that is in use have as many references as there are."""
    stored = await tx.slice_references(ref)
    if stored <= 0:  # a model that stores each count may have none to change
        tx.forget_slice(ref)
        tx.new_slice(ref)
        stored = 1
    if stored != count:
        await tx.add_slice_references(ref, count - stored)
