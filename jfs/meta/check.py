"""fsck's rules about metadata: names, links, parents, directory statistics, usage, slice references, sessions.

A check pages through the volume and keeps little in memory: a bit per inode, the files with several links, and the
reference counts of one range of slice ids at a time.  Each finding knows how to repair itself, if that can be done.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from jfs.errors import CorruptRecord
from jfs.meta import check_repair as repairs
from jfs.meta.access import usage
from jfs.meta.run import read
from jfs.meta.transaction import Transaction
from jfs.meta.types import (
    ROOT_INO,
    TRASH_INO,
    TYPE_DIR,
    Attr,
    DeletedFile,
    DirEntry,
    DirStat,
    Ino,
    Slice,
    SliceRef,
    int64,
    is_trash,
)
from jfs.meta.usage import load_usage

if TYPE_CHECKING:
    from jfs.meta.client import MetaClient

T = TypeVar("T")
Page = tuple[list[T], bytes | None]

PAGE: Final = 1000
SLICE_IDS_AT_ONCE: Final = 1 << 20
SETTLE_S: Final = 2.5
NO_SLICE: Final = SliceRef((1 << 62) - 1, 1)

Repair = Callable[[Transaction], Awaitable[None]]


class Finding(msgspec.Struct, frozen=True):
    """Something that breaks a rule.  `ino` is the inode concerned, or 0; `repair` is None where a human must decide."""

    kind: str
    ino: Ino
    message: str
    repair: Repair | None = None

    @property
    def repairable(self) -> bool:
        return self.repair is not None


class InodeSet:
    """A set of inodes at a bit each, as ids come in dense batches."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, ino: Ino) -> None:
        page = self._pages.get(ino >> 13)
        if page is None:
            page = self._pages[ino >> 13] = bytearray(1024)
        page[ino >> 3 & 1023] |= 1 << (ino & 7)

    def __contains__(self, ino: Ino) -> bool:
        page = self._pages.get(ino >> 13)
        return page is not None and bool(page[ino >> 3 & 1023] >> (ino & 7) & 1)


async def check(client: "MetaClient") -> AsyncIterator[Finding]:
    """All findings of the whole volume.  On a volume in use, only what was wrong in the same way twice."""
    if not await read(client.engine, _live_sessions, client.now_s()):
        async for finding in _check_once(client):
            yield finding
        return
    suspects = {(found.kind, found.ino, found.message) async for found in _check_once(client)}
    if not suspects:
        return
    import trio  # not at the top: whoever asks for one inode needs no event loop

    await trio.sleep(SETTLE_S)
    async for finding in _check_once(client):
        if (finding.kind, finding.ino, finding.message) in suspects:
            yield finding


async def repair(client: "MetaClient", finding: Finding) -> bool:
    """Repair what can be repaired; whether that was so."""
    if finding.repair is None:
        return False
    await client.write(finding.repair)
    return True


async def _live_sessions(tx: Transaction, now_s: int) -> int:
    return sum(session.expire >= now_s for session in await tx.sessions())


async def _check_once(client: "MetaClient") -> AsyncIterator[Finding]:
    for part in (_check_inodes, _check_strays, _check_slices, _check_sessions):
        try:
            async for finding in part(client):
                yield finding
        except CorruptRecord as error:
            yield Finding("corrupt record", 0, str(error))


# -- inodes and names


class _Tally:
    """What one pass over all inodes collects."""

    def __init__(self) -> None:
        self.space = self.inodes = 0
        self.named = InodeSet()
        self.links: dict[Ino, Counter[Ino]] = {}

    def see(self, parent: Ino, entry: DirEntry, attr: Attr) -> None:
        """A name of an inode that exists."""
        ino = entry.dentry.ino
        if attr.type != TYPE_DIR:
            if attr.parent == 0 or attr.nlink != 1:
                self.links.setdefault(ino, Counter())[parent] += 1
            elif ino in self.named:
                self.links.setdefault(ino, Counter((attr.parent,)))[parent] += 1
        self.named.add(ino)


