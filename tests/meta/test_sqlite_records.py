"""Rows of the relational schema against rows that JuiceFS wrote, storage classes, and damaged rows."""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.errors import CorruptRecord
from jfs.meta.run import read, run, run_inline
from jfs.meta.sql import schema
from jfs.meta.sql.rows import NODE_COLUMNS, attr_of, microseconds, node_row
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.transaction import Transaction
from jfs.meta.types import (
    TYPE_DIR,
    TYPE_FILE,
    Attr,
    DelayedSlices,
    Dentry,
    DirStat,
    Flock,
    Plock,
    Session,
    Slice,
    SliceRef,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sqlite-ops.json").read_text())


@pytest.fixture
def engine(sqlite3_engine: Sqlite3Engine) -> Sqlite3Engine:
    return sqlite3_engine


@pytest.fixture
def other(engine: Sqlite3Engine) -> Generator[sqlite3.Connection, None, None]:
    """Another program's connection to the same file."""
    connection = sqlite3.connect(engine.path, isolation_level=None)
    yield connection
    connection.close()


def value_of(golden: Any) -> Any:
    if isinstance(golden, dict):
        return bytes.fromhex(golden["hex"]) if "hex" in golden else ("text", bytes.fromhex(golden["texthex"]))
    return golden


def load(connection: sqlite3.Connection, tables: dict[str, Any]) -> None:
    for table, content in tables.items():
        connection.execute(f"DELETE FROM {table}")
        for row in content["rows"]:
            values = [value_of(value) for value in row]
            marks = ",".join("CAST(? AS TEXT)" if isinstance(value, tuple) else "?" for value in values)
            plain = [value[1] if isinstance(value, tuple) else value for value in values]
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", plain)


def asked(engine: Sqlite3Engine, question: Callable[[Transaction], Awaitable[Any]]) -> Any:
    return run_inline(read(engine, question))


def test_schema_is_the_peers() -> None:
    golden = [row[3] for row in GOLDEN["schema"] if row[3] and row[1] != "sqlite_sequence"]
    *peers, own = schema.missing("jfs_", {}, ())
    assert peers == golden
    assert own.startswith("CREATE TABLE `jfs_fingerprint` ")


def test_schema_with_a_prefix() -> None:
    statements = list(schema.missing("jfs_abc_", {}, ()))
    assert "CREATE UNIQUE INDEX `UQE_jfs_abc_edge_edge` ON `jfs_abc_edge` (`parent`,`name`)" in statements
    assert all("jfs_abc_" in statement for statement in statements)


def dump(connection: sqlite3.Connection) -> dict[str, list[Any]]:
    """All rows, values and storage classes; row ids burn, and slices may be text or a blob."""
    tables = {}
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table' AND name LIKE 'jfs%'"):
        columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})") if name != "id"]
        wanted = [f"hex(`{name}`)" for name in columns]
        wanted += [f"typeof(`{name}`)" for name in columns if name != "slices"]
        tables[table] = sorted(connection.execute(f"SELECT {','.join(wanted)} FROM {table}").fetchall())
    return tables


async def rewrite_inodes(tx: Transaction) -> None:
    for ino, attr in (await tx.all_attrs(None, 10_000))[0]:
        tx.put_attr(ino, attr)
        if (target := await tx.symlink(ino)) is not None:
            tx.put_symlink(ino, target)
        if (dir_stat := await tx.dir_stat(ino)) is not None:
            tx.put_dir_stat(ino, dir_stat)
        for name in await tx.xattr_names(ino):
            value = await tx.xattr(ino, name)
            assert value is not None
            tx.delete_xattr(ino, name)
            tx.put_xattr(ino, name, value)


async def rewrite_names_and_chunks(tx: Transaction) -> None:
    for parent, name, dentry in (await tx.all_dentries(None, 10_000))[0]:
        assert await tx.dentry(parent, name) == dentry
        tx.delete_dentry(parent, name)
        tx.put_dentry(parent, name, dentry)
    for ino, index, slices in (await tx.all_chunks(None, 10_000))[0]:
        assert await tx.slices(ino, index) == slices
        tx.delete_chunk(ino, index)
        for number, piece in enumerate(slices):
            assert await tx.append_slices(ino, index, [piece]) == number + 1


async def rewrite_books(tx: Transaction) -> None:
    for delayed in await tx.delayed_slices(1 << 40, 1000):
        tx.delete_delayed_slices(delayed)
        tx.put_delayed_slices(delayed)
    for deleted in await tx.deleted_files(1 << 40, 1000):
        tx.forget_deleted_file(deleted)
        tx.put_deleted_file(deleted)
    for session in await tx.sessions():
        tx.put_session(session)
        for ino in await tx.sustained(session.sid):
            tx.delete_sustained(session.sid, ino)
            tx.put_sustained(session.sid, ino)
    for name in ("nextInode", "usedSpace"):
        tx.put_counter(name, await tx.counter(name))
    settings = await tx.settings()
    assert settings is not None
    tx.put_settings(settings)


