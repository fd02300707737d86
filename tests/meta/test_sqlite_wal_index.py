"""Looking at the index of SQLite's log: what changes it, when it says nothing, and that SQLite's locks survive the looking."""

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from jfs.meta.run import read, run
from jfs.meta.sql import wal_index
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.sql.wal_index import WalIndex, watch
from jfs.meta.transaction import Transaction
from tests.meta.volumes import START_NS, Clock, connect, new_volume


@pytest.fixture
def engine(sqlite3_engine: Sqlite3Engine) -> Sqlite3Engine:
    return sqlite3_engine


def index_of(engine: Sqlite3Engine) -> WalIndex:
    found = engine.watch()
    assert found is not None
    return found


def descriptors(database: str) -> int:
    """How many this process has of the index, whatever became of its name."""
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    return sum(name.startswith(f"{os.path.realpath(database)}-shm") for name in names)


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def count(tx: Transaction) -> int:
    return await tx.add_counter("count", 1)


async def counted(tx: Transaction) -> int:
    return await tx.counter("count")


# -- what changes it


async def test_commits_change_it_and_nothing_else(engine: Sqlite3Engine) -> None:
    index = index_of(engine)
    other = sqlite3.connect(engine.path, isolation_level=None)
    looks = {index.look()}
    for step in range(100):
        before = index.look()
        assert index.settled(before)
        assert await read(engine, counted) == 2 * step
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE jfs_counter SET value=99")
        assert index.look() == before, "not committed yet"
        other.execute("ROLLBACK")
        other.execute("BEGIN IMMEDIATE")
        other.execute("COMMIT")
        assert index.look() == before, "nothing was committed"
        await run(engine, count)
        looks.add(index.look())
        other.execute("UPDATE jfs_counter SET value=value+1")
        looks.add(index.look())
        assert len(looks) == 2 * step + 3
    other.close()


@pytest.mark.parametrize("kind", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
async def test_no_look_comes_back_when_the_log_starts_anew(engine: Sqlite3Engine, kind: str) -> None:
    index = index_of(engine)
    looks = {index.look()}
    for step in range(100):
        await run(engine, count)
        assert index.look() not in looks
        looks.add(index.look())
        other = sqlite3.connect(engine.path, isolation_level=None)
        assert other.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()[0] == 0
        looks.add(index.look())
        other.close()
        assert await read(engine, counted) == step + 1


async def test_pages_that_spill_into_the_log_are_not_committed(engine: Sqlite3Engine) -> None:
    """A transaction larger than its cache writes to the log before its end."""
    index = index_of(engine)
    before = index.look()
    other = sqlite3.connect(engine.path, isolation_level=None)
    other.execute("PRAGMA cache_size=10")
    other.execute("BEGIN IMMEDIATE")
    for ino in range(1, 2000):
        other.execute("INSERT INTO jfs_symlink (inode, target) VALUES (?, ?)", (ino, b"x" * 2000))
    assert engine._wal.size() > 2 << 20
    assert index.look() == before
    other.execute("COMMIT")
    assert index.look() != before
    other.close()


# -- when it says nothing


def test_copies_that_differ_say_nothing(engine: Sqlite3Engine) -> None:
    index = index_of(engine)
    seen = index.look()
    assert index.settled(seen)
    for at in range(len(seen)):
        torn = bytearray(seen)
        torn[at] ^= 1
        assert not index.settled(bytes(torn))


def test_a_closed_index_says_nothing(engine: Sqlite3Engine) -> None:
    index = index_of(engine)
    assert index.settled(index.look())
    for _ in range(2):
        index.close()
        assert not index.settled(index.look())


async def test_a_writer_that_died_between_the_copies(engine: Sqlite3Engine) -> None:
    """The next transaction restores the index from the log; until then nothing is believed."""
    client = await new_volume(engine)
    index = index_of(engine)
    root = await client.getattr(1)
    path = f"{engine.path}-shm"
    break_it = f"f = open({path!r}, 'r+b'); f.seek(48 + 8); f.write(b'torn'); f.close()"
    subprocess.run([sys.executable, "-c", break_it], check=True)
    assert not index.settled(index.look())
    assert await client.getattr(1) == root
    assert index.settled(index.look())
    assert await client.getattr(1) == root
    await run(engine, count)
    assert await client.getattr(1) == root


# -- which file it is


async def test_a_database_behind_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "meta.db").symlink_to("disk/meta.db")
    engine = Sqlite3Engine(str(tmp_path / "meta.db"), create=True)
    await engine.prepare()
    index = index_of(engine)
    before = index.look()
    await run(engine, count)
    assert index.look() != before
    await engine.close()