async def _check_inodes(client: "MetaClient") -> AsyncIterator[Finding]:
    tally = _Tally()
    async for ino, attr in _all_attrs(client):
        if ino not in (ROOT_INO, TRASH_INO):
            tally.space += usage(attr)[1]
            tally.inodes += 1
        if attr.type == TYPE_DIR:
            for finding in await read(client.engine, _check_dir, ino, client.settings.dir_stats, tally):
                yield finding
    for finding in await read(client.engine, _check_roots, client.settings.trash_days > 0):
        yield finding
    for ino, links in tally.links.items():
        for finding in await read(client.engine, _check_links, ino, links):
            yield finding
    held = await read(client.engine, _held_inodes)
    async for ino, _ in _all_attrs(client):
        if ino in tally.named or ino in (ROOT_INO, TRASH_INO) or ino in held:
            continue
        for finding in await read(client.engine, _check_nameless, ino, client.now_s()):
            yield finding
    space, inodes = await read(client.engine, load_usage)
    counted = int64(tally.space)
    if (space, inodes) != (counted, tally.inodes):
        message = f"usage is {space} bytes, {inodes} inodes, but should be {counted} bytes, {tally.inodes} inodes"
        yield Finding("usage", 0, message, partial(repairs.set_usage, space=counted, inodes=tally.inodes))


async def _all_attrs(client: "MetaClient") -> AsyncIterator[tuple[Ino, Attr]]:
    async def page(tx: Transaction, cursor: bytes | None) -> Page[tuple[Ino, Attr]]:
        return await tx.all_attrs(cursor, PAGE)

    cursor: bytes | None = None
    while True:
        rows, cursor = await read(client.engine, page, cursor)
        for row in rows:
            yield row
        if cursor is None:
            return


async def _check_roots(tx: Transaction, wants_trash: bool) -> list[Finding]:
    found = []
    if await tx.attr(ROOT_INO) is None:
        found.append(
            Finding("attr missing", ROOT_INO, "the root directory's attributes are missing", repairs.make_root)
        )
    if wants_trash and await tx.attr(TRASH_INO) is None:
        found.append(Finding("attr missing", TRASH_INO, "the trash's attributes are missing", repairs.make_trash))
    return found


async def _check_dir(tx: Transaction, ino: Ino, dir_stats: bool, tally: _Tally | None) -> list[Finding]:
    """One directory in one snapshot: its names, what they point at, its link count, its statistics."""
    attr = await tx.attr(ino)
    if attr is None or attr.type != TYPE_DIR:
        return []
    found: list[Finding] = []
    total = DirStat()
    subdirs = 0
    after: bytes | None = None
    while True:
        page = await tx.entries(ino, after, PAGE)
        for entry in page:
            found += _check_name(ino, entry, tally)
            if entry.attr is None:
                continue
            if tally is not None:
                tally.see(ino, entry, entry.attr)
            subdirs += entry.attr.type == TYPE_DIR
            length, space = usage(entry.attr)
            total.length += length
            total.space += space
            total.inodes += 1
        if len(page) < PAGE:
            break
        after = page[-1].name
    if not is_trash(ino) and attr.nlink != 2 + subdirs:
        message = f"directory {ino} has nlink {attr.nlink}, but should have {2 + subdirs}"
        found.append(Finding("nlink", ino, message, partial(repairs.recount_dir_links, ino=ino)))
    if dir_stats and ino != TRASH_INO:
        found += await _check_dir_stat(tx, ino, total)
    return found


async def _check_dir_stat(tx: Transaction, ino: Ino, total: DirStat) -> list[Finding]:
    """Lengths may drift (the peer's clones make them), space and inodes may not; a missing record is no mistake."""
    stat = await tx.dir_stat(ino)
    space = int64(total.space)
    if stat is None or (stat.space, stat.inodes) == (space, total.inodes):
        return []
    message = (
        f"directory {ino} counts {stat.space} bytes, {stat.inodes} inodes, "
        f"but should count {space} bytes, {total.inodes} inodes"
    )
    return [Finding("dir stat", ino, message, partial(repairs.recount_dir_stat, ino=ino))]


def _check_name(parent: Ino, entry: DirEntry, tally: _Tally | None) -> list[Finding]:
    name = entry.name.decode(errors="backslashreplace")
    ino = entry.dentry.ino
    attr = entry.attr
    if attr is None:
        message = f"entry {name} of directory {parent} points at inode {ino}, which does not exist"
        return [Finding("dangling entry", ino, message, partial(repairs.drop_entry, parent=parent, name=entry.name))]
    found = []
    if attr.type != entry.dentry.type:
        message = (
            f"entry {name} of directory {parent} says type {entry.dentry.type}, inode {ino} is of type {attr.type}"
        )
        found.append(Finding("entry type", ino, message, partial(repairs.retype_entry, parent=parent, name=entry.name)))
    if attr.type == TYPE_DIR and tally is not None and ino in tally.named:
        message = f"directory {ino} has more than one name, one of them {name} in directory {parent}"
        found.append(Finding("directory links", ino, message))
    elif attr.parent not in (0, parent) and (attr.type == TYPE_DIR or attr.nlink == 1):
        message = f"inode {ino} is {name} in directory {parent}, but its parent is {attr.parent}"
        fix = partial(repairs.set_parent, ino=ino, parent=parent, name=entry.name)
        found.append(Finding("parent", ino, message, fix))
    return found


