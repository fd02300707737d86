"""The typed transaction: what every operation is written on, and what every engine offers.

The isolation law.  A transaction reads one snapshot plus its own writes.  Its commit raises `Conflict` if something that
it wrote *or guarded* has changed since the snapshot; nothing else is promised.  An operation that relies on a record it
merely reads must guard it.  A `Conflict` changed nothing: the caller runs the operation again from the start (`run.py`).

Reads are `async`, in single and batched form (one round trip each).  Writes are plain calls, seen by later reads of the
same transaction, by others only after commit; the few writes that have to read first are `async` too.  A record that
cannot be decoded raises `CorruptRecord` naming its key.  Objects returned by reads are the caller's own: it may change an
`Attr` and put it back.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from jfs.meta.types import (
    Attr,
    DelayedSlices,
    DeletedFile,
    Dentry,
    DirEntry,
    DirStat,
    Entry,
    Flock,
    Ino,
    Plock,
    Quota,
    Session,
    Slice,
    SliceRef,
)


class Transaction(Protocol):
    """One transaction on a volume's records.  Verbs in the field's words; the storage model hides behind them."""

    # -- what the operation adds to the volume's books; applied by the client after commit, never part of the records

    def charge(self, space: int, inodes: int) -> None:
        """Volume usage changes by `space` bytes and `inodes`."""

    def charge_dir(self, ino: Ino, length: int, space: int, inodes: int) -> None:
        """Directory `ino`'s statistics change by these (direct children only)."""

    async def warm(
        self,
        *,
        attrs: Sequence[Ino] = (),
        names: Sequence[tuple[Ino, bytes]] = (),
        chunks: Sequence[tuple[Ino, int]] = (),
        parents: Sequence[tuple[Ino, Ino]] = (),
    ) -> None:
        """What the operation is about to read: an engine whose reads are round trips fetches it all in one."""

    # -- inodes

    async def attr(self, ino: Ino) -> Attr | None: ...

    async def attrs(self, inos: Sequence[Ino]) -> dict[Ino, Attr]:
        """Those that exist."""
        ...

    def put_attr(self, ino: Ino, attr: Attr) -> None: ...

    def delete_attr(self, ino: Ino) -> None: ...

    def guard_attr(self, ino: Ino) -> None:
        """Commit only if this inode's attr record is as it was in the snapshot."""

    # -- names

    async def lookup(self, parent: Ino, name: bytes, guess: Ino | None = None) -> Entry | None:
        """The inode that `name` points at; None where the dentry or the inode's attr is missing.

        A transaction that only reads may take both as they are now rather than of its snapshot; `guess` is where the name may
        well point.
        """
        ...

    async def dentry(self, parent: Ino, name: bytes) -> Dentry | None: ...

    async def entries(self, parent: Ino, after: bytes | None, limit: int) -> list[DirEntry]:
        """Names in byte order, strictly after `after`, with their attrs, in one or two round trips."""
        ...

    async def dentries(self, parent: Ino, after: bytes | None, limit: int) -> list[tuple[bytes, Dentry]]:
        """Names in byte order, strictly after `after`."""
        ...

    def put_dentry(self, parent: Ino, name: bytes, dentry: Dentry) -> None:
        """Add the name, or point it elsewhere."""

    def delete_dentry(self, parent: Ino, name: bytes) -> None: ...

    def guard_name(self, parent: Ino, name: bytes) -> None:
        """Whoever adds `name` says so; conflicts with `guard_names` of the directory (one of 16 valueless keys, by hash)."""

    def guard_names(self, parent: Ino) -> None:
        """Whoever removes the directory says so: no name may appear meanwhile."""

    async def parents(self, ino: Ino) -> dict[Ino, int]:
        """Directories that hold a hard link of `ino` (attr.parent is 0) and how many each.  Empty if not kept."""
        ...

    async def add_parent(self, ino: Ino, parent: Ino, delta: int) -> None:
        """Count hard links of `ino` in `parent`; a no-op where the model derives them from dentries."""
        ...

    async def delete_parents(self, ino: Ino) -> None: ...

    async def symlink(self, ino: Ino) -> bytes | None: ...

    def put_symlink(self, ino: Ino, target: bytes) -> None: ...

    def delete_symlink(self, ino: Ino) -> None: ...

    # -- extended attributes

    async def xattr(self, ino: Ino, name: bytes) -> bytes | None: ...

    async def xattr_names(self, ino: Ino) -> list[bytes]: ...

    def put_xattr(self, ino: Ino, name: bytes, value: bytes) -> None: ...

    def delete_xattr(self, ino: Ino, name: bytes) -> None: ...

    async def delete_xattrs(self, ino: Ino) -> None: ...

    # -- chunks and slices

    async def slices(self, ino: Ino, index: int) -> list[Slice]:
        """A chunk's records, oldest first; empty for a hole."""
        ...

    async def chunks(self, ino: Ino) -> list[tuple[int, list[Slice]]]:
        """Every chunk of an inode that has a record, by index."""
        ...

    async def chunk_indexes(self, ino: Ino, first: int, end: int) -> list[int]:
        """Indexes in [first, end) that have a record."""
        ...

    async def append_slices(self, ino: Ino, index: int, slices: Sequence[Slice]) -> int:
        """Append records to a chunk, creating it; the number of records that it has now."""
        ...

    def put_slices(self, ino: Ino, index: int, slices: Sequence[Slice]) -> None:
        """Replace a chunk's records (compaction)."""

    def delete_chunk(self, ino: Ino, index: int) -> None: ...

    def new_slice(self, ref: SliceRef) -> None:
        """A slice gets its first reference."""

    async def slice_references(self, ref: SliceRef) -> int:
        """How many records refer to the slice (0: none is left, its blocks wait for removal)."""
        ...

    async def add_slice_references(self, ref: SliceRef, delta: int) -> int:
        """Change the count; what it is now.  At 0 or below the slice is dead: its blocks go, then `forget_slice`."""
        ...

    def forget_slice(self, ref: SliceRef) -> None:
        """The blocks of a dead slice are removed: drop its count."""

    async def dead_slices(self, limit: int) -> list[SliceRef]:
        """Slices without references whose blocks were not removed yet."""
        ...

    async def slice_counts(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[SliceRef, int]], bytes | None]:
        """A page of stored reference counts (a model may leave out slices with one reference) and the next cursor."""
        ...

    async def delayed_slices(self, before: int, limit: int) -> list[DelayedSlices]:
        """Slices kept after compactions done before `before` (unix seconds), oldest first."""
        ...

    def put_delayed_slices(self, delayed: DelayedSlices) -> None: ...

    def delete_delayed_slices(self, delayed: DelayedSlices) -> None: ...

    # -- fingerprints of slices' blocks: records of jfs alone, which the peer neither reads nor removes

    async def fingerprinting(self) -> bytes | None:
        """The kind of fingerprints that new slices get; None: none."""
        ...

    def put_fingerprinting(self, kind: bytes | None) -> None: ...

    async def fingerprints(self, refs: Collection[SliceRef]) -> dict[SliceRef, bytes]:
        """Those that are there: 16 bytes for each block, one after the other."""
        ...

    def put_fingerprint(self, ref: SliceRef, value: bytes) -> None: ...

    def delete_fingerprint(self, ref: SliceRef) -> None: ...

    async def all_fingerprints(self, cursor: bytes | None, limit: int) -> tuple[list[SliceRef], bytes | None]:
        """A page of the slices that have some, and the next cursor."""
        ...

    # -- files whose data is still to be removed

    async def deleted_files(self, before: int, limit: int) -> list[DeletedFile]:
        """Files deleted before `before` (unix seconds)."""
        ...

    def put_deleted_file(self, deleted: DeletedFile) -> None: ...

    def forget_deleted_file(self, deleted: DeletedFile) -> None: ...

    # -- counters and settings

    async def counter(self, name: str) -> int:
        """0 where it was never set."""
        ...

    async def add_counter(self, name: str, delta: int) -> int:
        """What it is now."""
        ...

    def put_counter(self, name: str, value: int) -> None: ...

    async def settings(self) -> bytes | None:
        """The volume's settings, JSON text; None where nothing is formatted."""
        ...

    def put_settings(self, text: bytes) -> None: ...

    # -- sessions

    async def session(self, sid: int) -> Session | None: ...

    async def sessions(self) -> list[Session]: ...

    def put_session(self, session: Session) -> None: ...

    def delete_session(self, sid: int) -> None: ...

    async def sustained(self, sid: int) -> list[Ino]:
        """Inodes without a name that the session holds open."""
        ...

    def put_sustained(self, sid: int, ino: Ino) -> None: ...

    def delete_sustained(self, sid: int, ino: Ino) -> None: ...

    async def flocks(self, sid: int) -> list[Flock]:
        """The session's BSD locks."""
        ...

    async def plocks(self, sid: int) -> list[Plock]:
        """The session's POSIX locks."""
        ...

    async def release_locks(self, sid: int) -> None:
        """Drop all locks of a session."""
        ...

    # -- directory statistics, quotas, clones being built

    async def dir_stat(self, ino: Ino) -> DirStat | None: ...

    def put_dir_stat(self, ino: Ino, dir_stat: DirStat) -> None: ...

    def delete_dir_stat(self, ino: Ino) -> None: ...

    async def dir_quotas(self) -> dict[Ino, Quota]: ...

    def delete_dir_quota(self, ino: Ino) -> None: ...

    async def detached(self, before: int) -> list[Ino]:
        """Directories that a clone left unfinished before `before` (unix seconds)."""
        ...

    def delete_detached(self, ino: Ino) -> None: ...

    # -- the whole volume, page by page, for gc, fsck and dump; order and cursor are the engine's own

    async def all_attrs(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[Ino, Attr]], bytes | None]: ...

    async def all_dentries(
        self, cursor: bytes | None, limit: int
    ) -> tuple[list[tuple[Ino, bytes, Dentry]], bytes | None]: ...

    async def all_chunks(
        self, cursor: bytes | None, limit: int
    ) -> tuple[list[tuple[Ino, int, list[Slice]]], bytes | None]: ...

    async def all_dir_stats(
        self, cursor: bytes | None, limit: int
    ) -> tuple[list[tuple[Ino, DirStat]], bytes | None]: ...

    async def all_parents(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[Ino, Ino, int]], bytes | None]:
        """(inode, parent, hard links there) as stored; empty where the model derives them."""
        ...


