"""An open directory: its rows in pages, by offset.

A row's offset is its index in the listing.  Only one page is kept, so a directory of any size lists in flat memory; a page
goes on strictly after the last name of the one before it, so names made or removed meanwhile neither hide nor repeat others.

The kernel believes the attributes that a listing tells, also where it knows better.  So what is left of a page is read again
once this mount has changed an inode in it, or when it is a moment old; from then on pages are small for a while.
"""

import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import msgspec

from jfs.meta.client import MetaClient
from jfs.meta.types import ROOT_INO, Attr, Cred, Ino
from jfs.vfs.files import Asked, OpenFileTable

PAGE: Final = 4096
SMALL_PAGE: Final = 256
"""A little more than the kernel asks for at once."""

ROWS: Final = 1024
MOMENT_S: Final = 1.0
MARKS: Final = 10_000

DirRow = tuple[bytes, Ino, Attr | None, int]
"""Name, inode, attributes (None where the inode is missing), offset of the next row."""


class _Page(msgspec.Struct):
    """Rows as they were at one time."""

    start: int
    """The offset of the first."""
    after: bytes | None
    """The name before the first; None: there is none."""
    rows: list[DirRow]
    changes: int = 0
    """Which of this mount's changes it has seen."""
    read_at: float = 0.0
    places: dict[Ino, int] = {}
    """The last index of each inode, once it is of interest."""

    @property
    def end(self) -> int:
        return self.start + len(self.rows)

    def name_before(self, offset: int) -> bytes | None:
        """The name of the row before that offset."""
        return self.rows[offset - self.start - 1][0] if offset > self.start else self.after


class DirHandle:
    """One opendir(2)."""

    __slots__ = ("_asked", "_cred", "_ended", "_files", "_head", "_marks", "_meta", "_page", "_size", "attr", "ino")

    def __init__(
        self,
        meta: MetaClient,
        cred: Cred,
        ino: Ino,
        attr: Attr,
        special: Sequence[tuple[bytes, Ino, Attr]],
        files: OpenFileTable,
    ) -> None:
        self.ino = ino
        self.attr = attr
        self._meta = meta
        self._cred = cred
        self._files = files
        up = attr.parent if ino != ROOT_INO and attr.parent else ino
        self._head = [(b".", ino, attr), (b"..", up, attr), *special]
        self._rewind()

    def _rewind(self) -> None:
        """The rows that no database tells: the first page, which does not age."""
        rows: list[DirRow] = [(name, ino, attr, i) for i, (name, ino, attr) in enumerate(self._head, 1)]
        self._page = _Page(0, None, rows)
        self._ended = False
        self._size = PAGE
        self._asked = 0
        self._marks: list[tuple[int, bytes | None]] = [(len(rows), None)]
        """Offsets at which rows were asked for, and the names before them, for who comes back there."""

    async def rows(self, offset: int) -> list[DirRow]:
        """The rows from `offset` that are at hand, at least one unless the listing ends there."""
        page = self._page
        if offset < len(self._head):
            self._rewind()
        elif not page.start <= offset <= page.end:
            self._seek(offset)
        elif page.start and (offset < self._asked or self._is_stale(offset)):
            self._go_on(offset, page.name_before(offset))
            self._size = min(SMALL_PAGE, PAGE)
        while offset >= self._page.end:
            if self._ended:
                return []
            await self._next_page()
        return self._told(offset)

    def _told(self, offset: int) -> list[DirRow]:
        page = self._page
        if offset > self._marks[-1][0] and len(self._marks) < MARKS:
            self._marks.append((offset, page.name_before(offset)))
        self._asked = offset
        first = offset - page.start
        rows = page.rows[first : first + ROWS]
        if self._files.cache.seconds:
            newest = self._files.cache.newest
            rows = [(name, ino, None if attr is None else newest(ino, attr), after) for name, ino, attr, after in rows]
        if self._files.dirty:
            shown = self._files.shown
            rows = [(name, ino, None if attr is None else shown(ino, attr), after) for name, ino, attr, after in rows]
        return rows

    def _seek(self, offset: int) -> None:
        """Start again at the last mark before the offset, or go on if that is nearer."""
        mark = self._marks[bisect_right(self._marks, offset, key=_offset) - 1]
        if offset < self._page.start or mark[0] > self._page.end:
            self._go_on(*mark)

    def _go_on(self, offset: int, after: bytes | None) -> None:
        """The next page starts at that offset, after that name."""
        self._page = _Page(offset, after, [])
        self._ended = False

    def _is_stale(self, offset: int) -> bool:
        """Whether the rows from `offset` on may have changed, by this mount's own doing or by their age."""
        page = self._page
        if offset >= page.end:
            return False
        if time.monotonic() - page.read_at > MOMENT_S:
            return True
        changes = self._meta.usage.changes
        if changes.number == page.changes:
            return False
        changed = changes.since(page.changes)
        if changed is None:
            return True
        page.changes = changes.number
        if not page.places:
            page.places = {row[1]: index for index, row in enumerate(page.rows)}
        first, find = offset - page.start, page.places.get
        return any(find(ino, -1) >= first for ino in changed)

    async def _next_page(self) -> None:
        start, after = self._page.end, self._page.name_before(self._page.end)
        if start == len(self._head):
            after = None
        changes = self._meta.usage.changes
        seen, now = changes.number, time.monotonic()
        asked = self._files.ask() if self._files.cache.seconds else None
        entries = await self._meta.readdir(self._cred, self.ino, after, self._size)
        rows: list[DirRow] = [
            (entry.name, entry.dentry.ino, entry.attr, number) for number, entry in enumerate(entries, start + 1)
        ]
        if asked is not None:
            self._learn(rows, asked)
        elif self._files:
            self._notice(rows)
        if changes.number != seen:
            rows = _without(rows, changes.since(seen))
        self._page = _Page(start, after, rows, seen, now)
        self._ended = len(entries) < self._size
        self._size = min(2 * self._size, PAGE)

    def _learn(self, rows: list[DirRow], asked: Asked) -> None:
        for _, ino, attr, _ in rows:
            if attr is not None:
                self._files.learn(ino, attr, asked)

    def _notice(self, rows: list[DirRow]) -> None:
        find = self._files.get
        for _, ino, attr, _ in rows:
            file = find(ino)
            if file is not None and attr is not None:
                file.notice(attr)


def _offset(mark: tuple[int, bytes | None]) -> int:
    return mark[0]


def _without(rows: list[DirRow], changed: Sequence[Ino] | None) -> list[DirRow]:
    """The rows, the attributes of these inodes left out: they changed while they were read.  None: any may have."""
    inos = None if changed is None else set(changed)
    return [(name, ino, None if inos is None or ino in inos else attr, after) for name, ino, attr, after in rows]
