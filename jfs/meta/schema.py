"""The key-value format: every key and every value, in both directions.  Pure, and the format's only home.

Inode numbers are little-endian in keys and big-endian in values; all else is big-endian but counters, hard-link counts and
slice references.  A decoder gets the key (or another name of the record) too, for what it says in `CorruptRecord`.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.types import (
    AclRule,
    Attr,
    DelayedSlices,
    DeletedFile,
    Dentry,
    DirStat,
    Flock,
    Ino,
    Plock,
    Quota,
    Slice,
    SliceRef,
)

NS: Final = 1_000_000_000
SETTING: Final = b"setting"
FINGERPRINTING: Final = b"B"
"""The kind of fingerprints that new slices get; the peer has no key that starts with this letter."""
SUSTAINED: Final = b"\x01"
NAME_GUARDS: Final = 16
"""How many valueless keys a directory has to guard its names by."""

BIG_ENDIAN_COUNTERS: Final = frozenset(
    ("lastCleanupSessions", "lastCleanupFiles", "lastCleanupTrash", "nextCleanupSlices", "lastCleanupChangelog")
)

_INODE: Final = struct.Struct("<cQc")
_INODE_INDEX: Final = struct.Struct(">I")
_ONE_INODE: Final = struct.Struct("<cQ")
_LE64: Final = struct.Struct("<q")
_BE64: Final = struct.Struct(">q")
_INO_LE: Final = struct.Struct("<Q")
_U64: Final = struct.Struct(">Q")
_U32: Final = struct.Struct(">I")
_SLICE_KEY: Final = struct.Struct(">cQI")
_DELAYED_KEY: Final = struct.Struct(">cQQ")
_DENTRY: Final = struct.Struct(">BQ")
_ATTR: Final = struct.Struct(">BHIIqIqIqIIQIQ")
_ATTR_SHORT: Final = struct.Struct(">BHIIqIqIqIIQI")
_ATTR_PLAIN: Final = struct.Struct(">BHIIqIqIqIIQIQx")
_ACLS: Final = struct.Struct(">II")
_SLICE: Final = struct.Struct(">IQIII")
SLICE_BYTES: Final = _SLICE.size
_SLICE_REF: Final = struct.Struct(">QI")
_FLOCK: Final = struct.Struct(">QQc")
_PLOCK: Final = struct.Struct(">QQI")
_QUOTA: Final = struct.Struct(">qqqq")
_DIR_STAT: Final = struct.Struct(">qqq")
_ACL_RULE: Final = struct.Struct(">HHHHI")
_ACL_NAMED: Final = struct.Struct(">IH")

PLOCK_RECORD: Final = struct.Struct(">IIQQ")
"""One POSIX lock: type, pid, start, end (inclusive)."""

Where = bytes | str
"""The record that is being decoded, for the error: its key, or words."""


def end_of(prefix: bytes) -> bytes:
    """The first key after all those that start with `prefix`, which is not 0xFF alone."""
    prefix = prefix.rstrip(b"\xff")
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def corrupt(where: Where, why: str) -> CorruptRecord:
    """The error for a record whose bytes break the format."""
    return CorruptRecord(where if isinstance(where, str) else describe_key(where), why)


# -- keys of an inode: A ino kind ..


def attr_key(ino: Ino) -> bytes:
    return _INODE.pack(b"A", ino, b"I")


def dentry_prefix(parent: Ino) -> bytes:
    return _INODE.pack(b"A", parent, b"D")


def dentry_key(parent: Ino, name: bytes) -> bytes:
    return _INODE.pack(b"A", parent, b"D") + name


def parent_prefix(ino: Ino) -> bytes:
    return _INODE.pack(b"A", ino, b"P")


def parent_key(ino: Ino, parent: Ino) -> bytes:
    return _INODE.pack(b"A", ino, b"P") + _INO_LE.pack(parent)


def chunk_prefix(ino: Ino) -> bytes:
    return _INODE.pack(b"A", ino, b"C")


def chunk_key(ino: Ino, index: int) -> bytes:
    return _INODE.pack(b"A", ino, b"C") + _INODE_INDEX.pack(index)


def symlink_key(ino: Ino) -> bytes:
    return _INODE.pack(b"A", ino, b"S")


def xattr_prefix(ino: Ino) -> bytes:
    return _INODE.pack(b"A", ino, b"X")


def xattr_key(ino: Ino, name: bytes) -> bytes:
    return _INODE.pack(b"A", ino, b"X") + name


def name_guard_keys(parent: Ino) -> list[bytes]:
    """The keys that stand for the absence of names in a directory; they never have a value."""
    head = _INODE.pack(b"A", parent, b"G")
    return [head + bytes((slot,)) for slot in range(NAME_GUARDS)]


def name_guard_key(parent: Ino, name: bytes) -> bytes:
    """The one of them that this name falls on, the same for every client."""
    return _INODE.pack(b"A", parent, b"G") + bytes((zlib.crc32(name) % NAME_GUARDS,))


# -- other keys


def deleted_file_key(ino: Ino, length: int) -> bytes:
    return _ONE_INODE.pack(b"D", ino) + _U64.pack(length)


def flock_key(ino: Ino) -> bytes:
    return _ONE_INODE.pack(b"F", ino)


def plock_key(ino: Ino) -> bytes:
    return _ONE_INODE.pack(b"P", ino)


def slice_key(ref: SliceRef) -> bytes:
    return _SLICE_KEY.pack(b"K", ref.id, ref.size)


def fingerprint_key(ref: SliceRef) -> bytes:
    return _SLICE_KEY.pack(b"B", ref.id, ref.size)


def delayed_key(when: int, slice_id: int) -> bytes:
    return _DELAYED_KEY.pack(b"L", when, slice_id)


def counter_key(name: str) -> bytes:
    return b"C" + name.encode()


def session_expiry_key(sid: int) -> bytes:
    return b"SE" + _U64.pack(sid)


def session_info_key(sid: int) -> bytes:
    return b"SI" + _U64.pack(sid)


def session_heartbeat_key(sid: int) -> bytes:
    return b"SH" + _U64.pack(sid)


def sustained_prefix(sid: int) -> bytes:
    return b"SS" + _U64.pack(sid)


def sustained_key(sid: int, ino: Ino) -> bytes:
    return b"SS" + _U64.pack(sid) + _INO_LE.pack(ino)


def dir_stat_key(ino: Ino) -> bytes:
    return _ONE_INODE.pack(b"U", ino)


def detached_key(ino: Ino) -> bytes:
    return _ONE_INODE.pack(b"N", ino)


def dir_quota_key(ino: Ino) -> bytes:
    return b"QD" + _INO_LE.pack(ino)


def user_quota_key(uid: int) -> bytes:
    return b"QU" + _U64.pack(uid)


def group_quota_key(gid: int) -> bytes:
    return b"QG" + _U64.pack(gid)


def acl_key(acl_id: int) -> bytes:
    return b"R" + _U32.pack(acl_id)


def token_key(token_id: int) -> bytes:
    return b"XKD" + _U32.pack(token_id)


def change_log_key(shard: int | None, log_id: int) -> bytes:
    """TiKV spreads the log over shards, the other engines do not (None)."""
    return b"XLOG" + (b"" if shard is None else bytes((shard,))) + _U64.pack(log_id)


# -- which record is this?

_KINDS: Final = {b"I": "attr", b"D": "dentry", b"P": "parent", b"C": "chunk", b"S": "symlink", b"X": "xattr"}
_PREFIXES: Final[Sequence[tuple[bytes, str, str]]] = (
    (b"D", "deleted file", "<Q>Q"),
    (b"F", "flock", "<Q"),
    (b"P", "plock", "<Q"),
    (b"K", "slice", ">QI"),
    (b"B", "fingerprint", ">QI"),
    (b"L", "delayed", ">QQ"),
    (b"SE", "session expiry", ">Q"),
    (b"SI", "session info", ">Q"),
    (b"SH", "session heartbeat", ">Q"),
    (b"SS", "sustained", ">Q<Q"),
    (b"U", "dir stat", "<Q"),
    (b"N", "detached", "<Q"),
    (b"QD", "dir quota", "<Q"),
    (b"QU", "user quota", ">Q"),
    (b"QG", "group quota", ">Q"),
    (b"R", "acl", ">I"),
    (b"XKD", "token", ">I"),
    (b"XLOG", "change log", ">Q"),
    (b"XLOG", "sharded change log", ">BQ"),
)


def _structs(layout: str) -> list[struct.Struct]:
    """The parts of a layout, each with its own byte order."""
    return [struct.Struct(order + fields) for order, fields in _split(layout)]


def _split(layout: str) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    for char in layout:
        if char in "<>":
            parts.append((char, ""))
        else:
            order, fields = parts[-1]
            parts[-1] = (order, fields + char)
    return parts


_LAYOUTS: Final = [(prefix, kind, _structs(layout)) for prefix, kind, layout in _PREFIXES]


def parse_key(key: bytes) -> tuple[str, tuple[Any, ...]]:
    """A key's kind, and the arguments that make it; ValueError for a key that the format does not have."""
    if key == SETTING:
        return "setting", ()
    if key == FINGERPRINTING:
        return "fingerprinting", ()
    if key[:1] == b"C":
        return "counter", (key[1:].decode(),)
    if key[:1] == b"A" and len(key) >= 10:
        return _parse_inode_key(key)
    for prefix, kind, parts in _LAYOUTS:
        if key.startswith(prefix) and len(key) == len(prefix) + sum(part.size for part in parts):
            return kind, _unpack(parts, key, len(prefix))
    raise ValueError(f"unknown key {key!r}")


