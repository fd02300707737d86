"""The key-value format against golden vectors: what the peer wrote decodes, and encodes to the same bytes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.errors import CorruptRecord
from jfs.meta import schema
from jfs.meta.settings import Settings
from jfs.meta.types import (
    TRASH_INO,
    TYPE_DIR,
    TYPE_FILE,
    AclRule,
    Attr,
    Dentry,
    DirStat,
    Flock,
    Plock,
    Quota,
    Slice,
    SliceRef,
)

GOLDEN = Path(__file__).parent.parent / "golden"

KEYS: dict[str, Callable[..., bytes]] = {
    "setting": lambda: schema.SETTING,
    "counter": schema.counter_key,
    "attr": schema.attr_key,
    "dentry": schema.dentry_key,
    "parent": schema.parent_key,
    "chunk": schema.chunk_key,
    "symlink": schema.symlink_key,
    "xattr": schema.xattr_key,
    "deleted file": schema.deleted_file_key,
    "flock": schema.flock_key,
    "plock": schema.plock_key,
    "slice": lambda slice_id, size: schema.slice_key(SliceRef(slice_id, size)),
    "fingerprint": lambda slice_id, size: schema.fingerprint_key(SliceRef(slice_id, size)),
    "delayed": schema.delayed_key,
    "session expiry": schema.session_expiry_key,
    "session info": schema.session_info_key,
    "session heartbeat": schema.session_heartbeat_key,
    "sustained": schema.sustained_key,
    "dir stat": schema.dir_stat_key,
    "detached": schema.detached_key,
    "dir quota": schema.dir_quota_key,
    "user quota": schema.user_quota_key,
    "group quota": schema.group_quota_key,
    "acl": schema.acl_key,
    "token": schema.token_key,
    "change log": lambda log_id: schema.change_log_key(None, log_id),
    "sharded change log": schema.change_log_key,
}
"""From a parsed key back to its bytes."""


VALUES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "setting": lambda key, value: Settings.parse(value).text(),
    "counter": lambda key, value: schema.encode_counter(
        key[1:].decode(), schema.decode_counter(key[1:].decode(), value)
    ),
    "attr": lambda key, value: schema.encode_attr(schema.decode_attr(value, key)),
    "dentry": lambda key, value: schema.encode_dentry(schema.decode_dentry(value, key)),
    "parent": lambda key, value: schema.encode_le64(schema.decode_le64(value, key)),
    "chunk": lambda key, value: schema.encode_slices(schema.decode_slices(value, key)),
    "symlink": lambda key, value: value,
    "xattr": lambda key, value: value,
    "deleted file": lambda key, value: schema.encode_be64(schema.decode_deleted_file(key, value).when),
    "flock": lambda key, value: schema.encode_flocks(schema.decode_flocks(key, value)),
    "plock": lambda key, value: schema.encode_plocks(schema.decode_plocks(key, value)),
    "slice": lambda key, value: schema.encode_le64(schema.decode_le64(value, key)),
    "delayed": lambda key, value: schema.encode_slice_refs(schema.decode_delayed(key, value).slices),
    "session expiry": lambda key, value: schema.encode_be64(schema.decode_be64(value, key)),
    "session info": lambda key, value: value,
    "sustained": lambda key, value: schema.SUSTAINED,
    "dir stat": lambda key, value: schema.encode_dir_stat(schema.decode_dir_stat(value, key)),
    "dir quota": lambda key, value: schema.encode_quota(schema.decode_quota(value, key)),
    "user quota": lambda key, value: schema.encode_quota(schema.decode_quota(value, key)),
    "group quota": lambda key, value: schema.encode_quota(schema.decode_quota(value, key)),
    "detached": lambda key, value: schema.encode_be64(schema.decode_be64(value, key)),
    "acl": lambda key, value: schema.encode_acl(schema.decode_acl(value, key)),
    "sharded change log": lambda key, value: value,
}
"""Decoded and encoded again."""

KIND_OF_GOLDEN = {
    "sliceref": "slice",
    "quotaD": "dir quota",
    "quotaU": "user quota",
    "quotaG": "group quota",
    "sessionE": "session expiry",
    "sessionI": "session info",
    "dirstat": "dir stat",
    "changelog": "sharded change log",
}


def load(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def records(name: str) -> Iterator[tuple[bytes, bytes, str | None]]:
    """Every record of a golden file without the engine's prefix, and its kind where the file says it."""
    golden = load(name)
    for volume in golden.get("volumes", ()):
        for key, value in volume["keys"]:
            yield bytes.fromhex(key).partition(b"\xfd")[2], bytes.fromhex(value), None
    for record in golden.get("keys", ()):
        key = bytes.fromhex(record["key"])
        if name.startswith("tikv"):
            key = key.partition(b"\xfd")[2]
        kind = record["kind"]
        yield key, bytes.fromhex(record["value"]), KIND_OF_GOLDEN.get(kind, kind)


