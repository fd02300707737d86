"""The typed transaction on the relational schema, over a connection that answers inline.

Reads see one snapshot because the engine opens the transaction before the first of them.  A writing one holds the
database's only write lock from its start, so nothing that it reads can change before its commit: guards have nothing to do.
"""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from struct import Struct
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.schema import encode_slice_refs, encode_slices
from jfs.meta.sql.rows import (
    Row,
    attr_of,
    blob,
    delayed_of,
    dentry_of,
    integers,
    node_row,
    slices_of,
    sums,
    unsigned,
)
from jfs.meta.sql.statements import Statements
from jfs.meta.transaction import EVERYTHING, Charges, Place
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
    int64,
)

_SLICE_BYTES: Final = 24
_CURSOR: Final = Struct(">q")


def _after(cursor: bytes | None) -> int:
    """Where a page starts: row keys are positive."""
    return 0 if cursor is None else int(_CURSOR.unpack(cursor)[0])


def _cursor(rows: Sequence[Row], limit: int) -> bytes | None:
    """Where the next page starts; None after the last one.  A row's first column is what pages are ordered by."""
    return _CURSOR.pack(rows[-1][0]) if len(rows) == limit else None


class SqlTransaction:
    """All verbs; opening, committing and rolling back are the engine's."""

    __slots__ = ("_execute", "_sql", "changed", "charges")

    def __init__(self, execute: Callable[[str, Sequence[Any]], sqlite3.Cursor], statements: Statements) -> None:
        self._execute = execute
        self._sql = statements
        self.charges = Charges()
        self.changed: list[Place] = []
        """Every attr, name and chunk that was written."""

    def charge(self, space: int, inodes: int) -> None:
        self.charges.charge(space, inodes)

    def charge_dir(self, ino: Ino, length: int, space: int, inodes: int) -> None:
        self.charges.charge_dir(ino, length, space, inodes)

    def _one(self, sql: str, *values: Any) -> Any:
        """The first column of the only row; None without a row."""
        row = self._execute(sql, values).fetchone()
        return None if row is None else row[0]

    def _rows(self, sql: str, *values: Any) -> list[Row]:
        return self._execute(sql, values).fetchall()

    async def warm(
        self,
        *,
        attrs: Sequence[Ino] = (),
        names: Sequence[tuple[Ino, bytes]] = (),
        chunks: Sequence[tuple[Ino, int]] = (),
        parents: Sequence[tuple[Ino, Ino]] = (),
    ) -> None:
        """The database is at hand."""

    # -- inodes

    async def attr(self, ino: Ino) -> Attr | None:
        row = self._execute(self._sql.attr, (ino,)).fetchone()
        return None if row is None else attr_of(ino, row)

    async def attrs(self, inos: Sequence[Ino]) -> dict[Ino, Attr]:
        wanted = f"[{','.join(map(str, inos))}]"
        return {row[0]: attr_of(row[0], row[1:]) for row in self._execute(self._sql.attrs, (wanted,))}

    def put_attr(self, ino: Ino, attr: Attr) -> None:
        self.changed.append(ino)
        self.charges.attrs[ino] = attr
        self._execute(self._sql.put_attr, (ino, *node_row(attr)))

    def delete_attr(self, ino: Ino) -> None:
        self.changed.append(EVERYTHING)  # its chunks without records are gone too, and they are not told
        self.charges.attrs[ino] = None
        self._execute(self._sql.delete_attr, (ino,))

    def guard_attr(self, ino: Ino) -> None:
        pass

    # -- names

    async def lookup(self, parent: Ino, name: bytes, guess: Ino | None = None) -> Entry | None:
        row = self._execute(self._sql.lookup, (parent, name)).fetchone()
        if row is None:
            return None
        ino = row[0]
        return Entry(ino, attr_of(ino, row[1:]))

    async def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        row = self._execute(self._sql.dentry, (parent, name)).fetchone()
        return None if row is None else dentry_of(parent, name, row[0], row[1])

    async def entries(self, parent: Ino, after: bytes | None, limit: int) -> list[DirEntry]:
        found = []
        for row in self._execute(self._sql.entries, (parent, after or b"", limit)):
            name, kind, ino = row[:3]
            # Without an inode the join leaves the whole right side NULL.
            attr = None if row[3] is None else attr_of(ino, row[3:])
            found.append(DirEntry(name, dentry_of(parent, name, kind, ino), attr))
        return found

    async def dentries(self, parent: Ino, after: bytes | None, limit: int) -> list[tuple[bytes, Dentry]]:
        rows = self._execute(self._sql.dentries, (parent, after or b"", limit))
        return [(name, dentry_of(parent, name, kind, ino)) for name, kind, ino in rows]

    def put_dentry(self, parent: Ino, name: bytes, dentry: Dentry) -> None:
        self.changed.append((parent, name))
        self._execute(self._sql.put_dentry, (parent, name, dentry.ino, dentry.type))

    def delete_dentry(self, parent: Ino, name: bytes) -> None:
        self.changed.append((parent, name))
        self._execute(self._sql.delete_dentry, (parent, name))

    def guard_name(self, parent: Ino, name: bytes) -> None:
        pass

    def guard_names(self, parent: Ino) -> None:
        pass

    async def parents(self, ino: Ino) -> dict[Ino, int]:
        return dict(self._rows(self._sql.parents, ino))

    async def add_parent(self, ino: Ino, parent: Ino, delta: int) -> None:
        pass

    async def delete_parents(self, ino: Ino) -> None:
        pass

    async def symlink(self, ino: Ino) -> bytes | None:
        row = self._execute(self._sql.symlink, (ino,)).fetchone()
        return None if row is None else blob(f"symlink {ino}", row[0])

    def put_symlink(self, ino: Ino, target: bytes) -> None:
        self._execute(self._sql.put_symlink, (ino, target))

    def delete_symlink(self, ino: Ino) -> None:
        self._execute(self._sql.delete_symlink, (ino,))

    # -- extended attributes

    async def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        row = self._execute(self._sql.xattr, (ino, name)).fetchone()
        return None if row is None else blob(f"xattr {ino}/{name!r}", row[0])

    async def xattr_names(self, ino: Ino) -> list[bytes]:
        return [name for (name,) in self._rows(self._sql.xattr_names, ino)]

    def put_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self._execute(self._sql.put_xattr, (ino, name, value))

    def delete_xattr(self, ino: Ino, name: bytes) -> None:
        self._execute(self._sql.delete_xattr, (ino, name))

    async def delete_xattrs(self, ino: Ino) -> None:
        self._execute(self._sql.delete_xattrs, (ino,))

    # -- chunks and slices

    async def slices(self, ino: Ino, index: int) -> list[Slice]:
        row = self._execute(self._sql.slices, (ino, index)).fetchone()
        return [] if row is None else slices_of(ino, index, row[0])

    async def chunks(self, ino: Ino) -> list[tuple[int, list[Slice]]]:
        return [(index, slices_of(ino, index, value)) for index, value in self._rows(self._sql.chunks, ino)]

    async def chunk_indexes(self, ino: Ino, first: int, end: int) -> list[int]:
        return [index for (index,) in self._rows(self._sql.chunk_indexes, ino, first, end)]

    async def append_slices(self, ino: Ino, index: int, slices: Sequence[Slice]) -> int:
        self.changed.append((ino, index))
        size = self._one(self._sql.append_slices, ino, index, encode_slices(slices))
        records, rest = divmod(size, _SLICE_BYTES)
        if rest:
            raise CorruptRecord(f"chunk {ino}/{index}", f"{size} bytes are no whole number of slice records")
        return int(records)

    def put_slices(self, ino: Ino, index: int, slices: Sequence[Slice]) -> None:
        self.changed.append((ino, index))
        self._execute(self._sql.put_slices, (ino, index, encode_slices(slices)))

    def delete_chunk(self, ino: Ino, index: int) -> None:
        self.changed.append((ino, index))
        self._execute(self._sql.delete_chunk, (ino, index))

    def new_slice(self, ref: SliceRef) -> None:
        self._execute(self._sql.new_slice, (ref.id, ref.size))

    async def slice_references(self, ref: SliceRef) -> int:
        return self._one(self._sql.slice_references, ref.id, ref.size) or 0

    async def add_slice_references(self, ref: SliceRef, delta: int) -> int:
        refs = self._one(self._sql.add_slice_references, delta, ref.id, ref.size)
        if refs is not None:
            return int(refs)
        if delta > 0:
            self._execute(self._sql.restore_slice, (ref.id, ref.size, delta))
        return delta

    def forget_slice(self, ref: SliceRef) -> None:
        self._execute(self._sql.forget_slice, (ref.id, ref.size))

    async def dead_slices(self, limit: int) -> list[SliceRef]:
        return [SliceRef(*integers("chunk_ref", row)) for row in self._rows(self._sql.dead_slices, limit)]

    async def slice_counts(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[SliceRef, int]], bytes | None]:
        rows = self._rows(self._sql.slice_counts, _after(cursor), limit)
        counts = [(SliceRef(ref, size), refs) for ref, size, refs in (integers("chunk_ref", row) for row in rows)]
        return counts, _cursor(rows, limit)

    async def delayed_slices(self, before: int, limit: int) -> list[DelayedSlices]:
        return [delayed_of(row) for row in self._rows(self._sql.delayed_slices, before, limit)]

    def put_delayed_slices(self, delayed: DelayedSlices) -> None:
        self._execute(self._sql.put_delayed_slices, (delayed.id, delayed.when, encode_slice_refs(delayed.slices)))

    def delete_delayed_slices(self, delayed: DelayedSlices) -> None:
        self._execute(self._sql.delete_delayed_slices, (delayed.id,))

    # -- fingerprints

    async def fingerprinting(self) -> bytes | None:
        row = self._execute(self._sql.fingerprinting, ()).fetchone()
        return None if row is None else blob("setting fingerprint", row[0])

    def put_fingerprinting(self, kind: bytes | None) -> None:
        if kind is None:
            self._execute(self._sql.delete_fingerprinting, ())
        else:
            self._execute(self._sql.put_fingerprinting, (kind,))

    async def fingerprints(self, refs: Collection[SliceRef]) -> dict[SliceRef, bytes]:
        wanted = f"[{','.join(str(ref.id) for ref in refs)}]"
        found = {
            SliceRef(slice_id, size): blob(f"fingerprint {slice_id}", value)
            for slice_id, size, value in self._execute(self._sql.fingerprints, (wanted,))
        }
        return {ref: found[ref] for ref in refs if ref in found}

    def put_fingerprint(self, ref: SliceRef, value: bytes) -> None:
        self._execute(self._sql.put_fingerprint, (ref.id, ref.size, value))

    def delete_fingerprint(self, ref: SliceRef) -> None:
        self._execute(self._sql.delete_fingerprint, (ref.id, ref.size))

    async def all_fingerprints(self, cursor: bytes | None, limit: int) -> tuple[list[SliceRef], bytes | None]:
        rows = self._rows(self._sql.all_fingerprints, _after(cursor), limit)
        return [SliceRef(*integers("fingerprint", row)) for row in rows], _cursor(rows, limit)

    # -- files whose data is still to be removed

    async def deleted_files(self, before: int, limit: int) -> list[DeletedFile]:
        return [DeletedFile(*integers("delfile", row)) for row in self._rows(self._sql.deleted_files, before, limit)]

    def put_deleted_file(self, deleted: DeletedFile) -> None:
        self._execute(self._sql.put_deleted_file, (deleted.ino, deleted.length, deleted.when))

    def forget_deleted_file(self, deleted: DeletedFile) -> None:
        self._execute(self._sql.forget_deleted_file, (deleted.ino,))

    # -- counters and settings

    async def counter(self, name: str) -> int:
        row = self._execute(self._sql.counter, (name,)).fetchone()
        if row is None:
            return 0
        read = sums if name == "usedSpace" else integers
        return int(read(f"counter {name}", row)[0])

    async def add_counter(self, name: str, delta: int) -> int:
        value = await self.counter(name)
        if delta:
            value = int64(value + delta)  # SQLite would make a REAL of what does not fit
            self.put_counter(name, value)
        return value

    def put_counter(self, name: str, value: int) -> None:
        self._execute(self._sql.put_counter, (name, value))

    async def settings(self) -> bytes | None:
        row = self._execute(self._sql.settings, ()).fetchone()
        return None if row is None else blob("setting format", row[0])

    def put_settings(self, text: bytes) -> None:
        self._execute(self._sql.put_settings, (text,))

    # -- sessions

    async def session(self, sid: int) -> Session | None:
        row = self._execute(self._sql.session, (sid,)).fetchone()
        return None if row is None else _session(row)

    async def sessions(self) -> list[Session]:
        return [_session(row) for row in self._rows(self._sql.sessions)]

    def put_session(self, session: Session) -> None:
        self._execute(self._sql.put_session, (session.sid, session.expire, session.info))

    def delete_session(self, sid: int) -> None:
        self._execute(self._sql.delete_session, (sid,))

    async def sustained(self, sid: int) -> list[Ino]:
        return [ino for (ino,) in self._rows(self._sql.sustained, sid)]

    def put_sustained(self, sid: int, ino: Ino) -> None:
        self._execute(self._sql.put_sustained, (sid, ino))

    def delete_sustained(self, sid: int, ino: Ino) -> None:
        self._execute(self._sql.delete_sustained, (sid, ino))

    async def flocks(self, sid: int) -> list[Flock]:
        rows = (integers(f"flock of session {sid}", row) for row in self._rows(self._sql.flocks, sid))
        return [Flock(ino, session, unsigned(owner), bytes((kind,))) for ino, session, owner, kind in rows]

    async def plocks(self, sid: int) -> list[Plock]:
        rows = self._rows(self._sql.plocks, sid)
        return [
            Plock(ino, session, unsigned(owner), blob(f"plock of {ino}", records))
            for ino, session, owner, records in rows
        ]

    async def release_locks(self, sid: int) -> None:
        self._execute(self._sql.release_flocks, (sid,))
        self._execute(self._sql.release_plocks, (sid,))

    # -- directory statistics, quotas, clones being built

    async def dir_stat(self, ino: Ino) -> DirStat | None:
        row = self._execute(self._sql.dir_stat, (ino,)).fetchone()
        return None if row is None else DirStat(*sums(f"dir_stats {ino}", row))

    def put_dir_stat(self, ino: Ino, dir_stat: DirStat) -> None:
        self._execute(self._sql.put_dir_stat, (ino, dir_stat.length, dir_stat.space, dir_stat.inodes))

    def delete_dir_stat(self, ino: Ino) -> None:
        self._execute(self._sql.delete_dir_stat, (ino,))

    async def dir_quotas(self) -> dict[Ino, Quota]:
        rows = (integers("dir_quota", row) for row in self._rows(self._sql.dir_quotas))
        return {row[0]: Quota(*row[1:]) for row in rows}

    def delete_dir_quota(self, ino: Ino) -> None:
        self._execute(self._sql.delete_dir_quota, (ino,))

    async def detached(self, before: int) -> list[Ino]:
        return [ino for (ino,) in self._rows(self._sql.detached, before)]

    def delete_detached(self, ino: Ino) -> None:
        self._execute(self._sql.delete_detached, (ino,))

    # -- the whole volume, page by page in the order of row keys

    async def all_attrs(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[Ino, Attr]], bytes | None]:
        rows = self._rows(self._sql.all_attrs, _after(cursor), limit)
        return [(row[0], attr_of(row[0], row[1:])) for row in rows], _cursor(rows, limit)

    async def all_dentries(
        self, cursor: bytes | None, limit: int
    ) -> tuple[list[tuple[Ino, bytes, Dentry]], bytes | None]:
        rows = self._rows(self._sql.all_dentries, _after(cursor), limit)
        found = [(parent, name, dentry_of(parent, name, kind, ino)) for _, parent, name, kind, ino in rows]
        return found, _cursor(rows, limit)

    async def all_chunks(
        self, cursor: bytes | None, limit: int
    ) -> tuple[list[tuple[Ino, int, list[Slice]]], bytes | None]:
        rows = self._rows(self._sql.all_chunks, _after(cursor), limit)
        found = [(ino, index, slices_of(ino, index, value)) for _, ino, index, value in rows]
        return found, _cursor(rows, limit)

    async def all_dir_stats(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[Ino, DirStat]], bytes | None]:
        rows = self._rows(self._sql.all_dir_stats, _after(cursor), limit)
        found = [(row[0], DirStat(*sums(f"dir_stats {row[0]}", row[1:]))) for row in rows]
        return found, _cursor(rows, limit)

    async def all_parents(self, cursor: bytes | None, limit: int) -> tuple[list[tuple[Ino, Ino, int]], bytes | None]:
        return [], None


def _session(row: Row) -> Session:
    sid, expire, info = row
    if type(expire) is not int:
        raise CorruptRecord(f"session {sid}", f"expires at {expire!r:.100}")
    return Session(sid, expire, b"" if info is None else blob(f"session {sid}", info))
