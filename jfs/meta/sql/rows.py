"""Rows of the relational schema as records, both directions.

The checks that a row is what the schema says are here: SQLite lets any value into any column, and a damaged one must be
named, not guessed at.  Whatever SQL text a column holds arrives as bytes (see `sqlite3.py`).
"""

import math
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.schema import decode_slice_refs, decode_slices
from jfs.meta.types import Attr, DelayedSlices, Dentry, Ino, Slice, int64

Row = tuple[Any, ...]

_U64: Final = (1 << 64) - 1

NODE_COLUMNS: Final = (
    "type",
    "mode",
    "uid",
    "gid",
    "atime",
    "atimensec",
    "mtime",
    "mtimensec",
    "ctime",
    "ctimensec",
    "nlink",
    "length",
    "flags",
    "rdev",
    "parent",
    "access_acl_id",
    "default_acl_id",
    "tier_id",
)
# The last five may be NULL, which means 0.
NODE_SELECT: Final = (*NODE_COLUMNS[:13], *(f"ifnull({name},0)" for name in NODE_COLUMNS[13:]))


def attr_of(ino: Ino, row: Row) -> Attr:
    """The attributes in a row of NODE_SELECT."""
    try:
        # The sum is an int only if every column is: text, blobs and NULL cannot be added, a float would make it one.
        valid = type(sum(row)) is int and 1 <= row[0] <= 7
    except TypeError:
        valid = False
    if not valid:
        raise CorruptRecord(f"node {ino}", f"columns that are no attributes: {row!r:.200}")
    (
        kind,
        mode,
        uid,
        gid,
        a_us,
        a_ns,
        m_us,
        m_ns,
        c_us,
        c_ns,
        nlink,
        length,
        flags,
        rdev,
        parent,
        acl,
        default,
        tier,
    ) = row
    return Attr(
        kind,
        mode,
        uid,
        gid,
        a_us * 1000 + a_ns,
        m_us * 1000 + m_ns,
        c_us * 1000 + c_ns,
        nlink,
        length,
        rdev,
        parent,
        flags,
        acl,
        default,
        tier,
    )


def node_row(attr: Attr) -> Row:
    """The values of NODE_COLUMNS for these attributes."""
    return (
        attr.type,
        attr.mode,
        attr.uid,
        attr.gid,
        *microseconds(attr.atime_ns),
        *microseconds(attr.mtime_ns),
        *microseconds(attr.ctime_ns),
        attr.nlink,
        attr.length,
        attr.flags,
        attr.rdev,
        attr.parent,
        attr.access_acl,
        attr.default_acl,
        attr.tier,
    )


def microseconds(time_ns: int) -> tuple[int, int]:
    """Whole microseconds and the nanoseconds left over, both toward zero as the peer does it."""
    if time_ns >= 0:
        return divmod(time_ns, 1000)
    us, ns = divmod(-time_ns, 1000)
    return -us, -ns


def dentry_of(parent: Ino, name: bytes, kind: Any, ino: Any) -> Dentry:
    """What an edge points at."""
    if type(kind) is not int or type(ino) is not int or not 1 <= kind <= 7 or ino <= 0:
        raise CorruptRecord(f"edge {parent}/{name!r}", f"type {kind!r}, inode {ino!r}")
    return Dentry(kind, ino)


def slices_of(ino: Ino, index: int, value: Any) -> list[Slice]:
    """The records of a chunk."""
    key = f"chunk {ino}/{index}"
    return decode_slices(blob(key, value), key)


def delayed_of(row: Row) -> DelayedSlices:
    """A row (chunkid, deleted, slices) of the delayed slices."""
    new_id, when, value = row
    key = f"delslices {new_id}"
    integers(key, (when,))
    return DelayedSlices(new_id, when, decode_slice_refs(blob(key, value), key))


def integers(key: str, row: Row) -> Row:
    """The row itself, if it holds nothing but integers."""
    for value in row:
        if type(value) is not int:
            raise CorruptRecord(key, f"{value!r:.100} where an integer should be")
    return row


def sums(key: str, row: Row) -> Row:
    """The row, if it holds nothing but integers and what SQLite makes of sums beyond 64 bits, as the peer adds: REALs.

    Those come back near to where the sum has gone round to; fsck tells how far off.
    """
    return integers(key, tuple(int64(int(value)) if _is_overflown(value) else value for value in row))


def _is_overflown(value: Any) -> bool:
    return type(value) is float and 2.0**63 <= abs(value) < math.inf


def blob(key: str, value: Any) -> bytes:
    """The value itself, if it is bytes (SQL text arrives as bytes too)."""
    if type(value) is not bytes:
        raise CorruptRecord(key, f"{value!r:.100} where bytes should be")
    return value


def unsigned(owner: int) -> int:
    """A lock owner: the column holds the two's complement of the 64 bits."""
    return owner & _U64