@pytest.mark.parametrize("name", ["ops-snapshot.json", "notrash-snapshot.json", "tikv-snapshot.json", "objects.json"])
def test_every_golden_record_survives_decoding_and_encoding(name: str) -> None:
    seen = 0
    for key, value, expected in records(name):
        kind, fields = schema.parse_key(key)
        assert expected in (None, kind)
        assert KEYS[kind](*fields) == key
        assert VALUES[kind](key, value) == value, schema.describe_key(key)
        seen += 1
    assert seen >= 16


def step_records(name: str) -> Iterator[tuple[bytes, bytes]]:
    """Every put of every committed transaction, those that a later step undid among them."""
    for step in load(name)["steps"]:
        for transaction in step["transactions"]:
            for change in transaction["changes"]:
                if change[0] == "PUT":
                    yield bytes.fromhex(change[1]), bytes.fromhex(change[2])


@pytest.mark.parametrize("name", ["ops-steps.json", "notrash-steps.json"])
def test_every_golden_write_survives_decoding_and_encoding(name: str) -> None:
    kinds = set()
    for key, value in step_records(name):
        kind, fields = schema.parse_key(key)
        assert KEYS[kind](*fields) == key
        assert VALUES[kind](key, value) == value, schema.describe_key(key)
        kinds.add(kind)
    assert {"attr", "dentry", "chunk", "counter", "deleted file", "slice", "sustained"} <= kinds


def nanoseconds(text: str) -> int:
    seconds, _, rest = text.partition(".")
    return int(seconds) * schema.NS + int(rest)


def check_attr(attr: Attr, decoded: dict[str, Any]) -> None:
    names = dict(zip(("file", "dir", "symlink", "fifo", "blk", "chr", "sock"), range(1, 8), strict=True))
    assert attr == Attr(
        type=names[decoded["type"]],
        mode=int(decoded["mode"], 8),
        uid=decoded["uid"],
        gid=decoded["gid"],
        atime_ns=nanoseconds(decoded["atime"]),
        mtime_ns=nanoseconds(decoded["mtime"]),
        ctime_ns=nanoseconds(decoded["ctime"]),
        nlink=decoded["nlink"],
        length=decoded["length"],
        rdev=decoded["rdev"],
        parent=decoded["parent"],
        flags=decoded["flags"],
        access_acl=decoded.get("aacl", 0),
        default_acl=decoded.get("dacl", 0),
        tier=decoded.get("tier", 0),
    )


def test_attrs_of_all_types_and_lengths_mean_what_the_vectors_say() -> None:
    sizes = set()
    for golden in load("misc.json")["attrs"]:
        value = bytes.fromhex(golden["hex"])
        attr = schema.decode_attr(value, "golden")
        check_attr(attr, golden["decoded"])
        assert schema.encode_attr(attr) == value
        sizes.add(len(value))
    assert sizes == {72, 73, 80, 81}


def test_snapshot_fields_mean_what_the_vectors_say() -> None:
    for record in load("ops-snapshot.json")["keys"]:
        key, value, decoded = bytes.fromhex(record["key"]), bytes.fromhex(record["value"]), record["decoded"]
        match record["kind"]:
            case "attr":
                check_attr(schema.decode_attr(value, key), decoded)
            case "chunk":
                expected = [Slice(d["pos"], d["id"], d["size"], d["off"], d["len"]) for d in decoded]
                assert schema.decode_slices(value, key) == expected
            case "counter":
                assert schema.decode_counter(record["fields"]["name"], value) == decoded
            case "dirstat":
                assert schema.decode_dir_stat(value, key) == DirStat(*decoded.values())
            case "quotaD" | "quotaU" | "quotaG":
                assert schema.decode_quota(value, key) == Quota(*decoded.values())
            case "flock":
                expected_flocks = [Flock(schema.inode_of(key), s, o, kind.encode()) for s, o, kind in decoded]
                assert schema.decode_flocks(key, value) == expected_flocks
            case "delayed":
                assert schema.decode_delayed(key, value).slices == [SliceRef(*ref) for ref in decoded]
            case "acl":
                rule = schema.decode_acl(value, key)
                assert (rule.owner, rule.mask) == (decoded["owner"], decoded["mask"])
                assert [list(entry) for entry in rule.users] == decoded["users"]


@pytest.mark.parametrize("size", [63, 71])
def test_attrs_of_old_clients_are_read(size: int) -> None:
    value = schema.encode_attr(Attr(TYPE_FILE, 0o644, 1, 2, 3, 4, 5, 1, 7, 0, parent=9))[:size]
    attr = schema.decode_attr(value, "old")
    assert (attr.length, attr.parent, attr.tier) == (7, 9 if size == 71 else 0, 0)


