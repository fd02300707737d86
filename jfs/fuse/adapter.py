"""What answers each kind of request, in terms of the Vfs.  Translates and decides nothing."""

import errno
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from jfs.errors import FsError
from jfs.fuse import access_lines, replies, requests
from jfs.fuse.kernel import COUNT_OUT, Op
from jfs.fuse.replies import Replies, Timeouts
from jfs.fuse.session import Reply, Row
from jfs.meta.access import R, W
from jfs.meta.inodes import AttrChange
from jfs.meta.rename import Renamed
from jfs.meta.types import TYPE_DIR, TYPE_FILE, Attr, Cred, Entry, Ino, is_trash
from jfs.vfs.directories import DirRow
from jfs.vfs.handles import Handle
from jfs.vfs.special_files import is_special
from jfs.vfs.vfs import Vfs

OF_HANDLES: Final = frozenset({"read", "write", "flush", "fsync", "release"})

QUIET_S: Final = 1.0
"""A directory that changed so recently may change again without a new mtime (--skip-dir-mtime, also of other clients)."""

MOST_SETTLED: Final = 10_000
"""Inodes of which the kernel needs not be told that its names for them are out of date; forgetting them costs another look."""

Handler = Callable[..., Awaitable[Any]]

ABSENT: Final = Entry(0, Attr(type=0))
"""A name that the kernel may believe to be free for a while."""


