"""pyfuse3's request handlers, in terms of the Vfs.  Translates and decides nothing.

pyfuse3 copies a reply out of the object that a handler returns before anything else runs, so the adapter has one
`EntryAttributes` per kind of inode and one `FileInfo`, and fills them as the last thing it does, after its last await.
An exception that is not a FUSEError would end the mount: `answers` turns every error into one.
"""

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, ParamSpec, TypeVar

import msgspec
import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from jfs.errors import CorruptRecord, FsError
from jfs.fuse import access_lines
from jfs.fuse.told import Told
from jfs.meta.inodes import AttrChange
from jfs.meta.types import S_IFMT_OF, TYPE_DIR, TYPE_FILE, Attr, Cred, Entry, Ino
from jfs.vfs.handles import Handle
from jfs.vfs.vfs import Vfs

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_SIZE: Final = 65536
"""st_blksize: how much programs that ask read and write at a time."""

STATFS_BLOCK: Final = 4096

OF_HANDLES: Final = frozenset({"read", "write", "flush", "fsync", "release"})


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds for which the kernel may answer from its caches."""

    attr: float = 1.0
    entry: float = 1.0
    dir_entry: float = 1.0
    negative: float = 0.0


def answers(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a handler's failures into errnos: the file system's own as they are, anything else a bug: logged, EIO."""

    name = handler.__name__

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        adapter: Any = args[0]
        adapter.requests[name] += 1
        try:
            if adapter.access_log.active:
                reply: T = await adapter.logged(name, handler, args)
                return reply
            return await handler(*args, **kwargs)
        except FsError as error:
            raise FUSEError(error.errno) from None
        except FUSEError:
            raise
        except CorruptRecord as error:
            log.error("%s: %s", name, error)
            raise FUSEError(errno.EIO) from None
        except Exception:
            log.exception("%s failed", name)
            raise FUSEError(errno.EIO) from None

    return answer


