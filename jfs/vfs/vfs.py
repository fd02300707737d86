"""The file system as users see it: one method per system call, in terms of credentials, inodes, handles and bytes.

Every failure is an `FsError`.  Names and attributes are the metadata client's; what is added here is the data path, what
this mount's unflushed writes change about a file's attributes, and the special files of the root directory.
"""

import errno
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVarTuple

import msgspec
import trio

from jfs.chunk.store import BlockStore
from jfs.errors import Conflict, CorruptRecord, FsError, StoreError
from jfs.meta.access import without_privileges
from jfs.meta.background import keep_running
from jfs.meta.client import MetaClient, StatFs
from jfs.meta.inodes import AttrChange
from jfs.meta.rename import Renamed
from jfs.meta.types import MAX_FILE_SIZE, ROOT_INO, TRASH_INO, TYPE_DIR, Attr, Cred, Entry, Ino
from jfs.meta.unlink import Removed
from jfs.vfs.access_log import AccessLog
from jfs.vfs.buffers import BufferPool
from jfs.vfs.cleaner import Cleaner
from jfs.vfs.compactor import Compactor
from jfs.vfs.directories import DirHandle, DirRow
from jfs.vfs.durability import Durability
from jfs.vfs.files import Asked, OpenFile, OpenFileTable
from jfs.vfs.handles import Handle, HandleTable
from jfs.vfs.open_cache import OpenCache
from jfs.vfs.reader import Data, Reader
from jfs.vfs.special_files import SpecialFiles, is_special
from jfs.vfs.writer import WriteContext

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

TICK_S: Final = 0.5
RESTART_S: Final = 1.0

READS_AGAIN: Final = 3
"""So often a read begins anew because the file became longer or shorter meanwhile: one that never rests has to be read, too."""

WRITE_SHARE: Final = 0.6
READ_SHARE: Final = 0.3
"""Of `--buffer-size`: for what is to be written, and for what is read ahead; the rest is for what is on its way between threads, the kernel and the store."""

PRIVILEGES: Final = 0o6000
FOREIGN_XATTRS: Final = (b"system.", b"security.capability", b"security.selinux")
"""Not bytes to keep but rules to apply (ACLs, capabilities, labels): refused where nobody applies them."""


class VfsOptions(msgspec.Struct, frozen=True):
    """What a mount's options say about the data path."""

    buffer_size: int = 300 << 20
    max_readahead: int = 32 << 20
    open_cache_s: float = 0.0
    open_cache_limit: int = 10_000
    put_tries: int = 3
    compact: bool = True
    hide_internal: bool = False
    prefix_internal: bool = False
    checkpoint_s: float = 10.0
    config: dict[str, object] = {}
    """What `.config` shows."""