class Adapter:
    """One mount's handlers."""

    def __init__(self, vfs: Vfs, timeouts: Timeouts, *, xattrs: bool, readdir_cache: bool) -> None:
        self._vfs = vfs
        self._access_log = vfs.access_log
        self._negative = timeouts.negative > 0
        self._xattrs = xattrs
        self._readdir_cache = readdir_cache
        self._replies = Replies(timeouts, None if vfs.meta.engine.inline else vfs.meta.age_s)
        self._settled: set[Ino] = set()
        """What it looked up in the trash, and directories that it removed or replaced: it comes to them by handles, not by names."""
        self.forget_attr: Callable[[Ino], None] = _nobody_believes
        """Makes the kernel ask for an inode's attributes again."""

    def rows(self) -> dict[Op, Row]:
        """Handlers by kind of request."""
        vfs, reply, by_name = self._vfs, self._replies, self._by_name
        entry, attr, nothing = reply.entry, reply.attr, replies.nothing
        return {
            Op.LOOKUP: Row("lookup", requests.name, self.lookup, self._found),
            Op.MKNOD: Row("mknod", requests.mknod, by_name(vfs.mknod, 1), entry),
            Op.MKDIR: Row("mkdir", requests.mkdir, by_name(vfs.mkdir, 1), entry),
            Op.SYMLINK: Row("symlink", requests.symlink, by_name(vfs.symlink, 1), entry),
            Op.LINK: Row("link", requests.link, by_name(vfs.link, 1, 2), entry),
            Op.UNLINK: Row("unlink", requests.name, by_name(vfs.unlink, 1), nothing),
            Op.RMDIR: Row("rmdir", requests.name, by_name(self.rmdir, 1), nothing),
            Op.RENAME: Row("rename", requests.rename, by_name(self.rename, 1, 3), nothing),
            Op.RENAME2: Row("rename", requests.rename2, by_name(self.rename, 1, 3), nothing),
            Op.READLINK: Row("readlink", requests.inode, by_name(vfs.readlink, 0), bytes),
            Op.GETATTR: Row("getattr", requests.inode, by_name(self.getattr, 0), attr),
            Op.SETATTR: Row("setattr", requests.attributes, self.setattr, attr),
            Op.STATFS: Row("statfs", requests.no_more, vfs.statfs, replies.statfs),
            Op.CREATE: Row("create", requests.create, by_name(self.create, 1), reply.created, gives_handle=True),
            Op.OPEN: Row("open", requests.flags, by_name(self.open, 1), replies.opened, gives_handle=True),
            Op.READ: Row("read", requests.read, vfs.read, _as_it_is),
            Op.WRITE: Row("write", partial(requests.write, vfs.landing), vfs.write, replies.wrote),
            Op.FLUSH: Row("flush", requests.handle, vfs.flush, nothing),
            Op.FSYNC: Row("fsync", requests.fsync, vfs.fsync, nothing),
            Op.RELEASE: Row("release", requests.handle, vfs.release, nothing),
            Op.OPENDIR: Row(
                "opendir", requests.asked_inode, by_name(self.opendir, 1), replies.opened_directory, gives_handle=True
            ),
            Op.READDIR: Row("readdir", requests.read, self.readdir, replies.bare_rows),
            Op.READDIRPLUS: Row("readdir", requests.read, self.readdir, reply.rows),
            Op.RELEASEDIR: Row("releasedir", requests.handle, vfs.releasedir, nothing),
            Op.FSYNCDIR: Row("fsyncdir", requests.fsync, vfs.fsyncdir, nothing),
            Op.GETXATTR: Row("getxattr", requests.getxattr, by_name(self.getxattr, 0), _as_it_is),
            Op.SETXATTR: Row("setxattr", requests.setxattr, by_name(self.setxattr, 1), nothing),
            Op.LISTXATTR: Row("listxattr", requests.listxattr, by_name(self.listxattr, 0), _as_it_is),
            Op.REMOVEXATTR: Row("removexattr", requests.name, by_name(self.removexattr, 1), nothing),
        }

    # -- what the access log shows

    @property
    def active(self) -> bool:
        return self._access_log.active

    async def served(self, row: Row, who: tuple[int, int, int], ino: Ino, args: tuple[Any, ...]) -> Any:
        """The same as calling the handler, with a line for `.accesslog`."""
        if row.name in OF_HANDLES and self._is_special(args[0]):
            return await row.handler(*args)  # a reader of the log must not feed it
        began = time.perf_counter()
        call = access_lines.call_text(row.name, [each for each in args if not isinstance(each, Cred)])
        try:
            result = await row.handler(*args)
        except FsError as error:
            self._access_log.note(who, call, "", error.errno, began)
            raise
        self._access_log.note(who, call, access_lines.result_text(row.name, result), 0, began)
        return result

    def _is_special(self, fh: int) -> bool:
        handle = self._vfs.handles.find(fh)
        return handle is not None and handle.file is None

    # -- names and inodes

    async def lookup(self, cred: Cred, parent: Ino, name: bytes) -> Entry:
        try:
            entry = await self._vfs.lookup(cred, parent, name)
        except FsError as error:
            if error.errno != errno.ENOENT or not self._negative:
                raise
            return ABSENT
        if is_trash(parent):
            self._settle(entry.ino)
        return entry

    def _found(self, entry: Entry) -> bytes:
        return self._replies.absent if entry is ABSENT else self._replies.entry(entry)

    async def rmdir(self, cred: Cred, parent: Ino, name: bytes) -> None:
        self._settle((await self._vfs.rmdir(cred, parent, name)).ino)

    async def rename(
        self, cred: Cred, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> Renamed:
        renamed = await self._vfs.rename(cred, parent, name, new_parent, new_name, flags)
        # Only a directory replaces a directory; a file may have more names, which lead elsewhere by and by.
        if renamed.replaced is not None and renamed.attr.type == TYPE_DIR:
            self._settle(renamed.replaced.ino)
        return renamed

    def _settle(self, ino: Ino) -> None:
        if len(self._settled) >= MOST_SETTLED:
            self._settled.clear()
        self._settled.add(ino)

    async def getattr(self, ino: Ino) -> tuple[Ino, Attr]:
        return ino, await self._vfs.getattr(ino, None)

    async def setattr(
        self,
        cred: Cred,
        ino: Ino,
        fh: int | None,
        change: AttrChange,
        size: int | None,
        atime_now: bool,
        mtime_now: bool,
    ) -> tuple[Ino, Attr]:
        if atime_now or mtime_now:
            now = time.time_ns()
            change = msgspec.structs.replace(
                change,
                atime_ns=now if atime_now else change.atime_ns,
                mtime_ns=now if mtime_now else change.mtime_ns,
            )
        try:
            return ino, await self._vfs.setattr(cred, ino, fh, change, size)
        except FsError as error:
            if fh is None:
                await self._require_current(error, ino)
            raise

    def _by_name(self, handler: Handler, *places: int) -> Handler:
        """A handler that says where the kernel must look again; `places`: where inodes are among the arguments."""

        async def served(*args: Any) -> Any:
            try:
                return await handler(*args)
            except FsError as error:
                await self._require_current(error, *(args[place] for place in places))
                raise

        return served

    async def _require_current(self, error: FsError, *inos: Ino) -> None:
        """Raises ESTALE where `error` comes of an inode that the kernel has by a name, and that is gone or in the trash.

        The kernel looks the name up again, which may lead elsewhere by now, and does the call with what it finds.
        """
        if await self._is_gone(error, *inos):
            raise FsError(errno.ESTALE) from None

    async def _is_gone(self, error: FsError, *inos: Ino) -> bool:
        """Whether it comes of one that is gone or in the trash."""
        if error.errno not in (errno.ENOENT, errno.EPERM):
            return False
        for ino in inos:
            if ino in self._settled or self._vfs.handles.dir_attr(ino) is not None or is_special(ino) or is_trash(ino):
                continue
            try:
                attr = await self._vfs.meta.getattr(ino, fresh=True)
            except FsError as gone:
                if gone.errno != errno.ENOENT:
                    raise
            else:
                if not is_trash(attr.parent):
                    continue
            return True
        return False

    # -- files and directories

    async def create(self, cred: Cred, parent: Ino, name: bytes, mode: int, flags: int) -> tuple[Entry, Handle]:
        """Where another mount has made it meanwhile it is opened, if that is the owner's plain right.

        Else ESTALE: the kernel looks again, and opens what it finds if that is permitted.  It checks that before OPEN, but not
        after CREATE.  It looks again only once, so who makes and removes one name over and over is better served at once.
        """
        while True:
            try:
                return await self._vfs.create(cred, parent, name, mode, flags)
            except FsError as error:
                if error.errno != errno.EEXIST or flags & os.O_EXCL:
                    raise
            found = await self._open_own(cred, parent, name, flags)
            if found is not None:
                return found

    async def _open_own(self, cred: Cred, parent: Ino, name: bytes, flags: int) -> tuple[Entry, Handle] | None:
        """Open a file that was there a moment ago.  None: it is gone.  ESTALE: the kernel has to check."""
        try:
            entry = await self._vfs.lookup(cred, parent, name)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        if not _is_owners_right(entry, cred, flags):
            raise FsError(errno.ESTALE)
        try:
            handle = await self._vfs.open(cred, entry.ino, flags)
        except FsError as error:
            if not await self._is_gone(error, entry.ino):
                raise
            return None
        return (entry if handle.file is None else Entry(entry.ino, handle.file.shown(handle.file.attr))), handle

    async def open(self, cred: Cred, ino: Ino, flags: int) -> Handle:
        handle = await self._vfs.open(cred, ino, flags)
        if handle.file is not None and self._replies.told.misled(ino, handle.file.shown(handle.file.attr)):
            self.forget_attr(ino)
        return handle

    async def opendir(self, cred: Cred, ino: Ino) -> tuple[int, bool]:
        """The handle, and whether the kernel may keep the listing.

        It keeps it until the directory's mtime moves, so not while a change might leave mtime where it is.
        """
        fh = await self._vfs.opendir(cred, ino)
        return fh, self._readdir_cache and self._vfs.settled_for_s(fh) > QUIET_S

    async def readdir(self, fh: int, offset: int, size: int) -> tuple[int, Sequence[DirRow]]:
        return size, await self._vfs.readdir(fh, offset)

    # -- extended attributes; without --enable-xattr the kernel learns from one ENOSYS not to ask

    async def getxattr(self, ino: Ino, name: bytes, room: int) -> bytes:
        self._require_xattrs()
        return _fitting(await self._vfs.getxattr(ino, name), room)

    async def setxattr(self, cred: Cred, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        self._require_xattrs()
        await self._vfs.setxattr(cred, ino, name, value, flags)

    async def listxattr(self, ino: Ino, room: int) -> bytes:
        self._require_xattrs()
        return _fitting(b"".join(name + b"\0" for name in await self._vfs.listxattr(ino)), room)

    async def removexattr(self, cred: Cred, ino: Ino, name: bytes) -> None:
        self._require_xattrs()
        await self._vfs.removexattr(cred, ino, name)

    def _require_xattrs(self) -> None:
        if not self._xattrs:
            raise FsError(errno.ENOSYS)


def _is_owners_right(entry: Entry, cred: Cred, flags: int) -> bool:
    """Whether it is a file that the bits of its mode allow its owner, who asks, to open so."""
    attr = entry.attr
    access = flags & os.O_ACCMODE
    wanted = (R if access != os.O_WRONLY else 0) | (W if access != os.O_RDONLY or flags & os.O_TRUNC else 0)
    return attr.type == TYPE_FILE and attr.uid == cred.uid and attr.mode >> 6 & wanted == wanted


def _as_it_is(data: Reply) -> Reply:
    return data


def _fitting(value: bytes, room: int) -> bytes:
    """An attribute's value, or its length for who asks with no room (getxattr(2))."""
    if room == 0:
        return COUNT_OUT.pack(len(value), 0)
    if len(value) > room:
        raise FsError(errno.ERANGE)
    return value


def _nobody_believes(ino: Ino) -> None:
    """Not mounted yet."""
