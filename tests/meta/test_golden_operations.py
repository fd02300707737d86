"""The namespace operations change exactly the records that the real JuiceFS changes, on both storage models.

Each case puts an engine into the state that a recorded transaction began in, runs the operation with the recorded
arguments and time, and compares what it wrote.  The peer leaves a directory's times alone for 100 ms after a change, so
the operations are told to do the same here.
"""

import json
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jfs.meta import inodes
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.namespace import link, mknod
from jfs.meta.rename import EXCHANGE, rename
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.trash import ensure_hour
from jfs.meta.types import (
    ROOT,
    TRASH_INO,
    TYPE_BLOCK,
    TYPE_CHAR,
    TYPE_DIR,
    TYPE_FIFO,
    TYPE_FILE,
    TYPE_SYMLINK,
    Cred,
    Ino,
)
from jfs.meta.unlink import rmdir, unlink
from tests.meta.test_check_golden import fill
from tests.meta.volumes import do

GOLDEN = Path(__file__).parents[1] / "golden"
HOUR = TRASH_INO + 1
SKIP_NS = 100_000_000
USER = Cred(umask=0o022)

Operation = Callable[..., Awaitable[object]]
"""An operation that lacks its transaction and the time."""


def make(
    parent: Ino, name: bytes, ino: Ino, attr_type: int, mode: int = 0o666, rdev: int = 0, target: bytes = b""
) -> Operation:
    async def operation(tx: Any, now_ns: int) -> object:
        named = {"target": target, "skip_mtime_ns": SKIP_NS}
        return await mknod(tx, USER, parent, name, ino, attr_type, mode, rdev, now_ns, **named)

    return operation


def make_dir(parent: Ino, name: bytes, ino: Ino) -> Operation:
    return make(parent, name, ino, TYPE_DIR, 0o777)


def change(ino: Ino, **changes: Any) -> Operation:
    return lambda tx, now_ns: inodes.setattr(tx, ROOT, ino, AttrChange(**changes), now_ns)


def hard_link(ino: Ino, parent: Ino, name: bytes) -> Operation:
    return lambda tx, now_ns: link(tx, ROOT, ino, parent, name, now_ns, skip_mtime_ns=SKIP_NS)


def move(
    parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0, hour: Ino | None = HOUR
) -> Operation:
    def operation(tx: Any, now_ns: int) -> Awaitable[object]:
        names = (parent, name, new_parent, new_name)
        return rename(tx, ROOT, *names, flags, hour, lambda ino: False, 1, now_ns, skip_mtime_ns=SKIP_NS)

    return operation


def remove(
    operation: Callable[..., Awaitable[object]],
    parent: Ino,
    name: bytes,
    *,
    hour: Ino | None = HOUR,
    is_open: bool = False,
) -> Operation:
    return lambda tx, now_ns: operation(
        tx, ROOT, parent, name, hour, lambda ino: is_open, 1, now_ns, skip_mtime_ns=SKIP_NS
    )


remove_file = partial(remove, unlink)
remove_dir = partial(remove, rmdir)

