"""Operations on a file's bytes as metadata: opening, slice records, truncation, compaction, and the end of its data."""

import errno
import os
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from jfs.errors import FsError
from jfs.meta.access import R, W, require, require_changeable, require_outside_trash, usage
from jfs.meta.slices import COMPACT_AT_MOST, Segment, compaction_choice, end_of
from jfs.meta.transaction import Transaction
from jfs.meta.types import (
    CHUNK_SIZE,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    MAX_FILE_SIZE,
    TYPE_FILE,
    Attr,
    Cred,
    DelayedSlices,
    DeletedFile,
    Ino,
    Slice,
    SliceRef,
    charged_space,
)

SECOND: Final = 1_000_000_000
CHUNKS_AT_ONCE: Final = 256
MAX_CHUNKS: Final = MAX_FILE_SIZE // CHUNK_SIZE + 1


class Written(msgspec.Struct, frozen=True, gc=False):
    """A slice record is in its chunk: the file's attributes now, and how many records the chunk has."""

    attr: Attr
    records: int


class CompactionPlan(msgspec.Struct, frozen=True):
    """Replace `records`, the oldest of a chunk, by those of them that stay and a new slice for each of `parts`."""

    ino: Ino
    index: int
    records: list[Slice]
    kept: list[Slice]
    parts: list[list[Segment]]

    @property
    def ids(self) -> int:
        """How many new slice ids it takes: at least one, by which the trash keeps what is replaced."""
        return max(1, len(self.parts))

    def written(self, ids: Sequence[int]) -> list[Slice]:
        """The records of the parts as slices with these ids."""
        sizes = [end_of(part[-1]) - part[0].pos for part in self.parts]
        return [
            Slice(part[0].pos, slice_id, size, 0, size)
            for part, slice_id, size in zip(self.parts, ids, sizes, strict=False)
        ]


# -- opening


async def check_open(tx: Transaction, cred: Cred, ino: Ino, flags: int, *, opened: bool = False) -> Attr:
    """The attributes of an inode that may be opened so.  Raises ENOENT, EPERM (immutable, append-only, trash), EACCES."""
    attr = await tx.attr(ino)
    if attr is None:
        raise FsError(errno.ENOENT)
    require_open(attr, cred, ino, flags, opened=opened)
    return attr


def require_open(attr: Attr, cred: Cred, ino: Ino, flags: int, *, opened: bool = False) -> None:
    """EPERM, EACCES where an inode with these attributes may not be opened so.

    With `opened` the caller holds a handle, which may outlive the file's move into the trash.
    """
    access = flags & os.O_ACCMODE
    if access != os.O_WRONLY:
        require(attr, cred, R)
    if access != os.O_RDONLY or flags & os.O_TRUNC:
        require(attr, cred, W)
        if not opened:
            require_outside_trash(ino, attr)
        if attr.flags & FLAG_IMMUTABLE:
            raise FsError(errno.EPERM)
        if attr.flags & FLAG_APPEND and (flags & os.O_TRUNC or not flags & os.O_APPEND):
            raise FsError(errno.EPERM)


# -- records


async def read_chunk(tx: Transaction, ino: Ino, index: int) -> list[Slice]:
    """A chunk's records, oldest first.  Raises ENOENT for a file that is gone."""
    records = await tx.slices(ino, index)
    if not records and await tx.attr(ino) is None:
        raise FsError(errno.ENOENT)
    return records


async def write_slice(tx: Transaction, ino: Ino, index: int, record: Slice, mtime_ns: int, now_ns: int) -> Written:
    """`write_slices` with one record."""
    return await write_slices(tx, ino, index, (record,), mtime_ns, now_ns)


async def foresee_slices(tx: Transaction, ino: Ino, index: int) -> None:
    """Fetch what `write_slices` looks at."""
    await tx.warm(attrs=(ino,), chunks=((ino, index),))