ATTRS = st.builds(
    Attr,
    type=st.integers(1, 7),
    mode=st.integers(0, 0xFFF),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    atime_ns=st.integers(-(2**62), 2**62),
    mtime_ns=st.integers(-(2**62), 2**62),
    ctime_ns=st.integers(-(2**62), 2**62),
    nlink=st.integers(0, 2**32 - 1),
    length=st.integers(0, 2**64 - 1),
    rdev=st.integers(0, 2**32 - 1),
    parent=st.integers(0, 2**64 - 1),
    flags=st.integers(0, 255),
    access_acl=st.integers(0, 2**32 - 1),
    default_acl=st.integers(0, 2**32 - 1),
    tier=st.integers(0, 3),
)


@given(ATTRS)
def test_every_attr_survives(attr: Attr) -> None:
    assert schema.decode_attr(schema.encode_attr(attr), "attr") == attr


def test_trash_inode_is_little_endian_in_keys_and_big_endian_in_values() -> None:
    assert schema.attr_key(TRASH_INO).hex() == "4100000010ffffff7f49"
    assert schema.encode_dentry(Dentry(TYPE_DIR, TRASH_INO + 1)).hex() == "027fffffff10000001"


def test_counters_differ_in_byte_order() -> None:
    assert schema.encode_counter("nextInode", 2) == b"\2" + bytes(7)
    assert schema.encode_counter("lastCleanupSessions", 2) == bytes(7) + b"\2"


def test_plocks_of_several_owners_survive() -> None:
    record = schema.PLOCK_RECORD.pack(1, 77, 0, 2**63 - 1)
    plocks = [Plock(5, 1, 9, record * 2), Plock(5, 2, 2**64 - 1, record)]
    assert schema.decode_plocks(schema.plock_key(5), schema.encode_plocks(plocks)) == plocks


def test_acl_rules_survive() -> None:
    rule = AclRule(6, 4, 0xFFFF, 0, ((1000, 6), (2**32 - 1, 1)), ())
    assert schema.decode_acl(schema.encode_acl(rule), "acl") == rule


KEY = schema.plock_key(5)


@pytest.mark.parametrize(
    "decode",
    [
        lambda: schema.decode_attr(bytes(62), KEY),
        lambda: schema.decode_attr(bytes(64), KEY),
        lambda: schema.decode_dentry(bytes(8), KEY),
        lambda: schema.decode_slices(bytes(25), KEY),
        lambda: schema.decode_slice_refs(bytes(13), KEY),
        lambda: schema.decode_le64(b"", KEY),
        lambda: schema.decode_be64(bytes(9), KEY),
        lambda: schema.decode_flocks(KEY, bytes(16)),
        lambda: schema.decode_plocks(KEY, bytes(19)),
        lambda: schema.decode_plocks(KEY, bytes(19) + b"\1" + bytes(1)),
        lambda: schema.decode_plocks(KEY, bytes(19) + b"\x30" + bytes(24)),
        lambda: schema.decode_dir_stat(bytes(23), KEY),
        lambda: schema.decode_quota(bytes(31), KEY),
        lambda: schema.decode_acl(bytes(15), KEY),
        lambda: schema.decode_acl(bytes(17), KEY),
        lambda: schema.decode_acl(bytes(8) + b"\0\0\0\5" + bytes(8), KEY),
    ],
)
def test_broken_records_name_their_key(decode: Callable[[], object]) -> None:
    with pytest.raises(CorruptRecord) as caught:
        decode()
    assert caught.value.key == "plock 5"


def test_unknown_keys_are_told_apart() -> None:
    for key in (b"", b"Z", b"A", b"A12345678Y", b"A12345678Cab", b"Kshort", b"SEshort"):
        with pytest.raises(ValueError, match="unknown key"):
            schema.parse_key(key)
        assert schema.describe_key(key) == key.hex()


@given(st.binary(min_size=1, max_size=20).filter(lambda prefix: prefix.strip(b"\xff") != b""), st.binary(max_size=9))
def test_end_of_a_prefix_is_after_all_its_keys(prefix: bytes, rest: bytes) -> None:
    assert prefix + rest < schema.end_of(prefix)
    assert not schema.end_of(prefix).startswith(prefix)


@given(st.binary(min_size=1, max_size=255))
def test_a_name_is_guarded_by_one_of_the_directorys_guards(name: bytes) -> None:
    guards = schema.name_guard_keys(3)
    assert len(set(guards)) == 16
    assert schema.name_guard_key(3, name) in guards