def _parse_inode_key(key: bytes) -> tuple[str, tuple[Any, ...]]:
    ino = inode_of(key)
    kind = _KINDS.get(key[9:10])
    rest = key[10:]
    if kind in ("dentry", "xattr"):
        return kind, (ino, rest)
    if kind in ("attr", "symlink") and not rest:
        return kind, (ino,)
    if kind == "parent" and len(rest) == 8:
        return kind, (ino, _INO_LE.unpack(rest)[0])
    if kind == "chunk" and len(rest) == 4:
        return kind, (ino, _INODE_INDEX.unpack(rest)[0])
    raise ValueError(f"unknown key {key!r}")


def _unpack(parts: Sequence[struct.Struct], data: bytes, offset: int) -> tuple[Any, ...]:
    fields: tuple[Any, ...] = ()
    for part in parts:
        fields += part.unpack_from(data, offset)
        offset += part.size
    return fields


def describe_key(key: bytes) -> str:
    """A key in words, for messages: `chunk 5 0`."""
    try:
        kind, fields = parse_key(key)
    except ValueError:
        return key.hex()
    return " ".join((kind, *(str(field) for field in fields)))


def inode_of(key: bytes) -> Ino:
    """The inode of a key that starts with one letter and an inode."""
    ino: int = _INO_LE.unpack_from(key, 1)[0]
    return ino