def add_dir_delta(dirs: dict[Ino, tuple[int, int, int]], ino: Ino, length: int, space: int, inodes: int) -> None:
    """Add to what a directory's statistics change by."""
    was = dirs.get(ino)
    if was is not None:
        length += was[0]
        space += was[1]
        inodes += was[2]
    dirs[ino] = (length, space, inodes)


class Charges:
    """What a transaction adds to the volume's books: the concrete half of `charge` and `charge_dir`, for every model.

    And the attributes that it wrote, None where it deleted them: of every inode that it changed or renamed.  A later commit
    has a greater `version`, where reads are round trips and the client keeps them for a while.
    """

    __slots__ = ("attrs", "dirs", "inodes", "space", "version")

    def __init__(self) -> None:
        self.version = 0
        self.attrs: dict[Ino, Attr | None] = {}
        self.space = 0
        self.inodes = 0
        self.dirs: dict[Ino, tuple[int, int, int]] = {}

    def charge(self, space: int, inodes: int) -> None:
        self.space += space
        self.inodes += inodes

    def charge_dir(self, ino: Ino, length: int, space: int, inodes: int) -> None:
        add_dir_delta(self.dirs, ino, length, space, inodes)


class ChargedTransaction(Transaction, Protocol):
    """A transaction as engines give it: after commit the client reads `charges`."""

    charges: Charges