class Vfs:
    """One mounted volume."""

    def __init__(self, meta: MetaClient, blocks: BlockStore, options: VfsOptions) -> None:
        self.meta = meta
        self.blocks = blocks
        self.options = options
        self.on_changed: Callable[[Ino], None] = _ignore
        self.durability = Durability(meta, blocks)
        meta.make_durable = self.durability.sync
        self.pool = BufferPool(int(options.buffer_size * WRITE_SHARE), meta.settings.block_size << 10)
        self.writes = WriteContext(meta, blocks, self.pool, self.durability, options.put_tries)
        self.landing = self.writes.landing
        self.open_cache = OpenCache(options.open_cache_s, options.open_cache_limit)
        self.files = OpenFileTable(self.writes, self.open_cache)
        self.writes.on_change = self.open_cache.forget
        self.handles = HandleTable()
        self.reader = Reader(meta, blocks, options.max_readahead, int(options.buffer_size * READ_SHARE))
        if options.open_cache_s > 0:
            self.reader.records_ttl_s = max(self.reader.records_ttl_s, options.open_cache_s)
            self.reader.confirm = self._confirm
        self.cleaner = Cleaner(meta, blocks, self.durability)
        self.compactor = Compactor(meta, blocks, self.files, self.durability)
        self.access_log = AccessLog()
        self.special = SpecialFiles(
            self, hidden=options.hide_internal, prefixed=options.prefix_internal, config=options.config
        )
        if options.compact and not meta.options.read_only:
            self.writes.on_records = self.compactor.after_write
            self.writes.relieve = self.compactor.relieve
            self.reader.on_records = self.compactor.after_read
        self.requests: Counter[str] = Counter()
        """How many of each kind came in."""
        self._scope = trio.CancelScope()

    # -- life

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Everything that goes on in the background; returns after `close`."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                self.blocks.inherits = self.meta.had_company
                await nursery.start(self.meta.run)
                nursery.start_soon(keep_running, self.blocks.run, RESTART_S)
                self.writes.nursery = self.reader.ahead.nursery = nursery
                nursery.start_soon(keep_running, self._flush_old_slices, RESTART_S)
                if not self.meta.options.read_only:
                    nursery.start_soon(keep_running, self.cleaner.run, RESTART_S)
                    nursery.start_soon(keep_running, self._checkpoints, RESTART_S)
                    nursery.start_soon(keep_running, self.compactor.run, RESTART_S)
                task_status.started()
                await trio.sleep_forever()

    def start_soon(self, work: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Work that nobody waits for; it must not raise."""
        if self.writes.nursery is None:
            raise RuntimeError("the mount's background is not running")
        self.writes.nursery.start_soon(work, *args)

    async def close(self) -> None:
        """Flush every file, make all of it durable, end the session, stop `run`."""
        self.compactor.stop()
        for file in list(self.files):
            await file.writer.flush()
        try:
            if not self.meta.options.read_only:
                await self._durable()
            for handle in list(self.handles):
                await self._let_go(handle)
            if not self.meta.options.read_only:
                await self.cleaner.drain()
        finally:
            await self.meta.close_session()
            self.blocks.hurry()
            self._scope.cancel()
            self.pool.close()

    async def _flush_old_slices(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self.writes.tick()
            self.pool.trim()
            self.reader.ahead.trim()

    async def _checkpoints(self) -> None:
        last = trio.current_time()
        while True:
            await trio.sleep(1.0)
            if self.meta.wants_checkpoint() or trio.current_time() - last >= self.options.checkpoint_s > 0:
                last = trio.current_time()
                try:
                    await self.durability.checkpoint()
                except (StoreError, OSError, FsError, Conflict, CorruptRecord) as error:
                    log.warning("checkpoint failed: %s", error)

    # -- names

    async def lookup(self, cred: Cred, parent: Ino, name: bytes) -> Entry:
        special = self.special.lookup(parent, name)
        if special is not None:
            return special
        if parent == ROOT_INO and self.special.is_trash_name(name):
            return Entry(TRASH_INO, await self._trash_attr())
        asked = self.files.ask() if self.open_cache.seconds else None
        entry = await self.meta.lookup(cred, parent, name)
        if asked is not None:
            self.files.learn(entry.ino, entry.attr, asked)
        return self._with_unflushed(entry)

    async def mknod(self, cred: Cred, parent: Ino, name: bytes, mode: int, rdev: int) -> Entry:
        self.special.refuse_creation(parent, name)
        return await self.meta.mknod(cred, parent, name, mode, rdev)

    async def mkdir(self, cred: Cred, parent: Ino, name: bytes, mode: int) -> Entry:
        self.special.refuse_creation(parent, name)
        return await self.meta.mkdir(cred, parent, name, mode)

    async def symlink(self, cred: Cred, parent: Ino, name: bytes, target: bytes) -> Entry:
        self.special.refuse_creation(parent, name)
        return await self.meta.symlink(cred, parent, name, target)

    async def link(self, cred: Cred, ino: Ino, parent: Ino, name: bytes) -> Entry:
        if is_special(ino):
            raise FsError(errno.EPERM)
        self.special.refuse_creation(parent, name)
        entry = await self.meta.link(cred, ino, parent, name)
        self.open_cache.forget(entry.ino)
        return self._with_unflushed(entry)

    async def unlink(self, cred: Cred, parent: Ino, name: bytes) -> None:
        self.special.refuse_removal(parent, name)
        self._took_away(await self.meta.unlink(cred, parent, name))

    def _took_away(self, removed: Removed) -> None:
        self.open_cache.forget(removed.ino)
        file = self.files.get(removed.ino)
        if file is not None and removed.trashed:
            file.trashed = True

    async def rmdir(self, cred: Cred, parent: Ino, name: bytes) -> Removed:
        self.special.refuse_removal(parent, name)
        return await self.meta.rmdir(cred, parent, name)

    async def rename(
        self, cred: Cred, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> Renamed:
        self.special.refuse_removal(parent, name)
        self.special.refuse_removal(new_parent, new_name)
        renamed = await self.meta.rename(cred, parent, name, new_parent, new_name, flags)
        self.open_cache.forget(renamed.ino)
        if renamed.replaced is not None:
            self._took_away(renamed.replaced)
        if renamed.exchanged is not None:
            self.open_cache.forget(renamed.exchanged.ino)
        return renamed

    async def readlink(self, ino: Ino) -> bytes:
        return await self.meta.readlink(ino)

    # -- attributes

    async def getattr(self, ino: Ino, fh: int | None = None) -> Attr:
        if is_special(ino):
            return self.special.attr(ino)
        if ino == TRASH_INO:
            return await self._trash_attr()
        file = self.files.get(ino)
        known = self.open_cache.attr(ino)
        if known is not None:
            return known if file is None else file.shown(known)
        asked = self.files.ask(ino)
        fresh = file is not None and self.open_cache.seconds > 0
        try:
            attr = await self.meta.getattr(ino, fresh=fresh)
        except FsError as error:
            # What is open keeps answering fstat after it is gone, as on a local file system.
            gone = self._last_seen(ino) if error.errno == errno.ENOENT else None
            if gone is None:
                raise
            return gone
        if self.open_cache.seconds:
            self.open_cache.saw(ino, attr, asked, keep=file is not None)
        if file is None:
            return attr
        self._refresh(file, attr, asked)
        return file.shown(file.attr)

    def _last_seen(self, ino: Ino) -> Attr | None:
        """Of an open file or directory that is gone: nothing links to it any more."""
        file = self.files.get(ino)
        attr = self.handles.dir_attr(ino) if file is None else file.shown(file.attr)
        return None if attr is None else msgspec.structs.replace(attr, nlink=0)

    async def setattr(self, cred: Cred, ino: Ino, fh: int | None, change: AttrChange, size: int | None) -> Attr:
        """Truncate to `size` unless None, then the rest.  A given time must not be overtaken by an older write's."""
        if is_special(ino):
            return self.special.attr(ino)
        attr: Attr | None = None
        if size is not None:
            handle = self.handles.find(fh)
            opened = handle.writable if handle is not None else self.files.is_trashed(ino)
            attr = await self._truncate(cred, ino, size, opened=opened)
        file = self.files.get(ino)
        if attr is None or change != NO_CHANGE:
            if file is not None and file.writer.dirty:
                await file.writer.flush()
            opened = fh is not None or self.files.is_trashed(ino)  # the kernel names a handle with few changes
            attr = await self.meta.setattr(cred, ino, change, opened=opened)
            self.open_cache.forget(ino)
            file = self.files.get(ino)  # it may have been opened, or closed, meanwhile
            if file is not None:
                file.notice(attr)
                file.adopt(attr)
        return attr if file is None else file.shown(attr)

    async def _truncate(self, cred: Cred, ino: Ino, size: int, *, opened: bool) -> Attr:
        """In order with this mount's writes: those before it are committed first, those after it wait."""
        if size < 0 or size > MAX_FILE_SIZE:
            raise FsError(errno.EFBIG)
        file = self.files.get(ino)
        if file is None:
            attr = await self.meta.truncate(cred, ino, size, opened=opened)
            self.open_cache.forget(ino)
            return attr
        async with file.writer.paused():
            await file.writer.flush()
            attr = await self.meta.truncate(cred, ino, size, opened=opened)
            file.truncated(attr)
            self.open_cache.forget(ino)
        return attr

    def _with_unflushed(self, entry: Entry) -> Entry:
        file = self.files.get(entry.ino)
        if file is None:
            return entry
        file.notice(entry.attr)
        return Entry(entry.ino, file.shown(entry.attr)) if file.writer.dirty else entry

    def _refresh(self, file: OpenFile, attr: Attr, asked: Asked) -> None:
        if file.refresh(attr, asked):
            self.on_changed(file.ino)

    async def statfs(self) -> StatFs:
        return await self.meta.statfs()

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if is_special(ino) or name.startswith(FOREIGN_XATTRS):
            raise FsError(errno.ENODATA)
        return await self.meta.getxattr(ino, name)

    async def setxattr(self, cred: Cred, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        if is_special(ino):
            raise FsError(errno.EPERM)
        if name.startswith(FOREIGN_XATTRS):
            raise FsError(errno.ENOTSUP)
        await self.meta.setxattr(cred, ino, name, value, flags, opened=self.files.is_trashed(ino))
        self.open_cache.forget(ino)

    async def listxattr(self, ino: Ino) -> list[bytes]:
        return [] if is_special(ino) else await self.meta.listxattr(ino)

    async def removexattr(self, cred: Cred, ino: Ino, name: bytes) -> None:
        if is_special(ino):
            raise FsError(errno.EPERM)
        await self.meta.removexattr(cred, ino, name, opened=self.files.is_trashed(ino))
        self.open_cache.forget(ino)

    # -- files

    async def create(self, cred: Cred, parent: Ino, name: bytes, mode: int, flags: int) -> tuple[Entry, Handle]:
        """A file that was not there; EEXIST where the name is taken."""
        self.special.refuse_creation(parent, name)
        asked = self.files.ask()
        entry = await self.meta.create(cred, parent, name, mode)
        file = self._enter(entry.ino, entry.attr, asked)
        return self._with_unflushed(entry), self._new_handle(cred, file, flags)

    async def open(self, cred: Cred, ino: Ino, flags: int) -> Handle:
        if is_special(ino):
            return self.handles.add_special(self.special.open(cred, ino, flags))
        asked = self.files.ask(ino)
        believed = False

        def known_attr() -> Attr | None:
            nonlocal believed
            attr = self.open_cache.attr(ino)
            believed = attr is not None
            return attr

        known = known_attr if self.open_cache.seconds > 0 else None
        attr = await self.meta.open(cred, ino, flags, known, opened=self.files.is_trashed(ino))
        if not believed:
            self.open_cache.saw(ino, attr, asked, keep=True)
        file = self._enter(ino, attr, asked, believed=believed)
        handle = self._new_handle(cred, file, flags)
        if flags & os.O_TRUNC and handle.writable:
            await self._empty(cred, handle, ino)
        handle.keep_cache = not handle.direct_io and self.files.unchanged_since_last_open(ino, attr)
        return handle

    def _enter(self, ino: Ino, attr: Attr, asked: Asked, *, believed: bool = False) -> OpenFile:
        """One more handle on the inode: what others closed before this open must be seen, whoever wrote last.

        Unless `believed` attributes are enough for this open.
        """
        known = self.files.get(ino)
        file = self.files.enter(ino, attr, asked)
        if known is None:
            file.records = self.open_cache.records(ino)
        elif not believed:
            self._refresh(file, attr, asked)
            file.forget_records()
        return file

    def _new_handle(self, cred: Cred, file: OpenFile, flags: int) -> Handle:
        handle = self.handles.add(file, flags=flags, cred=cred)
        handle.disk_failures = self.durability.failures
        return handle

    async def _empty(self, cred: Cred, handle: Handle, ino: Ino) -> None:
        """O_TRUNC.  An open that fails leaves no handle."""
        try:
            await self._truncate(cred, ino, 0, opened=True)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._let_go(handle)
            raise

    async def read(self, fh: int, offset: int, size: int) -> Data:
        handle = self.handles.get(fh)
        file = handle.file
        if file is None:
            return await handle.read_special(offset, size)
        if not handle.readable:
            raise FsError(errno.EBADF)
        try:
            if offset + size > file.length and self.open_cache.attr(file.ino) is None:
                await self._ask_again(file)
            self.compactor.requests += 1
            if self.open_cache.seconds:
                return await self._read_believing(file, handle, offset, size)
            return await self.reader.read(file, handle, offset, size)
        except (StoreError, CorruptRecord, OSError) as error:
            log.error("read inode %d at %d: %s", file.ino, offset, error)
            raise FsError(errno.EIO) from error

    async def _read_believing(self, file: OpenFile, handle: Handle, offset: int, size: int) -> Data:
        """With --open-cache: the length may turn out to be another on the way, and what was read ends at the old one."""
        for _ in range(READS_AGAIN):
            length = file.length
            data = await self.reader.read(file, handle, offset, size)
            if file.length == length:
                return data
        return await self.reader.read(file, handle, offset, size)

    async def _confirm(self, file: OpenFile) -> None:
        """With --open-cache: records of now need the length of now.  One that is gone is read on while its data is there."""
        try:
            await self._ask_again(file)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise

    async def _ask_again(self, file: OpenFile) -> None:
        """What the database says of the file now is what is known of it."""
        asked = self.files.ask(file.ino)
        attr = await self.meta.getattr(file.ino, fresh=True)
        self.open_cache.saw(file.ino, attr, asked, keep=True)
        self._refresh(file, attr, asked)

    async def write(self, fh: int, offset: int, data: bytes | memoryview, flags: int | None = None) -> int:
        """`flags`: of the descriptor now, which fcntl(2) may have changed; None: as it was opened."""
        handle = self.handles.get(fh)
        flags = handle.flags if flags is None else flags
        file = handle.file
        if file is None:
            return await handle.write_special(offset, data)
        if not handle.writable:
            raise FsError(errno.EBADF)
        size = len(data)
        if offset + size > MAX_FILE_SIZE:
            raise FsError(errno.EFBIG)
        if handle.error_seq != file.writer.error_seq:
            raise FsError(file.writer.error)
        if handle.cred.uid and file.attr.mode & PRIVILEGES:
            data = self.landing.settle(data)
            await self._drop_privileges(handle.cred, file)
        self.compactor.requests += 1
        await file.writer.write(offset, data, append=bool(flags & os.O_APPEND))
        if flags & os.O_DSYNC and handle.direct_io:
            await self.fsync(fh)  # after a direct write the kernel does not ask for it
        return size

    async def _drop_privileges(self, cred: Cred, file: OpenFile) -> None:
        """POSIX write(2): set-user-ID and set-group-ID go when anybody but root writes."""
        mode = without_privileges(file.attr.mode, cred)
        if mode != file.attr.mode:
            attr = await self.meta.setattr(cred, file.ino, AttrChange(mode=mode), opened=True)
            file.notice(attr)
            file.adopt(attr)
            self.open_cache.forget(file.ino)

    async def flush(self, fh: int) -> None:
        """What close(2) waits for: data stored, records committed.  Free for a handle that cannot write."""
        handle = self.handles.get(fh)
        file = handle.file
        if file is None or not handle.writable:
            return
        await file.writer.flush()
        handle.raise_new_error()

    async def fsync(self, fh: int, datasync: bool = False) -> None:
        """On return everything written to the file, and the file's name, survives a power cut."""
        handle = self.handles.get(fh)
        if handle.file is None:
            return
        await handle.file.writer.flush()
        handle.raise_new_error()
        try:
            await self._durable()
        finally:
            failures, handle.disk_failures = handle.disk_failures, self.durability.failures
        if failures != handle.disk_failures:
            raise FsError(errno.EIO)

    async def _durable(self) -> None:
        try:
            await self.durability.sync()
        except (StoreError, OSError) as error:
            log.error("sync failed: %s", error)
            raise FsError(errno.EIO) from error

    async def release(self, fh: int) -> None:
        await self._let_go(self.handles.get(fh))

    async def _let_go(self, handle: Handle) -> None:
        self.handles.remove(handle)
        file = handle.file
        if file is None:
            handle.close_special()
            return
        if handle.writable:
            await file.writer.flush()
        try:
            await self.meta.close(file.ino)
        finally:
            self.files.leave(file)
            if file.opens == 0:
                self.open_cache.keep_records(file.ino, file.attr, file.records)

    # -- directories

    async def opendir(self, cred: Cred, ino: Ino) -> int:
        attr = await self.getattr(ino)
        if attr.type != TYPE_DIR:
            raise FsError(errno.ENOTDIR)
        special = self.special.listed(ino)
        if ino == ROOT_INO and not self.options.hide_internal:
            special = [*special, (self.special.trash_name, TRASH_INO, await self._trash_attr())]
        return self.handles.add_dir(DirHandle(self.meta, cred, ino, attr, special, self.files))

    def settled_for_s(self, fh: int) -> float:
        """For how many seconds an open directory had not changed by the clock of now, beyond --skip-dir-mtime."""
        attr = self.handles.directory(fh).attr
        return (self.meta.now_ns() - attr.mtime_ns - self.meta.options.skip_dir_mtime_ns) / 1_000_000_000

    async def _trash_attr(self) -> Attr:
        try:
            return await self.meta.getattr(TRASH_INO)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise
            return self.special.trash_attr()

    async def readdir(self, fh: int, offset: int) -> list[DirRow]:
        """Rows (name, inode, attr or None, offset of the next row) from `offset`; empty at the end."""
        return await self.handles.directory(fh).rows(offset)

    async def releasedir(self, fh: int) -> None:
        self.handles.remove_dir(fh)

    async def fsyncdir(self, fh: int, datasync: bool = False) -> None:
        await self._durable()


NO_CHANGE: Final = AttrChange()


def _ignore(ino: Ino) -> None:
    """Nobody caches anything."""