def last_inode_of(key: bytes) -> Ino:
    """The inode that a key ends in."""
    ino: int = _INO_LE.unpack_from(key, len(key) - 8)[0]
    return ino


def index_of(key: bytes) -> int:
    """The chunk index that a chunk's key ends in."""
    index: int = _INODE_INDEX.unpack_from(key, len(key) - 4)[0]
    return index


def sid_of(key: bytes) -> int:
    """The session of a key that starts with two letters and a session."""
    sid: int = _U64.unpack_from(key, 2)[0]
    return sid


def slice_ref_of(key: bytes) -> SliceRef:
    return SliceRef(*_SLICE_REF.unpack_from(key, 1))


# -- values: whole numbers


def encode_le64(value: int) -> bytes:
    return _LE64.pack(value)


def decode_le64(value: bytes, where: Where) -> int:
    if len(value) != 8:
        raise corrupt(where, f"{len(value)} bytes, not 8")
    number: int = _LE64.unpack(value)[0]
    return number


def encode_be64(value: int) -> bytes:
    return _BE64.pack(value)


def decode_be64(value: bytes, where: Where) -> int:
    if len(value) != 8:
        raise corrupt(where, f"{len(value)} bytes, not 8")
    number: int = _BE64.unpack(value)[0]
    return number


