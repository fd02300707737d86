"""A client of one volume's metadata: what the file layer and the commands call.

It runs operations in transactions, knows what this process has open, and keeps the volume's books, session and settings
up to date.  Where `ClientOptions.subdir` is set, that directory is shown as inode 1 and nothing above it can be reached.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeVar, TypeVarTuple, cast

import msgspec
import trio

import jfs
from jfs.errors import CorruptRecord, FsError, StoreError, UserError
from jfs.meta import background, files, fingerprints, inodes, jobs, namespace, sessions, trash, volume_format, xattrs
from jfs.meta.access import X, permitted
from jfs.meta.ahead import Ahead
from jfs.meta.files import CompactionPlan, Written
from jfs.meta.ids import Ids
from jfs.meta.inode_locks import InodeLocks
from jfs.meta.inodes import AttrChange
from jfs.meta.jobs import DeletedQueue
from jfs.meta.memo import Memo
from jfs.meta.open_files import OpenFiles
from jfs.meta.recent import Recent
from jfs.meta.rename import Renamed, rename
from jfs.meta.run import read, run
from jfs.meta.settings import Settings
from jfs.meta.transaction import ChargedTransaction, Engine, Transaction
from jfs.meta.types import (
    ROOT,
    ROOT_INO,
    TYPE_DIR,
    TYPE_FILE,
    TYPE_OF_S_IFMT,
    TYPE_SYMLINK,
    Attr,
    Cred,
    DeletedFile,
    DirEntry,
    Entry,
    Ino,
    Slice,
    SliceRef,
    is_trash,
)
from jfs.meta.unlink import Removed, rmdir, unlink
from jfs.meta.usage import Reservation, StatFs, Usage

__all__ = ["ClientOptions", "MetaClient", "StatFs"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger(__name__)

INODES_AT_ONCE: Final = 1024
SLICES_AT_ONCE: Final = 4096
SECOND: Final = 1_000_000_000
CLOSE_TIMEOUT_S: Final = 30.0


class ClientOptions(msgspec.Struct):
    """How a client behaves.  The file layer reads `check_permissions` (fill `Cred.check`) and `max_deletes`."""

    read_only: bool = False
    atime_mode: str = "noatime"
    skip_dir_mtime_ns: int = 0
    heartbeat_s: float = 12.0
    bgjob: bool = True
    subdir: str = ""
    attr_cache_s: float = 0.0
    """For how long attributes may be older than what other clients have made of them."""
    max_deletes: int = 10
    version: str = jfs.CLIENT_VERSION
    mountpoint: str = ""
    check_permissions: bool = False


class MetaClient:
    """One volume, seen by one process."""

    def __init__(
        self,
        engine: Engine,
        options: ClientOptions,
        settings: Settings,
        *,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.engine = engine
        self.options = options
        self.settings = settings
        self.settings_text = settings.text()
        self.fingerprinting = False
        """Whether new slices get fingerprints, and those of others are worth a look."""
        self.now_ns = now_ns
        self.sid = 0
        self.had_company = False
        """Whether there were other sessions when this one began; some of them may be of mounts that died."""
        self.root: Ino = ROOT_INO
        self.usage = Usage()
        self.open_files = OpenFiles()
        self.deleted = DeletedQueue()
        self.on_settings: list[Callable[[Settings], None]] = []
        self.on_fatal: Callable[[str], None] = _log_fatal
        self.make_durable: Callable[[], Awaitable[None]] = engine.sync
        """For all that is committed; a mount's blocks come first."""
        self._info = b""
        self._inodes = Ids(partial(self._next_ids, "nextInode", INODES_AT_ONCE), INODES_AT_ONCE)
        self._slices = Ids(self._next_slice_ids, SLICES_AT_ONCE)
        self._ids_low = trio.Event()
        self._hour = (b"", 0)
        self._flushing = trio.Lock()
        # An engine that answers inline runs one transaction after the other anyway.
        self._locks = None if engine.inline else InodeLocks()
        self._recent = None if engine.inline else Recent(self.options.attr_cache_s)
        watch = engine.watch()
        self._memo = None if watch is None else Memo(engine, watch)

    # -- life

    @classmethod
    async def connect(
        cls, engine: Engine, options: ClientOptions | None = None, *, now_ns: Callable[[], int] = time.time_ns
    ) -> "MetaClient":
        """The volume's client, without a session.  UserError where there is no volume, or none that jfs may write to."""
        text = await read(engine, volume_format.load_text)
        settings = Settings.parse(text)
        client = cls(engine, options or ClientOptions(), settings, now_ns=now_ns)
        client.settings_text = text
        client.fingerprinting = await read(engine, fingerprints.kept)
        if not client.options.read_only:
            if settings.change_log:
                raise UserError("this volume has its change log on, which jfs does not write yet: use --read-only")
            await engine.prepare()
        await client.usage.load(engine)
        if client.options.subdir.strip("/"):
            client.root = await client._resolve_subdir(client.options.subdir)
        return client

    async def _resolve_subdir(self, path: str) -> Ino:
        """The inode of a directory in the volume, made if it is missing and may be."""
        ino: Ino = ROOT_INO
        for name in path.encode(errors="surrogateescape").split(b"/"):
            if name in (b"", b"."):
                continue
            try:
                entry = await read(self.engine, namespace.lookup, ino, name)
            except FsError as error:
                if error.errno != errno.ENOENT or self.options.read_only:
                    raise UserError(f"subdir {path}: {error}") from error
                entry = await self.mkdir(ROOT, ino, name, 0o777)
            if entry.attr.type != TYPE_DIR:
                raise UserError(f"subdir {path}: {os.strerror(errno.ENOTDIR)}")
            ino = entry.ino
        return ino

    async def start_session(self) -> None:
        """Open a session in the volume; a read-only client has none and writes nothing."""
        if self.options.read_only:
            return
        if self.settings.enable_acl:
            raise UserError("this volume has ACLs enabled, which jfs does not support yet: use --read-only")
        quotas = await read(self.engine, _dir_quotas)
        if quotas:
            log.warning(
                "%d directory quotas are set on this volume: this version neither counts nor enforces them", quotas
            )
        now_ns = self.now_ns()
        self._info = sessions.session_info(self.options.version, self.options.mountpoint, now_ns)
        expire = sessions.expiry(now_ns, self.options.heartbeat_s)
        self.sid = await self.write(sessions.new_session, expire, self._info)
        self.had_company = await self.has_company()

    async def has_company(self) -> bool:
        """Whether the volume has other sessions than this."""
        return any(each.sid != self.sid for each in await read(self.engine, sessions.all_sessions))

    async def close_session(self) -> None:
        """Store what is pending and end the session; inodes that only it kept alive go.  Safe without a session."""
        if self.options.read_only:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S) as scope:
            await self.flush_usage(last=True)
            if self.sid:
                sid, self.sid = self.sid, 0
                await self._clean_session(sid, None)
                await self.flush_usage(last=True)
        if scope.cancelled_caught:
            log.error("the database did not answer within %g s: the session is left to lapse", CLOSE_TIMEOUT_S)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Everything that goes on in the background, until cancelled."""
        await background.run(self, task_status)

    def now_s(self) -> int:
        return self.now_ns() // SECOND

    def fatal(self, why: str) -> None:
        """The volume under this client is gone: whoever mounted it decides what becomes of the mount."""
        self.on_fatal(why)

    def take_settings(self, settings: Settings, text: bytes) -> None:
        """Others have changed the settings."""
        log.info("found new configuration: %s", msgspec.json.encode(settings.public()).decode())
        if settings.change_log and not self.settings.change_log and not self.options.read_only:
            log.error("the change log was turned on: what this client changes will be missing from it")
        if settings.enable_acl and not self.settings.enable_acl:
            log.warning("ACLs were enabled: this client keeps them, but does not apply them")
        self.settings = settings
        self.settings_text = text
        for listener in self.on_settings:
            listener(settings)

    # -- transactions

    async def write(
        self,
        operation: Callable[[Transaction, *Ts], Awaitable[T]],
        *args: *Ts,
        turn: tuple[Ino, ...] = (),
        ahead: Ahead | None = None,
    ) -> T:
        """Run an operation that changes the volume, and book what it charges.  EROFS on a read-only client.

        Those whose `turn` names the same inode run one after the other, and return in the order of their commits.  The first
        try is made in the transaction that was begun `ahead`, if there is one.
        """
        if self.options.read_only:
            raise FsError(errno.EROFS)
        recent = self._recent
        began = 0.0 if recent is None else recent.now()
        if turn and self._locks is not None:
            async with self._locks.hold(*turn):
                result, charges = await run(self.engine, operation, *args, ahead=ahead)
        else:
            result, charges = await run(self.engine, operation, *args, ahead=ahead)
        self.usage.add(charges)
        if recent is not None:
            recent.wrote(charges.attrs, charges.version, began)
        return result

    async def grow(
        self,
        operation: Callable[[Transaction, *Ts], Awaitable[T]],
        *args: *Ts,
        turn: tuple[Ino, ...] = (),
        ahead: Ahead | None = None,
    ) -> T:
        """The same for one that may need more room: ENOSPC, and nothing changed, where the volume's limits forbid it."""
        if self.settings.capacity <= 0 and self.settings.inodes <= 0:
            return await self.write(operation, *args, turn=turn, ahead=ahead)
        reservation = Reservation()

        async def within_limits(tx: Transaction) -> T:
            self.usage.release(reservation)  # of the try before this one
            result = await operation(tx, *args)
            self.usage.reserve(self.settings, reservation, cast(ChargedTransaction, tx).charges)
            return result

        try:
            return await self.write(within_limits, turn=turn, ahead=ahead)
        finally:
            self.usage.release(reservation)

    # -- subdirectory mounts

    def _real(self, ino: Ino) -> Ino:
        return self.root if ino == ROOT_INO else ino

    def _shown(self, entry: Entry) -> Entry:
        return Entry(ROOT_INO, entry.attr) if entry.ino == self.root else entry

    # -- names

    async def lookup(self, cred: Cred, parent: Ino, name: bytes) -> Entry:
        parent = self._real(parent)
        if cred.check:
            await self.access(cred, parent, X)
        if name == b".." and parent == self.root:
            name = b"."
        if self._memo is not None:
            return self._shown(await self._memo.lookup(parent, name))
        recent = self._recent
        if recent is None:
            return self._shown(await read(self.engine, namespace.lookup, parent, name))
        entry = await read(self.engine, namespace.lookup, parent, name, recent.guess(parent, name))
        recent.named(parent, name, entry.ino)
        recent.saw(entry.ino)
        return self._shown(entry)

    async def access(self, cred: Cred, ino: Ino, mask: int) -> None:
        """EACCES where the mode bits refuse some of `mask` (R 4, W 2, X 1)."""
        if not permitted(await self.getattr(ino), cred, mask):
            raise FsError(errno.EACCES)

    async def mknod(self, cred: Cred, parent: Ino, name: bytes, mode: int, rdev: int) -> Entry:
        """`mode` with its type bits; none of them: a regular file."""
        attr_type = TYPE_OF_S_IFMT.get(stat.S_IFMT(mode) or stat.S_IFREG)
        if attr_type is None or attr_type in (TYPE_DIR, TYPE_SYMLINK):
            raise FsError(errno.EINVAL)
        return await self._mknod(cred, parent, name, await self._inodes.draw(), attr_type, mode, rdev=rdev)

    async def mkdir(self, cred: Cred, parent: Ino, name: bytes, mode: int) -> Entry:
        return await self._mknod(cred, parent, name, await self._inodes.draw(), TYPE_DIR, mode)

    async def symlink(self, cred: Cred, parent: Ino, name: bytes, target: bytes) -> Entry:
        ino = await self._inodes.draw()
        return await self._mknod(cred, parent, name, ino, TYPE_SYMLINK, 0o777, target=target)

    async def _mknod(
        self,
        cred: Cred,
        parent: Ino,
        name: bytes,
        ino: Ino,
        attr_type: int,
        mode: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Entry:
        operation = partial(namespace.mknod, target=target, skip_mtime_ns=self.options.skip_dir_mtime_ns)
        parent = self._real(parent)
        mode = stat.S_IMODE(mode)
        now_ns = self.now_ns()
        entry = await self.grow(operation, cred, parent, name, ino, attr_type, mode, rdev, now_ns, turn=(parent,))
        if self._recent is not None:
            self._recent.named(parent, name, ino)
        return entry

    async def link(self, cred: Cred, ino: Ino, parent: Ino, name: bytes) -> Entry:
        operation = partial(namespace.link, skip_mtime_ns=self.options.skip_dir_mtime_ns)
        ino, parent = self._real(ino), self._real(parent)
        return await self.grow(operation, cred, ino, parent, name, self.now_ns(), turn=(ino, parent))

    async def readdir(self, cred: Cred, ino: Ino, after: bytes | None, limit: int) -> list[DirEntry]:
        ino = self._real(ino)
        page = await read(self.engine, namespace.readdir, cred, ino, after, limit)
        if after is None:
            await self.touch_atime(ino)
        return page

    async def readlink(self, ino: Ino) -> bytes:
        target = await read(self.engine, namespace.readlink, ino)
        await self.touch_atime(ino)
        return target

    async def unlink(self, cred: Cred, parent: Ino, name: bytes, *, skip_trash: bool = False) -> Removed:
        parent = self._real(parent)
        hour = None if skip_trash else await self._trash_hour(parent)
        operation = partial(unlink, skip_trash=skip_trash, skip_mtime_ns=self.options.skip_dir_mtime_ns)
        with self.open_files.removal() as removal:
            now_ns = self.now_ns()
            opened = removal.opened
            removed = await self.write(operation, cred, parent, name, hour, opened, self.sid, now_ns, turn=(parent,))
            gone = self._took_away(removed)
        if gone:
            await self._let_go(removed.ino)
        return removed

    async def rmdir(self, cred: Cred, parent: Ino, name: bytes, *, skip_trash: bool = False) -> Removed:
        parent = self._real(parent)
        hour = None if skip_trash else await self._trash_hour(parent)
        operation = partial(rmdir, skip_trash=skip_trash, skip_mtime_ns=self.options.skip_dir_mtime_ns)
        now_ns = self.now_ns()
        is_open = self.open_files.is_open
        return await self.write(operation, cred, parent, name, hour, is_open, self.sid, now_ns, turn=(parent,))

    async def rename(
        self, cred: Cred, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> Renamed:
        parent, new_parent = self._real(parent), self._real(new_parent)
        hour = await self._trash_hour(new_parent)
        operation = partial(rename, skip_mtime_ns=self.options.skip_dir_mtime_ns)
        with self.open_files.removal() as removal:
            renamed = await self.write(
                operation,
                cred,
                parent,
                name,
                new_parent,
                new_name,
                flags,
                hour,
                removal.opened,
                self.sid,
                self.now_ns(),
                turn=(parent, new_parent),
            )
            gone = renamed.replaced is not None and self._took_away(renamed.replaced)
        if gone and renamed.replaced is not None:
            await self._let_go(renamed.replaced.ino)
        return renamed

    async def _trash_hour(self, parent: Ino) -> Ino | None:
        """The directory that takes what is removed from `parent` now; None where there is no trash for it."""
        if self.settings.trash_days <= 0 or is_trash(parent):
            return None
        now_ns = self.now_ns()
        name = trash.hour_name(now_ns)
        if self._hour[0] != name:
            self._hour = (name, await self.write(trash.ensure_hour, now_ns))
        return self._hour[1]

    async def remove_trash_hour(self, name: bytes) -> None:
        """Remove an emptied hour directory."""
        await self.write(trash.remove_hour, name)
        self._hour = (b"", 0)

    def _took_away(self, removed: Removed) -> bool:
        """A removal has committed: queue the data.  Whether the inode was to live for its handles, all closed by now."""
        if removed.deleted is not None:
            self.deleted.put(removed.deleted)
        return removed.sustained and self.open_files.sustain(removed.ino)

    # -- attributes

    async def getattr(self, ino: Ino, *, fresh: bool = False) -> Attr:
        """With `fresh` never from what this client remembers of its own changes."""
        ino = self._real(ino)
        if self._memo is not None:
            return await self._memo.getattr(ino)
        if self._recent is not None and not fresh:
            known = self._recent.attr(ino)
            if known is not None:
                return known
        return await read(self.engine, inodes.getattr, ino)

    def age_s(self, ino: Ino) -> float:
        """How old attributes may be that were just given of an inode: the kernel may keep them for so much less."""
        return 0.0 if self._recent is None else self._recent.age_s(self._real(ino))

    async def setattr(self, cred: Cred, ino: Ino, change: AttrChange, *, opened: bool = False) -> Attr:
        operation = partial(inodes.setattr, opened=True) if opened else inodes.setattr
        ino = self._real(ino)
        return await self.write(operation, cred, ino, change, self.now_ns(), turn=(ino,))

    async def touch_atime(self, ino: Ino) -> None:
        """An inode was read: note when, as far as the atime mode wants that."""
        mode = self.options.atime_mode
        if mode == "noatime" or self.options.read_only:
            return
        ino = self._real(ino)
        try:
            attr = await self.getattr(ino, fresh=True)
            if inodes.atime_is_due(attr, mode, self.now_ns()):
                await self.write(inodes.touch_atime, ino, mode, self.now_ns(), turn=(ino,))
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        return await read(self.engine, xattrs.getxattr, self._real(ino), name)

    async def setxattr(
        self, cred: Cred, ino: Ino, name: bytes, value: bytes, flags: int, *, opened: bool = False
    ) -> None:
        operation = partial(xattrs.setxattr, opened=opened)
        await self.write(operation, cred, self._real(ino), name, value, flags, self.now_ns())

    async def listxattr(self, ino: Ino) -> list[bytes]:
        return await read(self.engine, xattrs.listxattr, self._real(ino))

    async def removexattr(self, cred: Cred, ino: Ino, name: bytes, *, opened: bool = False) -> None:
        operation = partial(xattrs.removexattr, opened=opened)
        await self.write(operation, cred, self._real(ino), name, self.now_ns())

    async def statfs(self) -> StatFs:
        return self.usage.statfs(self.settings)

    # -- open files

    def is_open(self, ino: Ino) -> bool:
        return self.open_files.is_open(self._real(ino))

    async def create(self, cred: Cred, parent: Ino, name: bytes, mode: int) -> Entry:
        """Make a file and open it.  EEXIST where the name is taken: what has it is not opened, for it must be checked first."""
        ino = await self._inodes.draw()
        self.open_files.add(ino)
        try:
            return await self._mknod(cred, parent, name, ino, TYPE_FILE, mode)
        except BaseException:
            self.open_files.leave(ino)
            raise

    async def open(
        self,
        cred: Cred,
        ino: Ino,
        flags: int,
        known: Callable[[], Attr | None] | None = None,
        *,
        opened: bool = False,
    ) -> Attr:
        """Count the inode as open until `close`.  What `known` gives is believed without asking the database.

        With `opened` the caller has it open, and it may be in the trash.
        """
        ino = self._real(ino)
        if self.options.read_only and flags & (os.O_ACCMODE | os.O_TRUNC):
            raise FsError(errno.EROFS)
        await self.open_files.enter(ino)
        try:
            believed = None if known is None or self.open_files.removals else known()
            if believed is not None:
                files.require_open(believed, cred, ino, flags, opened=opened)
                await self.touch_atime(ino)
                return believed
            attr = await self._check_open(cred, ino, flags, opened=opened)
            await self.touch_atime(ino)
        except BaseException:
            await self.close(ino)
            raise
        return attr

    async def _check_open(self, cred: Cred, ino: Ino, flags: int, *, opened: bool) -> Attr:
        if self._memo is not None:
            attr = await self._memo.getattr(ino)
            files.require_open(attr, cred, ino, flags, opened=opened)
            return attr
        attr = await read(self.engine, partial(files.check_open, opened=opened), cred, ino, flags)
        if self._recent is not None:
            self._recent.saw(ino)
        return attr

    async def close(self, ino: Ino) -> None:
        """The last close of an inode without a name ends it."""
        ino = self._real(ino)
        if self.open_files.leave(ino):
            await self._let_go(ino)

    async def _let_go(self, ino: Ino) -> None:
        """Delete an inode that lived on for this session's handles.  If it fails, the end of the session does it."""
        with trio.CancelScope(shield=True), self.open_files.removal() as removal:
            removal.inos.add(ino)  # an open by a name that was looked up before waits, and finds that it is gone
            deleted = await self.write(files.sustained_gone, self.sid, ino, self.now_ns())
        if deleted is not None:
            self.deleted.put(deleted)

    # -- bytes

    async def truncate(self, cred: Cred, ino: Ino, length: int, *, opened: bool = False) -> Attr:
        operation = partial(files.truncate, opened=True) if opened else files.truncate
        return await self.grow(operation, cred, ino, length, self.now_ns(), turn=(ino,))

    async def new_slice_id(self) -> int:
        return await self._slices.draw()

    def new_slice_id_now(self) -> int | None:
        """None: there is none in memory, ask for it."""
        return self._slices.draw_now()

    async def read_chunk(self, ino: Ino, index: int) -> list[Slice]:
        if self._memo is not None:
            return await self._memo.read_chunk(ino, index)
        return await read(self.engine, files.read_chunk, ino, index)

    async def write_slice(self, ino: Ino, index: int, record: Slice, mtime_ns: int) -> Written:
        return await self.grow(files.write_slice, ino, index, record, mtime_ns, self.now_ns())

    async def write_slices(
        self,
        ino: Ino,
        index: int,
        records: Sequence[Slice],
        mtime_ns: int,
        fingerprint: bytes = b"",
        ahead: Ahead | None = None,
    ) -> Written:
        if ahead is not None and not ahead.fresh():
            ahead = None
        return await self.grow(
            files.write_slices, ino, index, records, mtime_ns, self.now_ns(), fingerprint, turn=(ino,), ahead=ahead
        )

    def slices_ahead(self, ino: Ino, index: int) -> Ahead | None:
        """For `write_slices`, whose transaction may begin while the blocks are on their way; None where that saves nothing."""
        if self.engine.inline or self.options.read_only:
            return None
        return Ahead(self.engine, partial(files.foresee_slices, ino=ino, index=index))

    async def fingerprints(self, refs: Collection[SliceRef]) -> dict[int, bytes]:
        """What is kept of these slices' blocks, by slice id.  Nothing is asked where the volume keeps none."""
        if not self.fingerprinting or not refs:
            return {}
        found = await read(self.engine, fingerprints.of_slices, refs, self.settings.block_size << 10)
        return {ref.id: value for ref, value in found.items()}

    async def compaction_candidate(self, ino: Ino, index: int) -> CompactionPlan | None:
        return await read(self.engine, files.compaction_candidate, ino, index)

    async def commit_compaction(
        self, plan: CompactionPlan, ids: Sequence[int], fingerprints: Sequence[bytes] = ()
    ) -> list[SliceRef]:
        """The slices that are dead now.  EINVAL: the chunk has changed, the new slices' blocks are to be removed."""
        operation = partial(files.commit_compaction, delay=self.settings.trash_days > 0)
        return await self.write(operation, plan, ids, self.now_ns(), fingerprints, turn=(plan.ino,))

    # -- data to remove

    async def release_chunks(self, deleted: DeletedFile) -> AsyncIterator[SliceRef]:
        """Take a deleted file apart: its slices that nothing refers to any more; at the end the file is forgotten."""
        indexes = await read(self.engine, files.deleted_chunks, deleted)
        if indexes is None:
            log.error("inode %d is on the list of deleted files but exists: its data stays", deleted.ino)
            indexes = []
        for index in indexes:
            for ref in await self.write(files.release_file, deleted, index):
                yield ref
        await self.write(files.forget_deleted_file, deleted)

    async def forget_slice(self, ref: SliceRef) -> None:
        """The blocks of a dead slice have been removed."""
        await self.write(partial(files.forget_slice, fingerprinted=self.fingerprinting), ref)

    # -- durability

    async def sync(self) -> None:
        await self.engine.sync()

    def wants_checkpoint(self) -> bool:
        return self.engine.wants_checkpoint()

    async def checkpoint(self) -> None:
        await self.engine.checkpoint()

    # -- the books, the session, the jobs

    async def flush_usage(self, *, last: bool = False) -> None:
        """Store usage counters and directory statistics that are pending; the `last` flush leaves none."""
        async with self._flushing:
            await self.usage.flush(self.engine, dir_stats=self.settings.dir_stats, last=last)

    async def load_usage(self) -> None:
        """Take in what other clients have booked."""
        async with self._flushing:  # a count read before a flush must not replace the one that the flush gave
            await self.usage.load(self.engine)

    async def refresh_session(self) -> None:
        if not self.sid:
            return
        expire = sessions.expiry(self.now_ns(), self.options.heartbeat_s)
        if not await self.write(sessions.refresh_session, self.sid, expire, self._info):
            log.warning("session %d had been ended as stale by another client; it is open again", self.sid)

    async def claim(self, counter: str, period_s: float) -> bool:
        """Whether this client shall do the job now."""
        return await self.write(jobs.claim_job, counter, period_s, self.now_s())

    async def clean_stale_sessions(self) -> None:
        """End the sessions whose clients are gone."""
        now_s = self.now_s()
        for sid in await read(self.engine, sessions.stale_sessions, now_s):
            if sid == self.sid:  # late, not gone
                continue
            log.info("cleaning up stale session %d", sid)
            await self._clean_session(sid, now_s)

    async def _clean_session(self, sid: int, stale_before: int | None) -> None:
        sustained = await self.write(sessions.begin_clean_up, sid, stale_before)
        if sustained is None:
            return
        for ino in sustained:
            deleted = await self.write(files.sustained_gone, sid, ino, self.now_ns())
            if deleted is not None:
                self.deleted.put(deleted)
        await self.write(sessions.end_session, sid, stale_before)

    async def _next_ids(self, counter: str, count: int) -> tuple[int, int]:
        end = await self.write(_add_counter, counter, count)
        first = end - count
        return (max(first, ROOT_INO + 1) if counter == "nextInode" else max(first, 1)), end

    async def _next_slice_ids(self) -> tuple[int, int]:
        """Blocks are named after these ids and may lie in other places than the metadata: in a cache, in a bucket.

        If a power cut took their drawing back they would be drawn again, and old blocks found under new names.
        """
        drawn = await self._next_ids("nextChunk", SLICES_AT_ONCE)
        try:
            await self.make_durable()
        except StoreError:  # blocks of others were lost, and the metadata not flushed; the next round is without them
            await self.make_durable()
        return drawn

    async def refill_ids(self) -> None:
        """Draw the next batches ahead of need, until cancelled."""
        while True:
            self._ids_low = trio.Event()
            self._inodes.on_low = self._slices.on_low = self._ids_low.set
            try:
                await self._inodes.refill()
                await self._slices.refill()
            except (FsError, StoreError, CorruptRecord, OSError) as error:
                log.warning("drawing ids ahead failed: %s", error)
            await self._ids_low.wait()


async def _add_counter(tx: Transaction, name: str, delta: int) -> int:
    return await tx.add_counter(name, delta)


async def _dir_quotas(tx: Transaction) -> int:
    return len(await tx.dir_quotas())


def _log_fatal(why: str) -> None:
    log.critical("%s", why)
