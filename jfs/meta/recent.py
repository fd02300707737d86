"""What this client knows from its own doings, where asking the database costs a round trip.

Attributes that an own change has just stored answer for as long as the kernel may keep attributes; the kernel forgets a
directory's on each change in it, and would ask for them again with each file that is made there.  And where names pointed:
a guess that lets one request fetch a name and its inode.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec

from jfs.meta.types import Attr, Ino

MOST_ATTRS: Final = 4096
MOST_NAMES: Final = 65536


class Recent:
    """Bounded; the oldest go first."""

    __slots__ = ("_attrs", "_keep_s", "_names", "_seen")

    def __init__(self, keep_s: float) -> None:
        """`keep_s`: for how long attributes may be out of date, 0 for not at all."""
        self._keep_s = keep_s
        self._attrs: OrderedDict[Ino, tuple[int, float, Attr | None]] = OrderedDict()
        self._names: OrderedDict[tuple[Ino, bytes], Ino] = OrderedDict()
        self._seen: OrderedDict[Ino, float] = OrderedDict()
        """When the database last said what an inode is like."""

    @staticmethod
    def now() -> float:
        """The time that `wrote` counts by."""
        return time.monotonic()

    def wrote(self, attrs: Mapping[Ino, Attr | None], version: int, began: float) -> None:
        """A transaction that began then has committed with these attributes; None: the inode is gone.

        Commits may be told in another order than they happened in: their versions give the right one.  What the database
        has said meanwhile may be newer than the commit: then nothing is kept.
        """
        if self._keep_s <= 0:
            return
        now = time.monotonic()
        kept, seen = self._attrs, self._seen
        for ino, attr in attrs.items():
            known = kept.get(ino)
            if seen.get(ino, 0.0) >= began:
                kept.pop(ino, None)
            elif known is None or known[0] < version:
                kept[ino] = (version, now, None if attr is None else msgspec.structs.replace(attr))
                kept.move_to_end(ino)
        while len(kept) > MOST_ATTRS:
            kept.popitem(last=False)

    def attr(self, ino: Ino) -> Attr | None:
        """A copy of what an own change made of them lately."""
        found = self._attrs.get(ino)
        if found is None:
            return None
        _, written, attr = found
        if time.monotonic() >= written + self._keep_s:
            del self._attrs[ino]
            return None
        return None if attr is None else msgspec.structs.replace(attr)

    def age_s(self, ino: Ino) -> float:
        """How old is what `attr` says now; 0 where it says nothing."""
        found = self._attrs.get(ino)
        if found is None:
            return 0.0
        age_s = time.monotonic() - found[1]
        return age_s if age_s < self._keep_s else 0.0

    def saw(self, ino: Ino) -> None:
        """The database has answered: that is newer."""
        if self._keep_s <= 0:
            return
        self._attrs.pop(ino, None)
        seen = self._seen
        seen.pop(ino, None)
        seen[ino] = time.monotonic()
        if len(seen) > MOST_ATTRS:
            seen.popitem(last=False)

    def named(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """The name points there."""
        names = self._names
        key = (parent, name)
        names.pop(key, None)
        names[key] = ino
        if len(names) > MOST_NAMES:
            names.popitem(last=False)

    def guess(self, parent: Ino, name: bytes) -> Ino | None:
        """Where the name pointed when it was last looked at."""
        return self._names.get((parent, name))