def encode_counter(name: str, value: int) -> bytes:
    return (_BE64 if name in BIG_ENDIAN_COUNTERS else _LE64).pack(value)


def decode_counter(name: str, value: bytes) -> int:
    decode = decode_be64 if name in BIG_ENDIAN_COUNTERS else decode_le64
    return decode(value, counter_key(name))


# -- values: inodes and names


def encode_attr(attr: Attr) -> bytes:
    atime, atime_ns = divmod(attr.atime_ns, NS)
    mtime, mtime_ns = divmod(attr.mtime_ns, NS)
    ctime, ctime_ns = divmod(attr.ctime_ns, NS)
    plain = _ATTR_PLAIN.pack(
        attr.flags,
        attr.type << 12 | attr.mode & 0xFFF,
        attr.uid,
        attr.gid,
        atime,
        atime_ns,
        mtime,
        mtime_ns,
        ctime,
        ctime_ns,
        attr.nlink,
        attr.length,
        attr.rdev,
        attr.parent,
    )
    if not (attr.access_acl or attr.default_acl or attr.tier):
        return plain
    acls = _ACLS.pack(attr.access_acl, attr.default_acl) if attr.access_acl or attr.default_acl else b""
    tier = bytes((attr.tier,)) if attr.tier else b""
    return plain[:-1] + acls + tier + b"\0"


def decode_attr(value: bytes, where: Where) -> Attr:
    """Of any client: the oldest wrote neither a pad nor ACL ids (71 bytes), or no parent either (63)."""
    size = len(value)
    if size >= _ATTR.size:
        fields = _ATTR.unpack_from(value)
    elif size == _ATTR_SHORT.size:
        fields = (*_ATTR_SHORT.unpack(value), 0)
    else:
        raise corrupt(where, f"{size} bytes are no attr")
    flags, kind, uid, gid, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, nlink, length, rdev, parent = fields
    attr = Attr(
        kind >> 12,
        kind & 0xFFF,
        uid,
        gid,
        atime * NS + atime_ns,
        mtime * NS + mtime_ns,
        ctime * NS + ctime_ns,
        nlink,
        length,
        rdev,
        parent,
        flags,
    )
    if size > _ATTR_PLAIN.size:
        rest = _ATTR.size
        if size - rest >= _ACLS.size:
            attr.access_acl, attr.default_acl = _ACLS.unpack_from(value, rest)
            rest += _ACLS.size
        if size > rest:
            attr.tier = value[rest]
    return attr


def encode_dentry(dentry: Dentry) -> bytes:
    return _DENTRY.pack(dentry.type, dentry.ino)


def decode_dentry(value: bytes, where: Where) -> Dentry:
    if len(value) != 9:
        raise corrupt(where, f"{len(value)} bytes, not 9")
    return Dentry(*_DENTRY.unpack(value))


# -- values: slices


def encode_slices(slices: Sequence[Slice]) -> bytes:
    pack = _SLICE.pack
    return b"".join([pack(piece.pos, piece.id, piece.size, piece.offset, piece.length) for piece in slices])


def decode_slices(value: bytes, where: Where) -> list[Slice]:
    if len(value) % SLICE_BYTES:
        raise corrupt(where, f"{len(value)} bytes are no whole number of slice records")
    return [Slice(*fields) for fields in _SLICE.iter_unpack(value)]


def encode_slice_refs(refs: Sequence[SliceRef]) -> bytes:
    return b"".join([_SLICE_REF.pack(ref.id, ref.size) for ref in refs])