async def write_slices(
    tx: Transaction,
    ino: Ino,
    index: int,
    records: Sequence[Slice],
    mtime_ns: int,
    now_ns: int,
    fingerprint: bytes = b"",
) -> Written:
    """Append records of new slices to a chunk and let the file grow by them.  Raises ENOENT, EPERM for what is no file.

    With a `fingerprint` all records are of the one slice that it belongs to.

    Records that are there already are dropped: the commit that wrote them succeeded although its answer was lost.
    """
    await foresee_slices(tx, ino, index)
    attr = await tx.attr(ino)
    if attr is None:
        raise FsError(errno.ENOENT)
    if attr.type != TYPE_FILE:
        raise FsError(errno.EPERM)
    known = await tx.slices(ino, index)
    if records[0].id and records[0] in known:
        return Written(attr, len(known))
    end = index * CHUNK_SIZE + max(record.pos + record.length for record in records)
    if end > MAX_FILE_SIZE:
        raise FsError(errno.EFBIG)

    if end > attr.length:
        await _charge_change(tx, ino, attr, end)
        attr.length = end
    attr.mtime_ns = mtime_ns
    attr.ctime_ns = now_ns
    tx.put_attr(ino, attr)
    count = await tx.append_slices(ino, index, records)
    for ref, times in Counter(SliceRef(record.id, record.size) for record in records if record.id).items():
        tx.new_slice(ref)
        if times > 1:
            await tx.add_slice_references(ref, times - 1)
        if fingerprint:
            tx.put_fingerprint(ref, fingerprint)
    return Written(attr, count)


async def _charge_change(tx: Transaction, ino: Ino, attr: Attr, length: int) -> None:
    """Book that a file is about to have `length` bytes: for the volume, and for each directory that lists it."""
    grown = length - attr.length
    space = charged_space(length) - charged_space(attr.length)
    if space:
        tx.charge(space, 0)
    if attr.nlink == 0:
        return
    if attr.parent:
        tx.charge_dir(attr.parent, grown, space, 0)
        return
    for parent, links in (await tx.parents(ino)).items():
        if links > 0:
            tx.charge_dir(parent, grown * links, space * links, 0)