async def _check_links(tx: Transaction, ino: Ino, links: Counter[Ino]) -> list[Finding]:
    """A file with several links: their number, and where they are."""
    attr = await tx.attr(ino)
    if attr is None:
        return []
    count = sum(links.values())
    fix = partial(repairs.recount_links, ino=ino, candidates=tuple(links))
    found = []
    if attr.nlink != count:
        message = f"inode {ino} has nlink {attr.nlink}, but {count} names"
        found.append(Finding("nlink", ino, message, fix))
    if attr.parent and count > 1:
        message = f"inode {ino} has {count} names, but a single parent {attr.parent}"
        found.append(Finding("parent", ino, message, fix))
    if attr.parent == 0:
        stored = {parent: number for parent, number in (await tx.parents(ino)).items() if number}
        if stored != links:
            message = f"inode {ino} counts links by directory as {stored}, but should as {dict(links)}"
            found.append(Finding("parent counts", ino, message, fix))
    return found


async def _held_inodes(tx: Transaction) -> set[Ino]:
    """Inodes that need no name: open in a session, or a clone that is being built."""
    held = set(await tx.detached(1 << 62))
    for session in await tx.sessions():
        held.update(await tx.sustained(session.sid))
    return held


async def _check_nameless(tx: Transaction, ino: Ino, now_s: int) -> list[Finding]:
    attr = await tx.attr(ino)
    if attr is None:
        return []
    if attr.nlink == 0:
        message = f"inode {ino} has no name, and no session holds it open"
        return [Finding("sustained", ino, message, partial(repairs.delete_nameless, ino=ino, now_s=now_s))]
    for parent in [attr.parent] if attr.parent else await tx.parents(ino):
        if await repairs.names_of(tx, parent, ino):
            return []  # it came after its directory was looked at
    return [Finding("orphan", ino, f"inode {ino} has no name in any directory (parent {attr.parent})")]


# -- records of inodes that do not exist


async def _check_strays(client: "MetaClient") -> AsyncIterator[Finding]:
    """Names in directories, and chunks of files, that are no more."""

    async def names(tx: Transaction, cursor: bytes | None) -> Page[Finding]:
        rows, cursor = await tx.all_dentries(cursor, PAGE)
        there = await tx.attrs(list({parent for parent, _, _ in rows}))
        return [
            Finding(
                "stray entry",
                dentry.ino,
                f"entry {name.decode(errors='backslashreplace')} is in directory {parent}, which does not exist",
            )
            for parent, name, dentry in rows
            if parent not in there
        ], cursor

    async def chunks(tx: Transaction, cursor: bytes | None) -> Page[Finding]:
        rows, cursor = await tx.all_chunks(cursor, PAGE)
        missing = {ino for ino, _, _ in rows}.difference(await tx.attrs(list({ino for ino, _, _ in rows})))
        if missing:
            missing.difference_update(deleted.ino for deleted in await tx.deleted_files(1 << 62, 1 << 30))
        return [
            Finding("stray chunks", ino, f"chunks of inode {ino} are left, which does not exist", _forget(client, ino))
            for ino in sorted(missing)
        ], cursor

    for look in (names, chunks):
        cursor: bytes | None = None
        told: set[str] = set()
        while True:
            found, cursor = await read(client.engine, look, cursor)
            for finding in found:
                if finding.message not in told:
                    told.add(finding.message)
                    yield finding
            if cursor is None:
                break


def _forget(client: "MetaClient", ino: Ino) -> Repair:
    """Let the clean-up of deleted files take its chunks."""

    async def put_deleted(tx: Transaction) -> None:
        if await tx.attr(ino) is None:
            tx.put_deleted_file(DeletedFile(ino, 0, client.now_s()))

    return put_deleted


# -- slices