def decode_slice_refs(value: bytes, where: Where) -> list[SliceRef]:
    if len(value) % _SLICE_REF.size:
        raise corrupt(where, f"{len(value)} bytes are no whole number of slices")
    return [SliceRef(*fields) for fields in _SLICE_REF.iter_unpack(value)]


def decode_delayed(key: bytes, value: bytes) -> DelayedSlices:
    _, when, slice_id = _DELAYED_KEY.unpack(key)
    return DelayedSlices(slice_id, when, decode_slice_refs(value, key))


def decode_deleted_file(key: bytes, value: bytes) -> DeletedFile:
    length: int = _U64.unpack_from(key, 9)[0]
    return DeletedFile(inode_of(key), length, decode_be64(value, key))


# -- values: locks


def encode_flocks(flocks: Sequence[Flock]) -> bytes:
    return b"".join([_FLOCK.pack(flock.sid, flock.owner, flock.kind) for flock in flocks])


def decode_flocks(key: bytes, value: bytes) -> list[Flock]:
    if len(value) % _FLOCK.size:
        raise corrupt(key, f"{len(value)} bytes are no whole number of locks")
    ino = inode_of(key)
    return [Flock(ino, *fields) for fields in _FLOCK.iter_unpack(value)]


def encode_plocks(plocks: Sequence[Plock]) -> bytes:
    return b"".join([_PLOCK.pack(plock.sid, plock.owner, len(plock.records)) + plock.records for plock in plocks])


def decode_plocks(key: bytes, value: bytes) -> list[Plock]:
    ino = inode_of(key)
    plocks: list[Plock] = []
    start = 0
    while start < len(value):
        records = start + _PLOCK.size
        if records > len(value):
            raise corrupt(key, "cut off in an owner")
        sid, owner, size = _PLOCK.unpack_from(value, start)
        start = records + size
        if start > len(value) or size % PLOCK_RECORD.size:
            raise corrupt(key, f"{size} bytes are no locks")
        plocks.append(Plock(ino, sid, owner, value[records:start]))
    return plocks


# -- values: usage


def encode_dir_stat(dir_stat: DirStat) -> bytes:
    return _DIR_STAT.pack(dir_stat.length, dir_stat.space, dir_stat.inodes)


def decode_dir_stat(value: bytes, where: Where) -> DirStat:
    if len(value) != _DIR_STAT.size:
        raise corrupt(where, f"{len(value)} bytes, not {_DIR_STAT.size}")
    return DirStat(*_DIR_STAT.unpack(value))


def encode_quota(quota: Quota) -> bytes:
    return _QUOTA.pack(quota.max_space, quota.max_inodes, quota.used_space, quota.used_inodes)


def decode_quota(value: bytes, where: Where) -> Quota:
    if len(value) != _QUOTA.size:
        raise corrupt(where, f"{len(value)} bytes, not {_QUOTA.size}")
    return Quota(*_QUOTA.unpack(value))


# -- values: ACL rules


def encode_acl(rule: AclRule) -> bytes:
    named = [
        _U32.pack(len(entries)) + b"".join([_ACL_NAMED.pack(*entry) for entry in entries])
        for entries in (rule.users, rule.groups)
    ]
    return struct.pack(">HHHH", rule.owner, rule.group, rule.mask, rule.other) + b"".join(named)


def decode_acl(value: bytes, where: Where) -> AclRule:
    try:
        owner, group, mask, other, users = _ACL_RULE.unpack_from(value)
        middle = _ACL_RULE.size + users * _ACL_NAMED.size
        (groups,) = _U32.unpack_from(value, middle)
    except struct.error as error:
        raise corrupt(where, f"{len(value)} bytes are no ACL rule") from error
    end = middle + 4 + groups * _ACL_NAMED.size
    if len(value) != end:
        raise corrupt(where, f"{len(value)} bytes, not {end}")
    return AclRule(
        owner,
        group,
        mask,
        other,
        tuple(_ACL_NAMED.iter_unpack(value[_ACL_RULE.size : middle])),
        tuple(_ACL_NAMED.iter_unpack(value[middle + 4 :])),
    )