async def truncate(tx: Transaction, cred: Cred, ino: Ino, length: int, now_ns: int, *, opened: bool = False) -> Attr:
    """Set a file's length; what lies between the old and the new end becomes zeros.  Raises EPERM, EACCES, EFBIG.

    The times move also where the length stays (POSIX, and unlike the peer): `: > f` is how scripts touch.

    With `opened` the caller holds a handle that may write: permission bits were checked when it was opened.
    """
    await tx.warm(attrs=(ino,), chunks=((ino, length // CHUNK_SIZE),))
    attr = await tx.attr(ino)
    if attr is None:
        raise FsError(errno.ENOENT)
    if attr.type != TYPE_FILE:
        raise FsError(errno.EPERM)
    if length > MAX_FILE_SIZE:
        raise FsError(errno.EFBIG)
    require_changeable(attr)
    if not opened:
        require_outside_trash(ino, attr)
        require(attr, cred, W)
    if length != attr.length:
        await _put_zeros(tx, ino, min(length, attr.length), max(length, attr.length))
        await _charge_change(tx, ino, attr, length)
        attr.length = length
    attr.mtime_ns = attr.ctime_ns = now_ns
    tx.put_attr(ino, attr)
    return attr


async def _put_zeros(tx: Transaction, ino: Ino, left: int, right: int) -> None:
    """Zero records over [left, right).  Chunks strictly between the first and the last get one only if they exist."""
    first, last = left // CHUNK_SIZE, right // CHUNK_SIZE
    start = left % CHUNK_SIZE
    end = right % CHUNK_SIZE
    if first == last:
        await tx.append_slices(ino, first, (_zero_record(start, end - start),))
        return
    await tx.append_slices(ino, first, (_zero_record(start, CHUNK_SIZE - start),))
    indexes = await tx.chunk_indexes(ino, first + 1, last)
    for number, index in enumerate(indexes):
        if number % CHUNKS_AT_ONCE == 0:
            await tx.warm(chunks=[(ino, coming) for coming in indexes[number : number + CHUNKS_AT_ONCE]])
        await tx.append_slices(ino, index, (_zero_record(0, CHUNK_SIZE),))
    if end:
        await tx.append_slices(ino, last, (_zero_record(0, end),))


def _zero_record(pos: int, length: int) -> Slice:
    return Slice(pos, 0, 0, 0, length)


# -- compaction


async def compaction_candidate(tx: Transaction, ino: Ino, index: int) -> CompactionPlan | None:
    """What to compact in a chunk; None where it is not worth it."""
    records = await tx.slices(ino, index)
    choice = compaction_choice(records)
    if choice is None:
        return None
    return CompactionPlan(ino, index, records[:COMPACT_AT_MOST], choice.kept, choice.parts)


async def commit_compaction(
    tx: Transaction,
    plan: CompactionPlan,
    ids: Sequence[int],
    now_ns: int,
    fingerprints: Sequence[bytes] = (),
    *,
    delay: bool,
) -> list[SliceRef]:
    """Put what the plan keeps and new slices in the place of its records; the slices that nothing refers to any more.

    `ids`: `plan.ids` of them; `fingerprints`: of the parts, if the volume keeps some.  With `delay` (trash is on) the old
    slices keep their references until trash expires.  Raises EINVAL where the chunk's oldest records are not the plan's any
    more: the new slices were made in vain.
    """
    records = await tx.slices(plan.ino, plan.index)
    written = plan.written(ids)
    merged = plan.kept + written
    if records[: len(plan.records)] != plan.records:
        if records[: len(merged)] == merged:  # done by a commit whose answer was lost
            return []
        raise FsError(errno.EINVAL)

    tx.put_slices(plan.ino, plan.index, merged + records[len(plan.records) :])
    for number, record in enumerate(written):
        ref = SliceRef(record.id, record.size)
        tx.new_slice(ref)
        if fingerprints and fingerprints[number]:
            tx.put_fingerprint(ref, fingerprints[number])
    replaced = _replaced(plan)
    if not delay:
        return await drop_references(tx, replaced)
    if replaced:
        tx.put_delayed_slices(DelayedSlices(ids[0], now_ns // SECOND, replaced))
    return []


def _replaced(plan: CompactionPlan) -> list[SliceRef]:
    """The slices of the records that go; one that several records refer to, as often."""
    stay = Counter(record for record in plan.kept if record.id)
    replaced = []
    for record in plan.records:
        if stay[record]:
            stay[record] -= 1
        elif record.id:
            replaced.append(SliceRef(record.id, record.size))
    return replaced


async def drop_references(tx: Transaction, refs: Sequence[SliceRef]) -> list[SliceRef]:
    """One reference less for each mention; those that have none left."""
    dead = []
    for ref, times in Counter(refs).items():
        if await tx.add_slice_references(ref, -times) <= 0:
            dead.append(ref)
    return dead


# -- the end of a file's data


async def sustained_gone(tx: Transaction, sid: int, ino: Ino, now_ns: int) -> DeletedFile | None:
    """The session does not hold an inode without a name any more: it goes, unless it has a name again."""
    attr = await tx.attr(ino)
    tx.delete_sustained(sid, ino)
    if attr is None or attr.nlink > 0:
        return None
    await tx.delete_xattrs(ino)
    tx.delete_attr(ino)
    tx.charge(-usage(attr)[1], -1)
    if attr.type != TYPE_FILE:
        return None
    deleted = DeletedFile(ino, attr.length, now_ns // SECOND)
    tx.put_deleted_file(deleted)
    return deleted


async def deleted_chunks(tx: Transaction, deleted: DeletedFile) -> list[int] | None:
    """The chunks that a deleted file still has; None where the inode is alive after all."""
    if await tx.attr(deleted.ino) is not None:
        return None
    return await tx.chunk_indexes(deleted.ino, 0, MAX_CHUNKS)


async def release_file(tx: Transaction, deleted: DeletedFile, index: int) -> list[SliceRef]:
    """Drop one chunk of a deleted file and its references; the slices whose last reference it was."""
    records = await tx.slices(deleted.ino, index)
    tx.delete_chunk(deleted.ino, index)
    return await drop_references(tx, [SliceRef(record.id, record.size) for record in records if record.id])


async def forget_deleted_file(tx: Transaction, deleted: DeletedFile) -> None:
    """All chunks are released: nothing is left to do for this file."""
    tx.forget_deleted_file(deleted)


async def forget_slice(tx: Transaction, ref: SliceRef, *, fingerprinted: bool = False) -> None:
    """The slice's blocks are removed; its count goes too, unless it has come to life again, and its fingerprint."""
    if await tx.slice_references(ref) <= 0:
        tx.forget_slice(ref)
        if fingerprinted:
            tx.delete_fingerprint(ref)


async def expire_delayed(tx: Transaction, delayed: DelayedSlices) -> list[SliceRef]:
    """Slices that a compaction replaced long ago lose the reference that it kept; those that have none left."""
    # The oldest are expired first, so it is the first one, but for those of the same second.
    for limit in (1, 1 << 30):
        if delayed in await tx.delayed_slices(delayed.when + 1, limit):
            break
    else:
        return []  # another client was faster: a second reference would be taken away
    tx.delete_delayed_slices(delayed)
    return await drop_references(tx, delayed.slices)
