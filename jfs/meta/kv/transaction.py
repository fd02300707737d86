"""The typed transaction on an ordered key-value store: each verb in terms of the keys and values of `schema`."""

from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeVar

from jfs.meta import schema
from jfs.meta.kv.contract import KeyValues
from jfs.meta.transaction import Charges
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

PAGE: Final = 1000
"""Keys asked for at once by a scan that may have to look at many."""

Row = TypeVar("Row")
Pair = tuple[bytes, bytes]
Cursor = bytes | None


class KvTransaction:
    """See `jfs.meta.transaction.Transaction` for what the verbs mean."""

    __slots__ = ("charge", "charge_dir", "charges", "kv")

    def __init__(self, kv: KeyValues) -> None:
        self.kv = kv
        self.charges = Charges()
        self.charge = self.charges.charge
        self.charge_dir = self.charges.charge_dir

    async def _under(self, prefix: bytes) -> list[Pair]:
        """Every key that starts with `prefix`."""
        return await self.kv.scan(prefix, schema.end_of(prefix))

    async def _page(
        self, prefix: bytes, cursor: Cursor, limit: int, row_of: Callable[[bytes, bytes], Row | None]
    ) -> tuple[list[Row], Cursor]:
        """Up to `limit` rows of the keys under `prefix` that `row_of` makes one of; the cursor is where to go on."""
        start, end = prefix if cursor is None else cursor, schema.end_of(prefix)
        rows: list[Row] = []
        while pairs := await self.kv.scan(start, end, PAGE):
            for key, value in pairs:
                row = row_of(key, value)
                if row is not None:
                    rows.append(row)
                    if len(rows) >= limit:
                        return rows, key + b"\0"
            start = pairs[-1][0] + b"\0"
        return rows, None

    async def warm(
        self,
        *,
        attrs: Sequence[Ino] = (),
        names: Sequence[tuple[Ino, bytes]] = (),
        chunks: Sequence[tuple[Ino, int]] = (),
        parents: Sequence[tuple[Ino, Ino]] = (),
    ) -> None:
        keys = [schema.attr_key(ino) for ino in attrs]
        keys += [schema.dentry_key(parent, name) for parent, name in names]
        keys += [schema.chunk_key(ino, index) for ino, index in chunks]
        keys += [schema.parent_key(ino, parent) for ino, parent in parents]
        await self.kv.warm(keys)

    # -- inodes

    async def attr(self, ino: Ino) -> Attr | None:
        key = schema.attr_key(ino)
        value = await self.kv.get(key)
        return None if value is None else schema.decode_attr(value, key)

    async def attrs(self, inos: Sequence[Ino]) -> dict[Ino, Attr]:
        if not inos:
            return {}
        found = await self.kv.get_many([schema.attr_key(ino) for ino in inos])
        return {schema.inode_of(key): schema.decode_attr(value, key) for key, value in found.items()}

    def put_attr(self, ino: Ino, attr: Attr) -> None:
        self.charges.attrs[ino] = attr
        self.kv.set(schema.attr_key(ino), schema.encode_attr(attr))

    def delete_attr(self, ino: Ino) -> None:
        self.charges.attrs[ino] = None
        self.kv.delete(schema.attr_key(ino))

    def guard_attr(self, ino: Ino) -> None:
        self.kv.guard(schema.attr_key(ino))

    # -- names

    async def lookup(self, parent: Ino, name: bytes, guess: Ino | None = None) -> Entry | None:
        named = schema.dentry_key(parent, name)
        found = await self.kv.get_each((named,) if guess is None else (named, schema.attr_key(guess)))
        if named not in found:
            return None
        ino = schema.decode_dentry(found[named], named).ino
        key = schema.attr_key(ino)
        if ino != guess:
            found = await self.kv.get_each((key,))
        if key in found:
            return Entry(ino, schema.decode_attr(found[key], key))
        return await self._lookup_at_once(parent, name)

    async def _lookup_at_once(self, parent: Ino, name: bytes) -> Entry | None:
        """Both as they were at one time: an inode that is missing may have been replaced between two answers."""
        dentry = await self.dentry(parent, name)
        if dentry is None:
            return None
        attr = await self.attr(dentry.ino)
        return None if attr is None else Entry(dentry.ino, attr)

    async def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        key = schema.dentry_key(parent, name)
        value = await self.kv.get(key)
        return None if value is None else schema.decode_dentry(value, key)

    async def entries(self, parent: Ino, after: bytes | None, limit: int) -> list[DirEntry]:
        named = await self.dentries(parent, after, limit)
        keys = [schema.attr_key(dentry.ino) for _, dentry in named]
        found = await self.kv.get_many(keys) if keys else {}
        decode = schema.decode_attr
        return [
            DirEntry(name, dentry, None if (value := found.get(key)) is None else decode(value, key))
            for (name, dentry), key in zip(named, keys, strict=True)
        ]

    async def dentries(self, parent: Ino, after: bytes | None, limit: int) -> list[tuple[bytes, Dentry]]:
        prefix = schema.dentry_prefix(parent)
        start = prefix if after is None else prefix + after + b"\0"
        pairs = await self.kv.scan(start, schema.end_of(prefix), limit)
        cut, decode = len(prefix), schema.decode_dentry
        return [(key[cut:], decode(value, key)) for key, value in pairs]

    def put_dentry(self, parent: Ino, name: bytes, dentry: Dentry) -> None:
        self.kv.set(schema.dentry_key(parent, name), schema.encode_dentry(dentry))

    def delete_dentry(self, parent: Ino, name: bytes) -> None:
        self.kv.delete(schema.dentry_key(parent, name))

    def guard_name(self, parent: Ino, name: bytes) -> None:
        self.kv.guard(schema.name_guard_key(parent, name))

    def guard_names(self, parent: Ino) -> None:
        for key in schema.name_guard_keys(parent):
            self.kv.guard(key)

    async def parents(self, ino: Ino) -> dict[Ino, int]:
        pairs = await self._under(schema.parent_prefix(ino))
        counts = {schema.last_inode_of(key): schema.decode_le64(value, key) for key, value in pairs}
        return {parent: count for parent, count in counts.items() if count > 0}

    async def add_parent(self, ino: Ino, parent: Ino, delta: int) -> None:
        await self._add(schema.parent_key(ino, parent), delta)

    async def delete_parents(self, ino: Ino) -> None:
        await self._delete_under(schema.parent_prefix(ino))

    async def symlink(self, ino: Ino) -> bytes | None:
        return await self.kv.get(schema.symlink_key(ino))

    def put_symlink(self, ino: Ino, target: bytes) -> None:
        self.kv.set(schema.symlink_key(ino), target)

    def delete_symlink(self, ino: Ino) -> None:
        self.kv.delete(schema.symlink_key(ino))

    # -- extended attributes

    async def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        return await self.kv.get(schema.xattr_key(ino, name))

    async def xattr_names(self, ino: Ino) -> list[bytes]:
        prefix = schema.xattr_prefix(ino)
        return [key[len(prefix) :] for key, _ in await self._under(prefix)]

    def put_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self.kv.set(schema.xattr_key(ino, name), value)

    def delete_xattr(self, ino: Ino, name: bytes) -> None:
        self.kv.delete(schema.xattr_key(ino, name))

    async def delete_xattrs(self, ino: Ino) -> None:
        await self._delete_under(schema.xattr_prefix(ino))

    # -- chunks and slices

    async def slices(self, ino: Ino, index: int) -> list[Slice]:
        key = schema.chunk_key(ino, index)
        value = await self.kv.get(key)
        return [] if value is None else schema.decode_slices(value, key)

    async def chunks(self, ino: Ino) -> list[tuple[int, list[Slice]]]:
        pairs = await self._under(schema.chunk_prefix(ino))
        return [(schema.index_of(key), schema.decode_slices(value, key)) for key, value in pairs]

    async def chunk_indexes(self, ino: Ino, first: int, end: int) -> list[int]:
        pairs = await self.kv.scan(schema.chunk_key(ino, first), schema.chunk_key(ino, end))
        return [schema.index_of(key) for key, _ in pairs]

    async def append_slices(self, ino: Ino, index: int, slices: Sequence[Slice]) -> int:
        key = schema.chunk_key(ino, index)
        value = await self.kv.get(key) or b""
        if len(value) % schema.SLICE_BYTES:
            raise schema.corrupt(key, f"{len(value)} bytes are no whole number of slice records")
        value += schema.encode_slices(slices)
        self.kv.set(key, value)
        return len(value) // schema.SLICE_BYTES

    def put_slices(self, ino: Ino, index: int, slices: Sequence[Slice]) -> None:
        self.kv.set(schema.chunk_key(ino, index), schema.encode_slices(slices))

    def delete_chunk(self, ino: Ino, index: int) -> None:
        self.kv.delete(schema.chunk_key(ino, index))

    def new_slice(self, ref: SliceRef) -> None:
        """A slice without a count has one reference."""

    async def slice_references(self, ref: SliceRef) -> int:
        key = schema.slice_key(ref)
        value = await self.kv.get(key)
        return 1 if value is None else schema.decode_le64(value, key) + 1

    async def add_slice_references(self, ref: SliceRef, delta: int) -> int:
        return await self._add(schema.slice_key(ref), delta) + 1

    def forget_slice(self, ref: SliceRef) -> None:
        self.kv.delete(schema.slice_key(ref))

    async def dead_slices(self, limit: int) -> list[SliceRef]:
        def dead(key: bytes, value: bytes) -> SliceRef | None:
            return schema.slice_ref_of(key) if schema.decode_le64(value, key) < 0 else None

        return (await self._page(b"K", None, limit, dead))[0]

    async def slice_counts(self, cursor: Cursor, limit: int) -> tuple[list[tuple[SliceRef, int]], Cursor]:
        return await self._page(
            b"K", cursor, limit, lambda key, value: (schema.slice_ref_of(key), schema.decode_le64(value, key) + 1)
        )

    async def delayed_slices(self, before: int, limit: int) -> list[DelayedSlices]:
        pairs = await self.kv.scan(schema.delayed_key(0, 0), schema.delayed_key(before, 0), limit)
        return [schema.decode_delayed(key, value) for key, value in pairs]

    def put_delayed_slices(self, delayed: DelayedSlices) -> None:
        self.kv.set(schema.delayed_key(delayed.when, delayed.id), schema.encode_slice_refs(delayed.slices))

    def delete_delayed_slices(self, delayed: DelayedSlices) -> None:
        self.kv.delete(schema.delayed_key(delayed.when, delayed.id))

    # -- fingerprints

    async def fingerprinting(self) -> bytes | None:
        return await self.kv.get(schema.FINGERPRINTING)

    def put_fingerprinting(self, kind: bytes | None) -> None:
        if kind is None:
            self.kv.delete(schema.FINGERPRINTING)
        else:
            self.kv.set(schema.FINGERPRINTING, kind)

    async def fingerprints(self, refs: Collection[SliceRef]) -> dict[SliceRef, bytes]:
        found = await self.kv.get_many([schema.fingerprint_key(ref) for ref in refs])
        return {schema.slice_ref_of(key): value for key, value in found.items()}

    def put_fingerprint(self, ref: SliceRef, value: bytes) -> None:
        self.kv.set(schema.fingerprint_key(ref), value)

    def delete_fingerprint(self, ref: SliceRef) -> None:
        self.kv.delete(schema.fingerprint_key(ref))

    async def all_fingerprints(self, cursor: Cursor, limit: int) -> tuple[list[SliceRef], Cursor]:
        def row(key: bytes, value: bytes) -> SliceRef | None:
            return None if key == schema.FINGERPRINTING else schema.slice_ref_of(key)

        return await self._page(schema.FINGERPRINTING, cursor, limit, row)

    # -- files whose data is still to be removed

    async def deleted_files(self, before: int, limit: int) -> list[DeletedFile]:
        def due(key: bytes, value: bytes) -> DeletedFile | None:
            deleted = schema.decode_deleted_file(key, value)
            return deleted if deleted.when < before else None

        return (await self._page(b"D", None, limit, due))[0]

    def put_deleted_file(self, deleted: DeletedFile) -> None:
        self.kv.set(schema.deleted_file_key(deleted.ino, deleted.length), schema.encode_be64(deleted.when))

    def forget_deleted_file(self, deleted: DeletedFile) -> None:
        self.kv.delete(schema.deleted_file_key(deleted.ino, deleted.length))

    # -- counters and settings

    async def counter(self, name: str) -> int:
        value = await self.kv.get(schema.counter_key(name))
        return 0 if value is None else schema.decode_counter(name, value)

    async def add_counter(self, name: str, delta: int) -> int:
        value = await self.counter(name)
        if delta:
            value = int64(value + delta)
            self.put_counter(name, value)
        return value

    def put_counter(self, name: str, value: int) -> None:
        self.kv.set(schema.counter_key(name), schema.encode_counter(name, value))

    async def settings(self) -> bytes | None:
        return await self.kv.get(schema.SETTING)

    def put_settings(self, text: bytes) -> None:
        self.kv.set(schema.SETTING, text)

    # -- sessions

    async def session(self, sid: int) -> Session | None:
        expiry, info = schema.session_expiry_key(sid), schema.session_info_key(sid)
        found = await self.kv.get_many([expiry, info])
        if expiry not in found:
            return None
        return Session(sid, schema.decode_be64(found[expiry], expiry), found.get(info, b""))

    async def sessions(self) -> list[Session]:
        expiries = await self._under(b"SE")
        sids = [schema.sid_of(key) for key, _ in expiries]
        infos = await self.kv.get_many([schema.session_info_key(sid) for sid in sids])
        return [
            Session(sid, schema.decode_be64(value, key), infos.get(schema.session_info_key(sid), b""))
            for sid, (key, value) in zip(sids, expiries, strict=True)
        ]

    def put_session(self, session: Session) -> None:
        self.kv.set(schema.session_expiry_key(session.sid), schema.encode_be64(session.expire))
        self.kv.set(schema.session_info_key(session.sid), session.info)

    def delete_session(self, sid: int) -> None:
        self.kv.delete(schema.session_expiry_key(sid))
        self.kv.delete(schema.session_info_key(sid))
        self.kv.delete(schema.session_heartbeat_key(sid))

    async def sustained(self, sid: int) -> list[Ino]:
        return [schema.last_inode_of(key) for key, _ in await self._under(schema.sustained_prefix(sid))]

    def put_sustained(self, sid: int, ino: Ino) -> None:
        self.kv.set(schema.sustained_key(sid, ino), schema.SUSTAINED)

    def delete_sustained(self, sid: int, ino: Ino) -> None:
        self.kv.delete(schema.sustained_key(sid, ino))

    async def flocks(self, sid: int) -> list[Flock]:
        pairs = await self._under(b"F")
        return [flock for key, value in pairs for flock in schema.decode_flocks(key, value) if flock.sid == sid]

    async def plocks(self, sid: int) -> list[Plock]:
        pairs = await self._under(b"P")
        return [plock for key, value in pairs for plock in schema.decode_plocks(key, value) if plock.sid == sid]

    async def release_locks(self, sid: int) -> None:
        for key, value in await self._under(b"F"):
            flocks = schema.decode_flocks(key, value)
            self._keep(key, value, schema.encode_flocks([flock for flock in flocks if flock.sid != sid]))
        for key, value in await self._under(b"P"):
            plocks = schema.decode_plocks(key, value)
            self._keep(key, value, schema.encode_plocks([plock for plock in plocks if plock.sid != sid]))

    def _keep(self, key: bytes, was: bytes, value: bytes) -> None:
        """Write what is left of a list, nothing where nothing went."""
        if not value:
            self.kv.delete(key)
        elif value != was:
            self.kv.set(key, value)

    # -- directory statistics, quotas, clones being built

    async def dir_stat(self, ino: Ino) -> DirStat | None:
        key = schema.dir_stat_key(ino)
        value = await self.kv.get(key)
        return None if value is None else schema.decode_dir_stat(value, key)

    def put_dir_stat(self, ino: Ino, dir_stat: DirStat) -> None:
        self.kv.set(schema.dir_stat_key(ino), schema.encode_dir_stat(dir_stat))

    def delete_dir_stat(self, ino: Ino) -> None:
        self.kv.delete(schema.dir_stat_key(ino))

    async def dir_quotas(self) -> dict[Ino, Quota]:
        return {schema.last_inode_of(key): schema.decode_quota(value, key) for key, value in await self._under(b"QD")}

    def delete_dir_quota(self, ino: Ino) -> None:
        self.kv.delete(schema.dir_quota_key(ino))

    async def detached(self, before: int) -> list[Ino]:
        pairs = await self._under(b"N")
        return [schema.inode_of(key) for key, value in pairs if schema.decode_be64(value, key) < before]

    def delete_detached(self, ino: Ino) -> None:
        self.kv.delete(schema.detached_key(ino))

    # -- the whole volume, page by page

    async def all_attrs(self, cursor: Cursor, limit: int) -> tuple[list[tuple[Ino, Attr]], Cursor]:
        def row(key: bytes, value: bytes) -> tuple[Ino, Attr] | None:
            return (schema.inode_of(key), schema.decode_attr(value, key)) if key[9:10] == b"I" else None

        return await self._page(b"A", cursor, limit, row)

    async def all_dentries(self, cursor: Cursor, limit: int) -> tuple[list[tuple[Ino, bytes, Dentry]], Cursor]:
        def row(key: bytes, value: bytes) -> tuple[Ino, bytes, Dentry] | None:
            return (schema.inode_of(key), key[10:], schema.decode_dentry(value, key)) if key[9:10] == b"D" else None

        return await self._page(b"A", cursor, limit, row)

    async def all_chunks(self, cursor: Cursor, limit: int) -> tuple[list[tuple[Ino, int, list[Slice]]], Cursor]:
        def row(key: bytes, value: bytes) -> tuple[Ino, int, list[Slice]] | None:
            if key[9:10] != b"C":
                return None
            return schema.inode_of(key), schema.index_of(key), schema.decode_slices(value, key)

        return await self._page(b"A", cursor, limit, row)

    async def all_dir_stats(self, cursor: Cursor, limit: int) -> tuple[list[tuple[Ino, DirStat]], Cursor]:
        return await self._page(
            b"U", cursor, limit, lambda key, value: (schema.inode_of(key), schema.decode_dir_stat(value, key))
        )

    async def all_parents(self, cursor: Cursor, limit: int) -> tuple[list[tuple[Ino, Ino, int]], Cursor]:
        def row(key: bytes, value: bytes) -> tuple[Ino, Ino, int] | None:
            if key[9:10] != b"P":
                return None
            return schema.inode_of(key), schema.last_inode_of(key), schema.decode_le64(value, key)

        return await self._page(b"A", cursor, limit, row)

    # -- shared steps

    async def _add(self, key: bytes, delta: int) -> int:
        """Add to a little-endian number, 0 where it is missing; what it is now."""
        stored = await self.kv.get(key)
        value = 0 if stored is None else schema.decode_le64(stored, key)
        if delta:
            value += delta
            self.kv.set(key, schema.encode_le64(value))
        return value

    async def _delete_under(self, prefix: bytes) -> None:
        for key, _ in await self._under(prefix):
            self.kv.delete(key)
