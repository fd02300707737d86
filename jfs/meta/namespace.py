"""Operations that resolve, add and list names: lookup, mknod (files, directories, symlinks, devices), link, readdir."""

import errno

from jfs.errors import FsError
from jfs.meta.access import (
    R,
    new_attr,
    require,
    require_changeable,
    require_directory,
    require_may_add,
    require_name,
    require_new_name,
    require_outside_trash,
    require_symlink_target,
    usage,
)
from jfs.meta.transaction import Transaction
from jfs.meta.types import (
    DIR_LENGTH,
    MAX_NAME,
    ROOT_INO,
    TYPE_BLOCK,
    TYPE_CHAR,
    TYPE_DIR,
    TYPE_SYMLINK,
    Attr,
    Cred,
    Dentry,
    DirEntry,
    DirStat,
    Entry,
    Ino,
    charged_space,
    is_trash,
)


async def lookup(tx: Transaction, parent: Ino, name: bytes, guess: Ino | None = None) -> Entry:
    """Resolve a name, `.` and `..` among them.  Raises ENOENT, ENAMETOOLONG.

    `guess`: where the name pointed before; right or wrong, it only saves time.
    """
    if len(name) > MAX_NAME:
        raise FsError(errno.ENAMETOOLONG)
    if name in (b".", b".."):
        return await _relative(tx, parent, name)
    entry = await tx.lookup(parent, name, guess)
    if entry is None:
        raise FsError(errno.ENOENT)
    return entry


async def _relative(tx: Transaction, ino: Ino, name: bytes) -> Entry:
    attr = require_directory(await tx.attr(ino))
    if name == b"." or ino == ROOT_INO:
        return Entry(ino, attr)
    above = await tx.attr(attr.parent)
    if above is None:
        raise FsError(errno.ENOENT)
    return Entry(attr.parent, above)


def names_changed(
    tx: Transaction, ino: Ino, folder: Attr, now_ns: int, *, subdirs: int = 0, skip_mtime_ns: int = 0
) -> bool:
    """Book a change of names in a directory: times, and nlink by `subdirs`.  Whether its record was written.

    A directory changed less than `skip_mtime_ns` ago is left as it is, and trash directories always are.
    """
    if is_trash(ino):
        return False
    if subdirs == 0 and skip_mtime_ns > 0 and now_ns - folder.mtime_ns < skip_mtime_ns:
        return False
    folder.nlink += subdirs
    folder.mtime_ns = folder.ctime_ns = now_ns
    tx.put_attr(ino, folder)
    return True


async def mknod(
    tx: Transaction,
    cred: Cred,
    parent: Ino,
    name: bytes,
    ino: Ino,
    attr_type: int,
    mode: int,
    rdev: int,
    now_ns: int,
    *,
    target: bytes = b"",
    skip_mtime_ns: int = 0,
) -> Entry:
    """Make the inode `ino` of any type and name it.  Raises EEXIST, ENOENT, ENOTDIR, EPERM, EACCES, ENAMETOOLONG."""
    require_new_name(name)
    if attr_type == TYPE_SYMLINK:
        require_symlink_target(target)
    await tx.warm(attrs=(parent,), names=((parent, name),))
    folder = require_directory(await tx.attr(parent))
    require_may_add(parent, folder, cred)
    if await tx.dentry(parent, name) is not None:
        raise FsError(errno.EEXIST)

    attr = new_attr(folder, parent, cred, attr_type, mode, now_ns)
    subdirs = 0
    if attr_type == TYPE_DIR:
        attr.length = DIR_LENGTH
        subdirs = 1
        tx.put_dir_stat(ino, DirStat())
    elif attr_type == TYPE_SYMLINK:
        attr.length = len(target)
        tx.put_symlink(ino, target)
    elif attr_type in (TYPE_BLOCK, TYPE_CHAR):
        attr.rdev = rdev
    tx.put_attr(ino, attr)
    tx.put_dentry(parent, name, Dentry(attr_type, ino))
    if not names_changed(tx, parent, folder, now_ns, subdirs=subdirs, skip_mtime_ns=skip_mtime_ns):
        tx.guard_name(parent, name)
    space = charged_space(0)
    tx.charge(space, 1)
    tx.charge_dir(parent, 0, space, 1)
    return Entry(ino, attr)


async def link(
    tx: Transaction, cred: Cred, ino: Ino, parent: Ino, name: bytes, now_ns: int, *, skip_mtime_ns: int = 0
) -> Entry:
    """Add a hard link.  Raises EPERM for a directory or a fixed file, EEXIST, ENOENT (POSIX link(2))."""
    require_new_name(name)
    await tx.warm(attrs=(parent, ino), names=((parent, name),), parents=((ino, parent),))
    folder = require_directory(await tx.attr(parent))
    require_may_add(parent, folder, cred)
    attr = await tx.attr(ino)
    if attr is None or attr.nlink == 0:
        raise FsError(errno.ENOENT)
    if attr.type == TYPE_DIR:
        raise FsError(errno.EPERM)
    require_changeable(attr)
    require_outside_trash(ino, attr)
    if await tx.dentry(parent, name) is not None:
        raise FsError(errno.EEXIST)

    if attr.parent > 0:
        await tx.add_parent(ino, attr.parent, 1)
    await tx.add_parent(ino, parent, 1)
    attr.parent = 0
    attr.nlink += 1
    attr.ctime_ns = now_ns
    tx.put_attr(ino, attr)
    tx.put_dentry(parent, name, Dentry(attr.type, ino))
    if not names_changed(tx, parent, folder, now_ns, skip_mtime_ns=skip_mtime_ns):
        tx.guard_name(parent, name)
    tx.charge_dir(parent, *usage(attr), 1)
    return Entry(ino, attr)


async def readdir(tx: Transaction, cred: Cred, ino: Ino, after: bytes | None, limit: int) -> list[DirEntry]:
    """A page of a directory's names in byte order, strictly after `after`, with their attributes."""
    if cred.check:
        require(require_directory(await tx.attr(ino)), cred, R)
    page = await tx.entries(ino, after, limit)
    if not page and after is None:
        require_directory(await tx.attr(ino))
    return page


async def readlink(tx: Transaction, ino: Ino) -> bytes:
    """A symlink's target.  Raises EINVAL for anything else."""
    target = await tx.symlink(ino)
    if target is not None:
        return target
    attr = await tx.attr(ino)
    if attr is None:
        raise FsError(errno.ENOENT)
    raise FsError(errno.EIO if attr.type == TYPE_SYMLINK else errno.EINVAL)


def require_old_name(name: bytes) -> None:
    """A name that may be taken away: a directory keeps its `.` and `..`."""
    require_name(name)
    if name == b".":
        raise FsError(errno.EINVAL)
    if name == b"..":
        raise FsError(errno.ENOTEMPTY)