Place = Ino | tuple[Ino, bytes] | tuple[Ino, int]
"""What a transaction changes: an inode's attributes, a name in a directory, a chunk's records."""

EVERYTHING: Final[Ino] = 0
"""Among the places that a transaction changed: what it did may be told by others than those."""


class Watch(Protocol):
    """Tells without a transaction whether anything was committed, by whomever."""

    followers: list[Callable[[bytes, bytes, list[Place]], None]]
    """Called with the look before a commit of this engine, the look after it, and all that it changed of those places,
    where nobody else's commit can have come between the two looks."""

    def look(self) -> bytes:
        """While it stays the same, each new transaction reads what the one before read, if it is `settled`."""
        ...

    def settled(self, seen: bytes) -> bool:
        """Whether it says anything: not where it was taken from the midst of a commit."""
        ...


class Engine(Protocol):
    """A metadata store with one volume in it.

    `transaction(write=True)` commits at the end of its `async with` body and rolls back if the body raised; with
    `write=False` only reads may be made.  Both may raise `Conflict` on entry, in the body and on exit.
    """

    scheme: str
    inline: bool
    """Whether transactions never wait: they can be driven without an event loop.  Where they do wait, one that is open holds up
    nobody and may be abandoned."""

    def disk(self) -> int | None:
        """The disk (st_dev) that its transactions wait for on the thread of the caller; None: they wait for none."""
        ...

    async def open(self) -> None:
        """Reach the store for the first time.  UserError where it does not answer within 10 s."""

    def transaction(self, *, write: bool) -> AbstractAsyncContextManager[ChargedTransaction]: ...

    def watch(self) -> Watch | None:
        """None where only a transaction can tell what is new.  It ends with the engine.  Asked after a first read."""
        ...

    async def prepare(self) -> None:
        """Make what the schema needs (tables, columns, indexes) where it is missing."""

    async def sync(self) -> None:
        """Return once everything committed before this call survives a power cut."""

    def wants_checkpoint(self) -> bool:
        """Whether `checkpoint` is due (an embedded engine's log has grown)."""
        ...

    async def checkpoint(self) -> None:
        """Move the log into the database, off the loop; makes committed records durable."""

    async def collect(self, now_s: int) -> None:
        """Drop what the store itself keeps and nobody reads any more; called hourly by one client of a volume."""

    async def close(self) -> None: ...