class TestNoWatch:
    """Reads are transactions then, and the log says why."""

    @pytest.fixture(autouse=True)
    def said(self, caplog: pytest.LogCaptureFixture) -> Generator[None, None, None]:
        caplog.set_level(logging.DEBUG, logger="jfs.meta.sql.wal_index")
        yield
        said = [record.message for record in caplog.get_records("call") if record.name == "jfs.meta.sql.wal_index"]
        assert len(said) == 1
        assert said[0].startswith("every read of the metadata is a transaction: ")

    def test_no_index(self, tmp_path: Path) -> None:
        sqlite3.connect(tmp_path / "meta.db").close()
        assert watch(str(tmp_path / "meta.db")) is None

    def test_a_file_that_is_not_in_use(self, engine: Sqlite3Engine, tmp_path: Path) -> None:
        """Left by a crash, or by a library that keeps its index elsewhere: it would never change."""
        left = tmp_path / "left.db"
        Path(f"{left}-shm").write_bytes(Path(f"{engine.path}-shm").read_bytes())
        assert watch(str(left)) is None

    def test_an_index_of_another_version(self, tmp_path: Path) -> None:
        path = tmp_path / "meta.db-shm"
        path.write_bytes(bytes(32768))
        with path.open("rb"):
            assert watch(str(tmp_path / "meta.db")) is None
            assert descriptors(str(tmp_path / "meta.db")) == 3, "those that were opened stay: SQLite may have locks"
        _forget_mappings()

    def test_an_index_that_is_too_short(self, tmp_path: Path) -> None:
        path = tmp_path / "meta.db-shm"
        path.write_bytes(bytes(3))
        with path.open("rb"):
            assert watch(str(tmp_path / "meta.db")) is None
            assert descriptors(str(tmp_path / "meta.db")) == 1

    async def test_a_system_that_does_not_map_it(self, engine: Sqlite3Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: str, *rest: int) -> int:
            raise PermissionError(13, "no", path)

        with monkeypatch.context() as patch:
            patch.setattr(wal_index.os, "open", refuse)
            client = await new_volume(engine)
        assert client._memo is None
        assert await client.getattr(1) == await client.getattr(1)


def _forget_mappings() -> None:
    """Close what only a test has opened."""
    for mapping in [mapping for mapping in wal_index._mappings.values() if not mapping.watchers]:
        mapping.watchers = 1
        del wal_index._mappings[mapping.file]
        mapping.memory.close()
        os.close(mapping.fd)


# -- SQLite's locks


def is_locked(database: str) -> bool:
    """Whether another process finds the lock that tells that the index is in use."""
    program = f"""
import fcntl, os
fd = os.open({f"{database}-shm"!r}, os.O_RDWR)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
except BlockingIOError:
    print("locked")
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return done.stdout == "locked\n"


async def test_nothing_is_left_open(engine: Sqlite3Engine) -> None:
    await new_volume(engine)
    assert descriptors(engine.path) == 3
    assert is_locked(engine.path)
    await engine.close()
    assert descriptors(engine.path) == 0


async def test_engines_of_one_process_share_descriptors(engine: Sqlite3Engine) -> None:
    """POSIX drops a process's locks on a file with any of its descriptors: none goes before the last engine."""
    clock = Clock()
    first = await new_volume(engine, clock)
    second_engine = Sqlite3Engine(engine.path)
    second = await connect(second_engine, clock)
    assert descriptors(engine.path) == 3
    await first.close_session()
    await engine.close()
    assert descriptors(engine.path) == 3
    assert is_locked(engine.path)
    index = index_of(second_engine)
    before = index.look()
    other = sqlite3.connect(engine.path, isolation_level=None)
    other.execute("UPDATE jfs_node SET mtime=?", (START_NS // 1000 + 5,))
    assert index.look() != before
    assert (await second.getattr(1)).mtime_ns == START_NS + 5000
    other.close()
    await second_engine.close()
    assert descriptors(engine.path) == 0


async def test_other_connections_of_the_process_keep_their_locks(engine: Sqlite3Engine) -> None:
    await new_volume(engine)
    other = sqlite3.connect(engine.path, isolation_level=None)
    other.execute("SELECT * FROM jfs_node").fetchall()
    await engine.close()
    assert is_locked(engine.path)
    again = Sqlite3Engine(engine.path)
    await connect(again)
    other.close()
    assert is_locked(engine.path)
    await again.close()
    assert descriptors(engine.path) == 0
    assert not wal_index._mappings
