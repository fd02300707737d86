"""An open directory: its rows in pages, by offset.

A row's offset is its index in the listing.  Only one page is kept, so a directory of any size lists in flat memory; a page
goes on strictly after the last name of the one before it, so names made or removed meanwhile neither hide nor repeat others.
"""

from collections.abc import Sequence
from typing import Final

from jfs.meta.client import MetaClient
from jfs.meta.types import ROOT_INO, Attr, Cred, Ino
from jfs.vfs.files import OpenFileTable

PAGE: Final = 4096

DirRow = tuple[bytes, Ino, Attr | None, int]
"""Name, inode, attributes (None where the inode is missing), offset of the next row."""


class DirHandle:
    """One opendir(2)."""

    __slots__ = ("_cred", "_ended", "_files", "_head", "_last_name", "_meta", "_rows", "_start", "attr", "ino")

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
        self._start = 0
        self._rows: list[DirRow] = [(name, ino, attr, i) for i, (name, ino, attr) in enumerate(self._head, 1)]
        self._last_name: bytes | None = None
        self._ended = False

    async def rows(self, offset: int) -> list[DirRow]:
        """The rows from `offset` that are at hand, at least one unless the listing ends there."""
        if offset == 0 or offset < self._start:
            self._rewind()
        while offset >= self._start + len(self._rows):
            if self._ended:
                return []
            await self._next_page()
        return self._rows[offset - self._start :] if offset > self._start else self._rows

    async def _next_page(self) -> None:
        page = await self._meta.readdir(self._cred, self.ino, self._last_name, PAGE)
        self._ended = len(page) < PAGE
        start = self._start + len(self._rows)
        files = self._files
        rows: list[DirRow] = []
        for number, entry in enumerate(page, start + 1):
            ino = entry.dentry.ino
            attr = entry.attr
            file = files.get(ino)
            if file is not None and attr is not None:
                attr = file.shown(attr)
            rows.append((entry.name, ino, attr, number))
        self._start = start
        self._rows = rows
        if page:
            self._last_name = page[-1].name