@pytest.mark.parametrize("volume", ["ops", "notrash"])
@pytest.mark.parametrize("rewrite", [rewrite_inodes, rewrite_names_and_chunks, rewrite_books])
def test_rows_of_the_peer_are_written_as_it_does(
    engine: Sqlite3Engine, other: sqlite3.Connection, volume: str, rewrite: Callable[[Transaction], Awaitable[None]]
) -> None:
    """Every row that the peer left is read, written back, and is then the same, value and storage class."""
    load(other, GOLDEN[volume]["final"])
    before = dump(other)
    assert before["jfs_node"]
    run_inline(run(engine, rewrite))
    assert dump(other) == before


def test_storage_classes(engine: Sqlite3Engine, other: sqlite3.Connection) -> None:
    async def write(tx: Transaction) -> None:
        tx.put_attr(2, Attr(TYPE_FILE, 0o644))
        tx.put_dentry(1, b"name", Dentry(TYPE_FILE, 2))
        tx.put_xattr(2, b"user.\xff", b"")
        tx.put_symlink(3, b"target")
        tx.put_settings(b"{}")
        tx.put_session(Session(1, 2, b"{}"))
        await tx.append_slices(2, 0, [Slice(0, 1, 2, 0, 2)])
        await tx.append_slices(2, 0, [Slice(2, 0, 0, 0, 2)])

    run_inline(run(engine, write))
    for column, table, storage in (
        ("name", "edge", "blob"),
        ("name", "xattr", "text"),
        ("value", "xattr", "blob"),
        ("target", "symlink", "blob"),
        ("value", "setting", "text"),
        ("info", "session2", "blob"),
        ("slices", "chunk", "blob"),
        ("rdev", "node", "integer"),
        ("parent", "node", "integer"),
        ("tier_id", "node", "integer"),
    ):
        assert other.execute(f"SELECT typeof({column}) FROM jfs_{table}").fetchall() == [(storage,)], (table, column)
    assert other.execute("SELECT hex(name) FROM jfs_xattr").fetchone() == (b"user.\xff".hex().upper(),)
    assert other.execute("SELECT hex(slices) FROM jfs_chunk").fetchone() == (
        "000000000000000000000001000000020000000000000002000000020000000000000000000000000000000000000002",
    )

    async def check(tx: Transaction) -> None:
        assert await tx.xattr(2, b"user.\xff") == b""
        assert await tx.xattr_names(2) == [b"user.\xff"]
        assert await tx.settings() == b"{}"

    asked(engine, check)


def test_appending_to_slices_that_are_text(engine: Sqlite3Engine, other: sqlite3.Connection) -> None:
    """The peer's appends turn the blob into text, with zero bytes in it."""
    first, second = Slice(0, 0xFF00FF, 100, 0, 100), Slice(100, 7, 9, 1, 8)

    async def append(tx: Transaction, piece: Slice) -> int:
        return await tx.append_slices(2, 0, [piece])

    assert run_inline(run(engine, append, first))[0] == 1
    other.execute("UPDATE jfs_chunk SET slices = slices || CAST(slices AS BLOB)")
    assert other.execute("SELECT typeof(slices) FROM jfs_chunk").fetchone() == ("text",)
    assert run_inline(run(engine, append, second))[0] == 3
    assert asked(engine, lambda tx: tx.slices(2, 0)) == [first, first, second]


def test_locks_of_the_peer(engine: Sqlite3Engine, other: sqlite3.Connection) -> None:
    other.execute("INSERT INTO jfs_flock (inode, sid, owner, ltype) VALUES (5, 1, -2, 87), (6, 2, 3, 82)")
    other.execute("INSERT INTO jfs_plock (inode, sid, owner, records) VALUES (5, 1, -1, zeroblob(24))")
    assert asked(engine, lambda tx: tx.flocks(1)) == [Flock(5, 1, (1 << 64) - 2, b"W")]
    assert asked(engine, lambda tx: tx.plocks(1)) == [Plock(5, 1, (1 << 64) - 1, bytes(24))]
    run_inline(run(engine, lambda tx: tx.release_locks(1)))
    assert other.execute("SELECT sid FROM jfs_flock").fetchall() == [(2,)]
    assert other.execute("SELECT sid FROM jfs_plock").fetchall() == []