KV_OPS: list[tuple[str, int, Operation]] = [
    ("mkdir", 1, make_dir(1, b"d", 2)),
    ("create empty", 0, make(2, b"empty", 3, TYPE_FILE)),
    ("create empty", 1, change(3, atime_now=True, mtime_now=True)),
    ("symlink", 0, make(2, b"s", 8, TYPE_SYMLINK, target=b"../target/x")),
    ("mkfifo, chr, blk", 0, make(2, b"p", 9, TYPE_FIFO)),
    ("mkfifo, chr, blk", 1, make(2, b"c", 10, TYPE_CHAR, rdev=0x103)),
    ("mkfifo, chr, blk", 2, make(2, b"b", 11, TYPE_BLOCK, rdev=0x801)),
    ("hard link same dir", 0, hard_link(4, 2, b"h")),
    ("hard link other dir", 0, hard_link(4, 1, b"h2")),
    ("chmod chown utimes", 0, change(3, mode=0o640)),
    ("chmod chown utimes", 1, change(3, uid=1000, gid=2000)),
    ("chmod chown utimes", 2, change(3, atime_ns=1_000_000_000_123456789, mtime_ns=1_000_000_000_123456789)),
    ("chown root file with suid (cleared?)", 2, change(12, mode=0o6755)),
    ("chown root file with suid (cleared?)", 3, change(12, uid=5, gid=6)),
    ("setgid dir inheritance", 0, make_dir(1, b"sg", 13)),
    ("setgid dir inheritance", 1, change(13, gid=3000)),
    ("setgid dir inheritance", 2, change(13, mode=0o2775)),
    ("setgid dir inheritance", 3, make(13, b"f", 14, TYPE_FILE)),
    ("setgid dir inheritance", 5, make_dir(13, b"d", 15)),
    ("ioctl flags", 2, change(19, flags=1)),
    ("ioctl flags", 3, change(19, flags=0)),
    ("ioctl flags", 4, change(19, flags=2)),
    ("ioctl flags", 6, change(19, flags=32)),
    ("rename same dir", 0, ensure_hour),
    ("rename same dir", 1, move(2, b"empty", 2, b"e2")),
    ("rename dir to other parent", 0, make_dir(1, b"d2", 20)),
    ("rename dir to other parent", 1, move(1, b"da", 20, b"da")),
    ("rename over existing file -> old goes to trash", 4, move(1, b"ra", 1, b"rb")),
    ("rename exchange file<->dir across dirs", 1, make_dir(23, b"xd", 24)),
    ("rename exchange file<->dir across dirs", 4, move(1, b"xf", 23, b"xd", EXCHANGE)),
    ("unlink one of three links -> trash", 0, remove_file(1, b"h2")),
    ("unlink second link -> trash", 0, remove_file(2, b"h")),
    ("unlink last link -> trash", 0, remove_file(2, b"f")),
    ("unlink symlink, fifo -> trash", 0, remove_file(2, b"s")),
    ("unlink symlink, fifo -> trash", 1, remove_file(2, b"p")),
    ("rmdir -> trash", 1, remove_dir(1, b"gone")),
    ("unlink with skip-trash flag", 0, remove_file(1, b"fl")),
    ("restore one file from trash by rename", 0, move(HOUR, b"1-22-rb", 1, b"rb.back")),
    ("locks held: flock SH/EX, plocks", 10, remove_file(1, b"sus", is_open=True)),
]

KV_NOTRASH: list[tuple[str, int, Operation]] = [
    ("unlink: D key, chunk deleted, slice ref -1, blocks, K deleted", 0, remove_file(1, b"a", hour=None)),
    ("hard link, unlink both", 0, make(1, b"b", 3, TYPE_FILE)),
    ("hard link, unlink both", 2, hard_link(3, 1, b"b2")),
    ("hard link, unlink both", 3, remove_file(1, b"b", hour=None)),
    ("hard link, unlink both", 4, remove_file(1, b"b2", hour=None)),
    ("rename over", 4, move(1, b"e", 1, b"f", hour=None)),
    ("unlink while open, then close", 2, remove_file(1, b"s", hour=None, is_open=True)),
    ("mkdir, symlink, rmdir, unlink", 0, make_dir(1, b"m", 10)),
    ("mkdir, symlink, rmdir, unlink", 1, make(10, b"l", 11, TYPE_SYMLINK, target=b"t")),
    ("mkdir, symlink, rmdir, unlink", 2, remove_file(10, b"l", hour=None)),
    ("mkdir, symlink, rmdir, unlink", 3, remove_dir(1, b"m", hour=None)),
]

CASES = [pytest.param("ops", case, id=f"{case[0]} {case[1]}") for case in KV_OPS] + [
    pytest.param("notrash", case, id=f"no trash: {case[0]} {case[1]}") for case in KV_NOTRASH
]

State = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]


def changes_of(transaction: dict[str, Any]) -> Changes:
    return {
        bytes.fromhex(change[1]): bytes.fromhex(change[2]) if change[0] == "PUT" else None
        for change in transaction["changes"]
    }


def to_ns(text: str) -> int:
    seconds, fraction = text.split(".")
    return int(seconds) * 10**9 + int(fraction)


def time_of(transaction: dict[str, Any]) -> int | None:
    """When it ran, by the newest ctime in it; None if it wrote none."""
    times = [to_ns(record[2]["ctime"]) for record in transaction["decoded"] if record[0] == "attr"]
    return max(times, default=None)


def state_before(volume: str, step: str, index: int) -> tuple[State, dict[str, Any], int]:
    """The keys before a recorded transaction, that transaction, and when it ran."""
    state: State = {}
    now_ns = 0
    for recorded in json.loads((GOLDEN / f"{volume}-steps.json").read_text())["steps"]:
        for number, transaction in enumerate(recorded["transactions"]):
            now_ns = time_of(transaction) or now_ns + 1_000_000
            if (recorded["step"], number) == (step, index):
                return state, transaction, now_ns
            for key, value in changes_of(transaction).items():
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
    raise AssertionError(f"no transaction {index} in step {step}")