async def _check_slices(client: "MetaClient") -> AsyncIterator[Finding]:
    """Stored reference counts against the records of all chunks and what compactions keep."""
    last = await read(client.engine, _last_slice)
    absent = await read(client.engine, _references_of, NO_SLICE)
    for first in range(0, last + 1, SLICE_IDS_AT_ONCE):
        counts = await _count_references(client, range(first, first + SLICE_IDS_AT_ONCE))
        cursor: bytes | None = None
        while True:
            rows, cursor = await read(client.engine, _stored_counts, cursor)
            for ref, stored in rows:
                if ref.id == 0 or ref.id - first not in range(SLICE_IDS_AT_ONCE):  # 0: made by the peer's load
                    continue
                expected = counts.pop(ref, 0)
                if stored != expected and (stored > 0 or expected > 0):
                    yield _wrong_references(ref, stored, expected)
            if cursor is None:
                break
        for ref, expected in counts.items():
            if expected != absent:
                yield _wrong_references(ref, absent, expected)


def _wrong_references(ref: SliceRef, stored: int, expected: int) -> Finding:
    message = f"slice {ref.id} of {ref.size} bytes has {stored} references, but should have {expected}"
    fix = partial(repairs.set_references, ref=ref, count=expected)
    return Finding("slice references", 0, message, fix if expected > 0 else None)


async def _count_references(client: "MetaClient", ids: range) -> Counter[SliceRef]:
    async def page(tx: Transaction, cursor: bytes | None) -> Page[tuple[Ino, int, list[Slice]]]:
        return await tx.all_chunks(cursor, PAGE)

    counts: Counter[SliceRef] = Counter()
    cursor: bytes | None = None
    while True:
        rows, cursor = await read(client.engine, page, cursor)
        for _, _, records in rows:
            counts.update(SliceRef(record.id, record.size) for record in records if record.id and record.id in ids)
        if cursor is None:
            break
    for ref in await read(client.engine, _kept_slices):
        if ref.id in ids:
            counts[ref] += 1
    return counts


async def _kept_slices(tx: Transaction) -> list[SliceRef]:
    return [ref for delayed in await tx.delayed_slices(1 << 62, 1 << 30) for ref in delayed.slices if ref.id]


async def _last_slice(tx: Transaction) -> int:
    return await tx.counter("nextChunk")


async def _references_of(tx: Transaction, ref: SliceRef) -> int:
    return await tx.slice_references(ref)


async def _stored_counts(tx: Transaction, cursor: bytes | None) -> Page[tuple[SliceRef, int]]:
    return await tx.slice_counts(cursor, PAGE)


# -- sessions


async def _check_sessions(client: "MetaClient") -> AsyncIterator[Finding]:
    """What dead sessions hold."""
    for sid, held in await read(client.engine, _dead_sessions, client.now_s()):
        message = f"session {sid} is dead and holds {held} inodes without a name"
        yield Finding("session", 0, message, partial(repairs.end_dead_session, sid=sid, now_s=client.now_s()))


async def _dead_sessions(tx: Transaction, now_s: int) -> list[tuple[int, int]]:
    held = [
        (session.sid, len(await tx.sustained(session.sid))) for session in await tx.sessions() if session.expire < now_s
    ]
    return [(sid, count) for sid, count in held if count]


# -- one directory tree


async def check_tree(client: "MetaClient", ino: Ino, *, recursive: bool = True) -> AsyncIterator[Finding]:
    """Findings about one directory, and all below it: what can be told without a look at the whole volume."""
    waiting = [ino]
    while waiting:
        directory = waiting.pop()
        for finding in await read(client.engine, _check_dir, directory, client.settings.dir_stats, None):
            yield finding
        if recursive:
            waiting += await read(client.engine, _subdirs, directory)


async def _subdirs(tx: Transaction, ino: Ino) -> list[Ino]:
    found: list[Ino] = []
    after: bytes | None = None
    while True:
        page = await tx.dentries(ino, after, PAGE)
        found += [dentry.ino for _, dentry in page if dentry.type == TYPE_DIR]
        if len(page) < PAGE:
            return found
        after = page[-1][0]


async def path_of(tx: Transaction, ino: Ino) -> bytes:
    """Where an inode is in the volume, by one of its names; `inode:N` where it has none."""
    parts: list[bytes] = []
    here = ino
    while here != ROOT_INO:
        attr = await tx.attr(here)
        if attr is None or len(parts) > 10_000:
            return b"inode:%d" % ino
        if here == TRASH_INO:
            parts.append(b".trash")
            break
        for parent in [attr.parent] if attr.parent else list(await tx.parents(here)):
            names = await repairs.names_of(tx, parent, here)
            if names:
                break
        else:
            return b"inode:%d" % ino
        parts.append(names[0])
        here = parent
    return b"/" + b"/".join(reversed(parts))
