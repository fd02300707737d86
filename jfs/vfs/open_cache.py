"""`--open-cache`: for so long an open believes what an earlier one was told, and a reopened file knows its records.

Changes by other clients are seen that much later; this mount's own at once.  Attributes that were asked for before a change
of this mount's came through are not taken in.
"""

from collections import OrderedDict
from typing import Any, Final

import msgspec
import trio

from jfs.meta.types import Attr, Ino

FOREVER: Final = 1 << 62


class _Known:
    __slots__ = ("attr", "records", "until")

    def __init__(self, attr: Attr, until: float) -> None:
        self.attr = attr
        self.until = until
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

    def saw(self, ino: Ino, attr: Attr, asked_at: int) -> None:
        """The database answered, when `changes` was `asked_at` at the time of the question."""
        if self.seconds <= 0 or asked_at != self.changes:
            return
        before = self._known.pop(ino, None)
        known = self._known[ino] = _Known(msgspec.structs.replace(attr), trio.current_time() + self.seconds)
        if before is not None and before.attr == attr:
            known.records = before.records
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def forget(self, *inos: Ino) -> None:
        """This mount has changed them."""
        self.changes += 1
        for ino in inos:
            self._known.pop(ino, None)

    def keep_records(self, ino: Ino, records: dict[int, Any]) -> None:
        """The last handle was closed."""
        known = self._find(ino) if self._known else None
        if known is not None:
            known.records = records

    def records(self, ino: Ino) -> dict[int, Any]:
        """What was known of the chunks when the file was closed."""
        known = self._find(ino) if self._known else None
        return {} if known is None else dict(known.records)