class Adapter(pyfuse3.Operations):
    """One mount's handlers."""

    def __init__(self, vfs: Vfs, timeouts: Timeouts, *, xattrs: bool) -> None:
        super().__init__()
        self._vfs = vfs
        self.access_log = vfs.access_log
        self.requests = vfs.requests
        self._timeouts = timeouts
        self._xattrs = xattrs
        self._creds: dict[tuple[int, int, int], Cred] = {}
        self._told = Told(timeouts.attr)
        self._info = FileInfo()
        self._file = self._blank(timeouts.entry)
        self._dir = self._blank(timeouts.dir_entry)
        self._nothing = self._blank(timeouts.negative)

    def _blank(self, entry_timeout: float) -> EntryAttributes:
        reply = EntryAttributes()
        reply.entry_timeout = entry_timeout
        reply.attr_timeout = self._timeouts.attr
        reply.st_blksize = BLOCK_SIZE
        return reply

    def _reply(self, ino: Ino, attr: Attr) -> EntryAttributes:
        reply = self._dir if attr.type == TYPE_DIR else self._file
        length = attr.length
        if attr.type == TYPE_FILE:
            self._told.note(ino, attr)
        reply.st_ino = ino
        reply.st_mode = S_IFMT_OF[attr.type] | attr.mode
        reply.st_nlink = attr.nlink
        reply.st_uid = attr.uid
        reply.st_gid = attr.gid
        reply.st_rdev = attr.rdev
        reply.st_size = length
        reply.st_blocks = (length + 511) >> 9
        reply.st_atime_ns = attr.atime_ns
        reply.st_mtime_ns = attr.mtime_ns
        reply.st_ctime_ns = attr.ctime_ns
        return reply

    def _entry(self, entry: Entry) -> EntryAttributes:
        return self._reply(entry.ino, entry.attr)

    def _opened(self, handle: Handle) -> FileInfo:
        info = self._info
        info.fh = handle.fh
        info.direct_io = handle.direct_io
        info.keep_cache = handle.keep_cache
        return info

    def _cred(self, ctx: RequestContext) -> Cred:
        key = (ctx.uid, ctx.gid, ctx.umask)
        cred = self._creds.get(key)
        if cred is None:
            if len(self._creds) > 1000:
                self._creds.clear()
            cred = self._creds[key] = Cred(uid=key[0], gid=key[1], umask=key[2])
        return cred

    async def logged(self, name: str, handler: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> T:
        """The same as calling the handler, with a line for `.accesslog`."""
        if name in OF_HANDLES and self._is_special(args[1]):
            return await handler(*args)  # a reader of the log must not feed it
        began = time.perf_counter()
        who = (0, 0, 0)
        shown = args[1:]
        if shown and isinstance(shown[-1], RequestContext):
            who = (shown[-1].uid, shown[-1].gid, shown[-1].pid)
            shown = shown[:-1]
        call = access_lines.call_text(name, shown)
        try:
            reply = await handler(*args)
        except (FsError, FUSEError) as error:
            self.access_log.note(who, call, "", error.errno, began)
            raise
        self.access_log.note(who, call, access_lines.result_text(name, reply), 0, began)
        return reply

    def _is_special(self, fh: int) -> bool:
        handle = self._vfs.handles.find(fh)
        return handle is not None and handle.file is None

    # -- names

    @answers
    async def lookup(self, parent_inode: Ino, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._entry(await self._vfs.lookup(self._cred(ctx), parent_inode, name))
        except FsError as error:
            if error.errno != errno.ENOENT or not self._timeouts.negative:
                raise
            self._nothing.st_ino = 0
            return self._nothing

    async def forget(self, inode_list: Sequence[tuple[Ino, int]]) -> None:
        return None

    @answers
    async def mknod(self, parent_inode: Ino, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._vfs.mknod(self._cred(ctx), parent_inode, name, mode, rdev))

    @answers
    async def mkdir(self, parent_inode: Ino, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._vfs.mkdir(self._cred(ctx), parent_inode, name, mode))

    @answers
    async def symlink(self, parent_inode: Ino, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._vfs.symlink(self._cred(ctx), parent_inode, name, target))

    @answers
    async def link(self, inode: Ino, new_parent_inode: Ino, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._vfs.link(self._cred(ctx), inode, new_parent_inode, new_name))

    @answers
    async def unlink(self, parent_inode: Ino, name: bytes, ctx: RequestContext) -> None:
        await self._vfs.unlink(self._cred(ctx), parent_inode, name)

    @answers
    async def rmdir(self, parent_inode: Ino, name: bytes, ctx: RequestContext) -> None:
        await self._vfs.rmdir(self._cred(ctx), parent_inode, name)

    @answers
    async def rename(
        self,
        parent_inode_old: Ino,
        name_old: bytes,
        parent_inode_new: Ino,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._vfs.rename(self._cred(ctx), parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @answers
    async def readlink(self, inode: Ino, ctx: RequestContext) -> bytes:
        return await self._vfs.readlink(inode)

    # -- inodes

    @answers
    async def getattr(self, inode: Ino, ctx: RequestContext) -> EntryAttributes:
        return self._reply(inode, await self._vfs.getattr(inode, None))

    @answers
    async def setattr(
        self, inode: Ino, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        change = AttrChange(
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        size = attr.st_size if fields.update_size else None
        return self._reply(inode, await self._vfs.setattr(self._cred(ctx), inode, fh, change, size))

    @answers
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        usage = await self._vfs.statfs()
        reply = StatvfsData()
        reply.f_bsize = reply.f_frsize = STATFS_BLOCK
        reply.f_blocks = usage.total_space // STATFS_BLOCK
        reply.f_bfree = reply.f_bavail = usage.available_space // STATFS_BLOCK
        reply.f_files = usage.used_inodes + usage.available_inodes
        reply.f_ffree = reply.f_favail = usage.available_inodes
        reply.f_namemax = 255
        return reply

    # -- files

    @answers
    async def create(
        self, parent_inode: Ino, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry, handle = await self._vfs.create(self._cred(ctx), parent_inode, name, mode, flags)
        return self._opened(handle), self._entry(entry)

    @answers
    async def open(self, inode: Ino, flags: int, ctx: RequestContext) -> FileInfo:
        try:
            handle = await self._vfs.open(self._cred(ctx), inode, flags)
        except FsError as error:
            # The kernel knew the inode by a name that leads elsewhere by now: ESTALE makes it look the name up again.
            raise FsError(errno.ESTALE if error.errno == errno.ENOENT else error.errno) from None
        if handle.file is not None and self._told.misled(inode, handle.file.shown(handle.file.attr)):
            pyfuse3.invalidate_inode(inode, attr_only=True)
        return self._opened(handle)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._vfs.read(fh, off, size)  # type: ignore[return-value]  # any buffer will do

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._vfs.write(fh, off, buf)

    @answers
    async def flush(self, fh: int) -> None:
        await self._vfs.flush(fh)

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._vfs.fsync(fh, datasync)

    @answers
    async def release(self, fh: int) -> None:
        await self._vfs.release(fh)

    # -- directories

    @answers
    async def opendir(self, inode: Ino, ctx: RequestContext) -> int:
        return await self._vfs.opendir(self._cred(ctx), inode)

    @answers
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for name, ino, attr, next_offset in await self._vfs.readdir(fh, start_id):
            if attr is not None:
                reply = self._reply(ino, attr)
            else:
                reply = self._nothing
                reply.st_ino = ino
                reply.st_mode = 0
            if not pyfuse3.readdir_reply(token, name, reply, next_offset):
                return

    @answers
    async def releasedir(self, fh: int) -> None:
        await self._vfs.releasedir(fh)

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._vfs.fsyncdir(fh, datasync)

    # -- extended attributes; without --enable-xattr the kernel learns from one ENOSYS not to ask

    @answers
    async def getxattr(self, inode: Ino, name: bytes, ctx: RequestContext) -> bytes:
        self._require_xattrs()
        return await self._vfs.getxattr(inode, name)

    @answers
    async def setxattr(self, inode: Ino, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._require_xattrs()
        await self._vfs.setxattr(self._cred(ctx), inode, name, value, 0)

    @answers
    async def listxattr(self, inode: Ino, ctx: RequestContext) -> Sequence[bytes]:
        self._require_xattrs()
        return await self._vfs.listxattr(inode)

    @answers
    async def removexattr(self, inode: Ino, name: bytes, ctx: RequestContext) -> None:
        self._require_xattrs()
        await self._vfs.removexattr(self._cred(ctx), inode, name)

    def _require_xattrs(self) -> None:
        if not self._xattrs:
            raise FUSEError(errno.ENOSYS)
