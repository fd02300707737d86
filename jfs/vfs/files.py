"""The files that this mount has open: what is known of each, and what its unflushed writes change about it."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from jfs.meta.types import Attr, Ino
from jfs.vfs.open_cache import OpenCache
from jfs.vfs.writer import FileWriter, WriteContext

REMEMBERED: Final = 100_000
"""Files whose state at the last open is remembered, for the kernel's page cache."""


class Asked(NamedTuple):
    """A question to the metadata for attributes: the how manieth of this mount, and what it had changed by that time."""

    number: int
    changes: int
    """Of the file."""
    own_changes: int
    """Of any (`OpenCache.changes`)."""


class OpenFile:
    """One open inode, shared by its handles."""

    __slots__ = ("_answered", "attr", "changes", "ino", "length", "opens", "records", "trashed", "version", "writer")

    def __init__(self, ino: Ino, attr: Attr, asked: Asked, context: WriteContext) -> None:
        self.ino = ino
        self.attr = attr
        """As the metadata last said."""
        self._answered = asked.number
        """The youngest question that was answered."""
        self.length = attr.length
        """With the unflushed writes."""
        self.changes = 0
        """Counts this mount's own changes: attributes that were asked for before one of them are out of date."""
        self.opens = 1
        self.trashed = False
        """This mount has put it into the trash: by what was its name nobody comes to it, so who comes has it open."""
        self.records: dict[int, Any] = {}
        """What the reader knows of each chunk."""
        self.version = 0
        """Counts the times that some of `records` was dropped: what was read before may be out of date."""
        self.writer = FileWriter(self, context)

    def shown(self, attr: Attr) -> Attr:
        """Attributes as this mount's users must see them: unflushed writes count."""
        writer = self.writer
        if not writer.dirty:
            return attr
        return msgspec.structs.replace(
            attr,
            length=max(attr.length, self.length),
            mtime_ns=max(attr.mtime_ns, writer.mtime_ns),
            ctime_ns=max(attr.ctime_ns, writer.mtime_ns),
        )

    def refresh(self, attr: Attr, asked: Asked) -> bool:
        """Take in what the metadata said when it was `asked`; whether others have changed the file's bytes.

        What this mount has changed since knows better, and so does the answer to a younger question: answers may come in
        another order.
        """
        known = self.attr
        if asked.changes != self.changes or asked.number < self._answered:
            return False
        self._answered = asked.number
        self.attr = attr
        if known.mtime_ns == attr.mtime_ns and known.length == attr.length:
            return False
        self.forget_records()
        self.length = max(attr.length, self.writer.end)
        return True

    def notice(self, attr: Attr) -> None:
        """The kernel is about to be told these attributes: it must not keep old bytes under a new mtime."""
        known = self.attr
        if known.mtime_ns != attr.mtime_ns or known.length != attr.length:
            self.forget_records()

    def forget_records(self) -> None:
        """The chunks' records have changed, or may have."""
        self.records.clear()
        self.version += 1

    def committed(self, attr: Attr, index: int) -> None:
        """A record of this mount's is in chunk `index`."""
        self.records.pop(index, None)
        self.version += 1
        self.adopt(attr)

    def adopt(self, attr: Attr) -> None:
        """What this mount's own change has made of the attributes; a length that is not ours shows what others did."""
        self.attr = attr
        self.changes += 1
        self.length = max(attr.length, self.writer.end)

    def truncated(self, attr: Attr) -> None:
        """This mount has truncated the file; it has no unflushed writes now."""
        self.attr = attr
        self.changes += 1
        self.length = attr.length
        self.forget_records()

    def lost(self) -> None:
        """Unflushed data could not be stored: the file is as long as what is left of it."""
        self.length = max(self.attr.length, self.writer.end)


class OpenFileTable:
    """Open inodes by number."""

    def __init__(self, context: WriteContext, cache: OpenCache) -> None:
        self._context = context
        self.cache = cache
        self._files: dict[Ino, OpenFile] = {}
        self._questions = 0
        self._last_states: OrderedDict[Ino, tuple[int, int, int]] = OrderedDict()

    def get(self, ino: Ino) -> OpenFile | None:
        return self._files.get(ino)

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files.values())

    def __len__(self) -> int:
        return len(self._files)

    @property
    def dirty(self) -> bool:
        """Whether any has unflushed writes."""
        return bool(self._context.dirty)

    def is_trashed(self, ino: Ino) -> bool:
        """Whether it is open and this mount has put it into the trash."""
        file = self._files.get(ino)
        return file is not None and file.trashed

    def shown(self, ino: Ino, attr: Attr) -> Attr:
        """Attributes of an inode, open or not, as this mount's users must see them."""
        file = self._files.get(ino)
        return attr if file is None else file.shown(attr)

    def ask(self, ino: Ino | None = None) -> Asked:
        """Attributes are about to be asked for, of an inode that may be open; None: which one is not known yet."""
        self._questions += 1
        file = None if ino is None else self._files.get(ino)
        return Asked(self._questions, 0 if file is None else file.changes, self.cache.changes)

    def learn(self, ino: Ino, attr: Attr, asked: Asked) -> None:
        """With --open-cache: the answer to a question of which it was not known that it was about this inode."""
        cache = self.cache
        cache.saw(ino, attr, asked, keep=False)
        file = self._files.get(ino)
        if file is None:
            return
        if asked.own_changes == cache.changes:
            file.refresh(attr, asked._replace(changes=file.changes))
        file.notice(attr)

    def enter(self, ino: Ino, attr: Attr, asked: Asked) -> OpenFile:
        """One more handle on the inode."""
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = OpenFile(ino, attr, asked, self._context)
        else:
            file.opens += 1
        return file

    def leave(self, file: OpenFile) -> None:
        """One handle less."""
        file.opens -= 1
        if file.opens == 0 and self._files.get(file.ino) is file:
            del self._files[file.ino]

    def unchanged_since_last_open(self, ino: Ino, attr: Attr) -> bool:
        """Whether the kernel may keep the file's pages; remembers this open.

        The change time tells of writes by others who have set the modification time back.
        """
        states = self._last_states
        known = states.pop(ino, None)
        state = states[ino] = (attr.mtime_ns, attr.ctime_ns, attr.length)
        if len(states) > REMEMBERED:
            states.popitem(last=False)
        return known == state