def test_slice_references(engine: Sqlite3Engine, other: sqlite3.Connection) -> None:
    ref = SliceRef(9, 4096)

    async def change(tx: Transaction) -> None:
        assert await tx.slice_references(ref) == 0
        tx.new_slice(ref)
        assert await tx.slice_references(ref) == 1
        assert await tx.add_slice_references(ref, 2) == 3
        assert await tx.add_slice_references(SliceRef(9, 1), -1) == -1, "the size is part of the name"
        assert await tx.slice_counts(None, 10) == ([(ref, 3)], None)
        tx.forget_slice(ref)
        assert await tx.slice_references(ref) == 3, "a live slice is not forgotten"
        assert await tx.add_slice_references(ref, -3) == 0
        assert await tx.dead_slices(10) == [ref]
        tx.forget_slice(ref)
        assert await tx.dead_slices(10) == []

    run_inline(run(engine, change))
    assert other.execute("SELECT * FROM jfs_chunk_ref").fetchall() == []


def test_pages(engine: Sqlite3Engine) -> None:
    async def write(tx: Transaction) -> None:
        for ino in range(1, 26):
            tx.put_attr(ino, Attr(TYPE_DIR, parent=1))
            tx.put_dentry(1, b"n%d" % ino, Dentry(TYPE_DIR, ino))
            tx.put_slices(ino, 3, [Slice(0, ino, 1, 0, 1)])
            tx.put_dir_stat(ino, DirStat(1, 2, 3))
            tx.new_slice(SliceRef(ino, 1))

    run_inline(run(engine, write))

    async def check(tx: Transaction) -> None:
        for pages in (tx.all_attrs, tx.all_dentries, tx.all_chunks, tx.all_dir_stats, tx.slice_counts):
            found: list[Any] = []
            cursor = None
            while True:
                page, cursor = await pages(cursor, 10)
                found += page
                if cursor is None:
                    break
            assert len(found) == 25, pages
        assert await tx.all_parents(None, 10) == ([], None)

    asked(engine, check)


def test_names_in_byte_order_and_dangling(engine: Sqlite3Engine) -> None:
    names = [b"a", b"a\x01", b"b", b"z" * 255, "é".encode(), b"\xff"]

    async def write(tx: Transaction) -> None:
        for number, name in enumerate(reversed(names)):
            tx.put_dentry(1, name, Dentry(TYPE_FILE, 10 + number))
        tx.put_attr(10, Attr(TYPE_FILE))
        tx.put_dentry(2, b"link", Dentry(TYPE_FILE, 10))

    run_inline(run(engine, write))

    async def check(tx: Transaction) -> None:
        listed = await tx.entries(1, None, 100)
        assert [entry.name for entry in listed] == names
        assert [entry.attr is None for entry in listed] == [True] * 5 + [False]
        assert [name for name, _ in await tx.dentries(1, b"a\x01", 2)] == names[2:4]
        assert [entry.name for entry in await tx.entries(1, b"z", 1)] == [b"z" * 255]
        assert await tx.lookup(1, b"a") is None
        found = await tx.lookup(1, b"\xff")
        assert found is not None
        assert found.ino == 10
        assert await tx.parents(10) == {1: 1, 2: 1}
        assert list(await tx.attrs([10, 11])) == [10]

    asked(engine, check)


times = st.integers(min_value=-(1 << 62), max_value=1 << 62)
u32 = st.integers(0, 0xFFFFFFFF)


@given(times, times, u32, st.integers(0, (1 << 57) - 1))
def test_attributes_survive(mtime: int, ctime: int, uid: int, length: int) -> None:
    attr = Attr(TYPE_FILE, 0o7777, uid, 5, 1, mtime, ctime, 3, length, 0x103, 9, 1, access_acl=4, default_acl=5, tier=2)
    assert attr_of(1, node_row(attr)) == attr


def test_times_before_1970_are_cut_toward_zero() -> None:
    assert microseconds(-1_500) == (-1, -500)
    assert microseconds(1_500) == (1, 500)


@pytest.mark.parametrize("column", NODE_COLUMNS)
@pytest.mark.parametrize("value", ["many", b"\x00\x01", 1.5])
def test_damaged_attributes(engine: Sqlite3Engine, other: sqlite3.Connection, column: str, value: object) -> None:
    async def write(tx: Transaction) -> None:
        tx.put_attr(7, Attr(TYPE_FILE))
        tx.put_dentry(1, b"x", Dentry(TYPE_FILE, 7))

    run_inline(run(engine, write))
    other.execute(f"UPDATE jfs_node SET {column}=?", (value,))
    questions: list[Callable[[Transaction], Awaitable[Any]]] = [
        lambda tx: tx.attr(7),
        lambda tx: tx.attrs([7]),
        lambda tx: tx.lookup(1, b"x"),
        lambda tx: tx.entries(1, None, 10),
        lambda tx: tx.all_attrs(None, 10),
    ]
    for question in questions:
        with pytest.raises(CorruptRecord, match="node 7"):
            asked(engine, question)


