"""`--open-cache`: for so long an open believes what an earlier one was told, and a reopened file knows its records.

Changes by other clients are seen that much later; this mount's own at once.  But what a mount has told is true: whatever it
learns meanwhile of an inode (by a lookup, a listing) takes the place of what was believed, so that stat(2) never goes back,
and records that belong to other bytes are forgotten with it.  Attributes that were asked for before a change of this mount's
came through, or before others that have come by now, are not taken in.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from jfs.meta.types import Attr, Ino

if TYPE_CHECKING:
    from jfs.vfs.files import Asked

FOREVER: Final = 1 << 62


class _Known:
    __slots__ = ("attr", "number", "records", "until")

    def __init__(self, attr: Attr) -> None:
        self.attr = attr
        self.number = 0
        """Of the youngest question that was answered."""
        self.until = 0.0
        self.records: dict[int, Any] = {}
        """The reader's, of chunks."""


class OpenCache:
    """Bounded to `limit` files (0: no bound), the longest unused go first; 0 seconds: knows nothing."""

    def __init__(self, seconds: float, limit: int) -> None:
        self.seconds = seconds
        self._limit = limit or FOREVER
        self._known: OrderedDict[Ino, _Known] = OrderedDict()
        self.changes = 0
        """Counts this mount's changes."""

    def __len__(self) -> int:
        return len(self._known)

    def _find(self, ino: Ino) -> _Known | None:
        known = self._known.get(ino)
        if known is not None and trio.current_time() >= known.until:
            del self._known[ino]
            return None
        return known

    def attr(self, ino: Ino) -> Attr | None:
        """A copy of what is believed."""
        known = self._find(ino) if self._known else None
        if known is None:
            return None
        self._known.move_to_end(ino)
        return msgspec.structs.replace(known.attr)

    def newest(self, ino: Ino, attr: Attr) -> Attr:
        """Of what a listing said a moment ago, and what is believed: not to be changed."""
        known = self._find(ino)
        return attr if known is None else known.attr

    def saw(self, ino: Ino, attr: Attr, asked: "Asked", *, keep: bool) -> None:
        """The database answered.  Without `keep` only where something is believed already.

        What may be older than one of this mount's changes is not believed, but neither is what it contradicts.
        """
        if self.seconds <= 0:
            return
        known = self._known.get(ino)
        if asked.own_changes != self.changes:
            if known is not None and known.attr != attr:
                del self._known[ino]
            return
        if known is None:
            if keep:
                self._add(ino, attr, asked.number)
        elif asked.number >= known.number:
            if not _same_bytes(known.attr, attr):
                known.records = {}
            self._renew(known, attr, asked.number)
            if keep:
                self._known.move_to_end(ino)

    def _add(self, ino: Ino, attr: Attr, number: int) -> None:
        known = self._known[ino] = _Known(attr)
        self._renew(known, attr, number)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def _renew(self, known: _Known, attr: Attr, number: int) -> None:
        known.attr = msgspec.structs.replace(attr)
        known.number = number
        known.until = trio.current_time() + self.seconds

    def forget(self, *inos: Ino) -> None:
        """This mount has changed them."""
        self.changes += 1
        for ino in inos:
            self._known.pop(ino, None)

    def keep_records(self, ino: Ino, attr: Attr, records: dict[int, Any]) -> None:
        """The last handle was closed; the records belong to these attributes."""
        known = self._find(ino) if self._known else None
        if known is not None and _same_bytes(known.attr, attr):
            known.records = records

    def records(self, ino: Ino) -> dict[int, Any]:
        """What was known of the chunks when the file was closed."""
        known = self._find(ino) if self._known else None
        return {} if known is None else dict(known.records)


def _same_bytes(before: Attr, after: Attr) -> bool:
    return before.mtime_ns == after.mtime_ns and before.length == after.length