@pytest.mark.parametrize(("volume", "case"), CASES)
async def test_key_value_records(volume: str, case: tuple[str, int, Operation]) -> None:
    step, index, operation = case
    state, transaction, now_ns = state_before(volume, step, index)
    engine = MemoryEngine()

    async def load(tx: Any) -> None:
        for key, value in state.items():
            tx.kv.set(key, value)

    await do(engine, load)
    await do(engine, operation, now_ns)
    now = {key: engine.store.get(key, engine.store.now) for key in engine.store.keys}
    written: Changes = {key: value for key, value in now.items() if state.get(key) != value}
    written.update(dict.fromkeys(state.keys() - now.keys()))
    expected = changes_of(transaction)
    if step == "rmdir -> trash":  # the directory's statistics stay, on purpose
        del expected[b"U" + (26).to_bytes(8, "little")]
    assert printable(written) == printable(expected)


def printable(changes: Changes) -> dict[str, str]:
    return {key.hex(): "deleted" if value is None else value.hex() for key, value in changes.items()}


# -- the relational model

SQL_OPS: list[tuple[str, Operation]] = [
    ("create", make(1, b"a", 2, TYPE_FILE, 0o640)),
    ("mkdir", make_dir(1, b"d", 3)),
    ("hard link", hard_link(2, 3, b"a2")),
    ("symlink", make(1, b"s", 4, TYPE_SYMLINK, target=b"d/a2")),
    ("mkfifo", make(1, b"p", 5, TYPE_FIFO)),
    ("mknod c 1 3", make(1, b"c13", 6, TYPE_CHAR, rdev=0x103)),
    ("create non-utf8 name", make(1, b"n\xff\x01 %", 7, TYPE_FILE, 0o777)),
    ("chown 1000:2000 c13->s file cl", change(14, uid=1000, gid=2000)),
    ("unlink to trash", remove_file(1, b"cfr")),
    ("unlink one hard link to trash", remove_file(3, b"a2")),
]
SQL_NOTRASH: list[tuple[str, Operation]] = [
    ("link f g", hard_link(2, 1, b"g")),
    ("unlink g (still linked)", remove_file(1, b"g", hour=None)),
    ("symlink", make(1, b"s", 3, TYPE_SYMLINK, target=b"t")),
    ("unlink symlink", remove_file(1, b"s", hour=None)),
]
SQL_CASES = [pytest.param("ops", *case, id=case[0]) for case in SQL_OPS] + [
    pytest.param("notrash", *case, id=f"no trash: {case[0]}") for case in SQL_NOTRASH
]

COMPARED = {
    "jfs_node": "*",
    "jfs_edge": "parent, name, inode, type",
    "jfs_symlink": "*",
    "jfs_xattr": "inode, name, value",
    "jfs_sustained": "sid, inode",
}
NUMBERED = ("jfs_edge", "jfs_xattr", "jfs_sustained")
"""Tables whose first column is a row number without a meaning."""

Rows = dict[str, list[list[Any]]]


def rows_around(volume: str, step: str) -> tuple[Rows, Rows]:
    """All rows before and after a recorded step."""
    steps = json.loads((GOLDEN / "sqlite-ops.json").read_text())[volume]["steps"]
    before: Rows = {table: list(rows) for table, rows in steps[0]["state"].items()}
    for recorded in steps[1:]:
        after = {table: list(rows) for table, rows in before.items()}
        for table, diff in recorded["diff"].items():
            gone = diff.get("-", [])
            after[table] = [row for row in after.get(table, []) if row not in gone] + diff.get("+", [])
        if recorded["step"] == step:
            return before, after
        before = after
    raise AssertionError(f"no step {step}")


def plain(value: Any) -> Any:
    return bytes.fromhex(next(iter(value.values()))) if isinstance(value, dict) else value


def comparable(rows: Rows) -> dict[str, set[tuple[Any, ...]]]:
    return {
        table: {tuple(plain(value) for value in row[table in NUMBERED :]) for row in rows.get(table, [])}
        for table in COMPARED
    }


@pytest.mark.parametrize(("volume", "step", "operation"), SQL_CASES)
async def test_relational_rows(volume: str, step: str, operation: Operation, tmp_path: Path) -> None:
    before, after = rows_around(volume, step)
    path = tmp_path / "meta.db"
    engine = Sqlite3Engine(str(path), create=True)
    await engine.prepare()
    fill(path, {table: {"rows": rows} for table, rows in before.items() if table != "sqlite_sequence"})
    nodes = [row for row in after["jfs_node"] if row not in before["jfs_node"]]
    await do(engine, operation, max(row[8] * 1000 + row[11] for row in nodes))
    await engine.close()

    connection = sqlite3.connect(path)
    found = {
        table: set(connection.execute(f"SELECT {columns} FROM {table}").fetchall())
        for table, columns in COMPARED.items()
    }
    connection.close()
    assert found == comparable(after)