def test_sums_of_the_peer_that_became_reals(engine: Sqlite3Engine, other: sqlite3.Connection) -> None:
    """More than 64 bits of sparse files: SQLite's addition gives a REAL."""
    other.execute("INSERT INTO jfs_counter VALUES ('usedSpace', 1 << 62)")
    other.execute("UPDATE jfs_counter SET value=value+value")
    other.execute("INSERT INTO jfs_dir_stats VALUES (3, 1 << 62, -1 << 62, 5)")
    other.execute("UPDATE jfs_dir_stats SET data_length=data_length*3, used_space=used_space*3")
    assert other.execute("SELECT typeof(value) FROM jfs_counter").fetchall() == [("real",)]
    assert asked(engine, lambda tx: tx.counter("usedSpace")) == -(1 << 63)
    assert asked(engine, lambda tx: tx.dir_stat(3)) == DirStat(-(1 << 62), 1 << 62, 5)
    assert asked(engine, lambda tx: tx.all_dir_stats(None, 9)) == ([(3, DirStat(-(1 << 62), 1 << 62, 5))], None)
    assert run_inline(run(engine, lambda tx: tx.add_counter("usedSpace", -1)))[0] == (1 << 63) - 1
    assert other.execute("SELECT typeof(value) FROM jfs_counter").fetchall() == [("integer",)]


@pytest.mark.parametrize(
    ("damage", "question", "key"),
    [
        ("INSERT INTO jfs_counter VALUES ('usedSpace', 1.5)", lambda tx: tx.counter("usedSpace"), "counter usedSpace"),
        (
            "INSERT INTO jfs_counter VALUES ('usedSpace', 9e999)",
            lambda tx: tx.counter("usedSpace"),
            "counter usedSpace",
        ),
        ("INSERT INTO jfs_counter VALUES ('nextInode', 1e19)", lambda tx: tx.counter("nextInode"), "counter nextInode"),
        ("INSERT INTO jfs_node VALUES (1,9,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0)", lambda tx: tx.attr(1), "node 1"),
        ("INSERT INTO jfs_chunk VALUES (1,2,0,X'00ff')", lambda tx: tx.slices(2, 0), "chunk 2/0"),
        ("INSERT INTO jfs_chunk VALUES (1,2,0,X'00ff')", lambda tx: tx.append_slices(2, 0, []), "chunk 2/0"),
        ("INSERT INTO jfs_chunk VALUES (1,2,0,'text')", lambda tx: tx.chunks(2), "chunk 2/0"),
        ("INSERT INTO jfs_chunk VALUES (1,2,0,5)", lambda tx: tx.all_chunks(None, 1), "chunk 2/0"),
        ("INSERT INTO jfs_edge VALUES (1,2,X'41','x',1)", lambda tx: tx.dentry(2, b"A"), "edge 2/b'A'"),
        ("INSERT INTO jfs_edge VALUES (1,2,X'41',3,8)", lambda tx: tx.dentries(2, None, 1), "edge 2/b'A'"),
        ("INSERT INTO jfs_symlink VALUES (2, 5)", lambda tx: tx.symlink(2), "symlink 2"),
        ("INSERT INTO jfs_counter VALUES ('nextInode','x')", lambda tx: tx.counter("nextInode"), "counter nextInode"),
        ("INSERT INTO jfs_delslices VALUES (3,4,X'00')", lambda tx: tx.delayed_slices(9, 9), "delslices 3"),
        ("INSERT INTO jfs_delfile VALUES (3,'x',4)", lambda tx: tx.deleted_files(9, 9), "delfile"),
        ("INSERT INTO jfs_dir_stats VALUES (3,'x',4,5)", lambda tx: tx.dir_stat(3), "dir_stats 3"),
        ("INSERT INTO jfs_session2 VALUES (3,'x',NULL)", lambda tx: tx.sessions(), "session 3"),
        ("INSERT INTO jfs_chunk_ref VALUES (3,'x',0)", lambda tx: tx.dead_slices(9), "chunk_ref"),
    ],
)
def test_damaged_rows_are_named(
    engine: Sqlite3Engine,
    other: sqlite3.Connection,
    damage: str,
    question: Callable[[Transaction], Awaitable[Any]],
    key: str,
) -> None:
    other.execute(damage)
    with pytest.raises(CorruptRecord) as corrupt:
        run_inline(run(engine, question))
    assert corrupt.value.key == key


def test_delayed_slices(engine: Sqlite3Engine) -> None:
    early, late = DelayedSlices(5, 100, [SliceRef(1, 2), SliceRef(1, 2)]), DelayedSlices(4, 200, [])

    async def write(tx: Transaction) -> None:
        tx.put_delayed_slices(late)
        tx.put_delayed_slices(early)

    run_inline(run(engine, write))
    assert asked(engine, lambda tx: tx.delayed_slices(201, 9)) == [early, late]
    assert asked(engine, lambda tx: tx.delayed_slices(200, 9)) == [early]
