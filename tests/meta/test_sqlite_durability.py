"""Durability of the sqlite3 engine: what sync flushes, how often, and that checkpoints keep the log short."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.errors import FsError
from jfs.meta.run import run
from jfs.meta.sql import sqlite3 as engine_module
from jfs.meta.sql.durability import SyncRounds
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.transaction import Transaction


@pytest.fixture
def engine(sqlite3_engine: Sqlite3Engine) -> Sqlite3Engine:
    return sqlite3_engine


async def put_symlink(tx: Transaction, ino: int, size: int) -> None:
    tx.put_symlink(ino, b"x" * size)


class Flushes:
    """What os.fdatasync was called on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.error: OSError | None = None
        self._flush = os.fdatasync

    def __call__(self, fd: int) -> None:
        self.names.append(os.readlink(f"/proc/self/fd/{fd}"))
        if self.error is not None:
            raise self.error
        self._flush(fd)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Flushes:
    counted = Flushes()
    monkeypatch.setattr(os, "fdatasync", counted)
    return counted


async def test_sync_flushes_the_log_once_per_commit(engine: Sqlite3Engine, flushes: Flushes) -> None:
    log = f"{engine.path}-wal"
    await engine.sync()
    assert flushes.names == [log]
    await engine.sync()
    assert flushes.names == [log], "nothing was committed since"
    await run(engine, put_symlink, 2, 10)
    await engine.sync()
    assert flushes.names == [log] * 2


async def test_the_log_lies_beside_what_a_symlink_points_at(tmp_path: Path, flushes: Flushes) -> None:
    """SQLite follows links to the database before it names its log."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "meta.db").symlink_to("disk/meta.db")
    linked = Sqlite3Engine(str(tmp_path / "meta.db"), create=True)
    await linked.prepare()
    assert linked._wal.size() > 0
    await linked.sync()
    assert flushes.names == [f"{tmp_path}/disk/meta.db-wal"]
    await linked.close()


@pytest.mark.logs("flushing the metadata log failed")
async def test_failed_sync_is_never_forgotten(engine: Sqlite3Engine, flushes: Flushes) -> None:
    flushes.error = OSError(errno.EIO, "disk gone")
    for _ in range(2):
        with pytest.raises(FsError) as failed:
            await engine.sync()
        assert failed.value.errno == errno.EIO
        flushes.error = None


async def test_concurrent_syncs_share_rounds() -> None:
    began = threading.Semaphore(0)
    go_on = threading.Semaphore(0)
    rounds = 0

    def flush() -> None:
        nonlocal rounds
        rounds += 1
        began.release()
        go_on.acquire()

    shared = SyncRounds(flush)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.join)
        await trio.to_thread.run_sync(began.acquire)
        for _ in range(20):
            nursery.start_soon(shared.join)
        await trio.testing.wait_all_tasks_blocked()
        go_on.release()
        await trio.to_thread.run_sync(began.acquire)
        go_on.release()
    assert rounds == 2, "those who came while the first round ran share the second"


def test_sync_reaches_the_kernel(tmp_path: Path) -> None:
    """Seen from outside: commits flush nothing, sync does, after the last of them."""
    program = f"""
import trio
import trio.testing
from jfs.meta.run import run
from jfs.meta.sql.sqlite3 import Sqlite3Engine
async def write(tx, ino): tx.put_symlink(ino, b"x")
async def main():
    engine = Sqlite3Engine({str(tmp_path / "meta.db")!r}, create=True)
    await engine.prepare()
    open({str(tmp_path / "begin")!r}, "w")
    for ino in range(50): await run(engine, write, ino + 1)
    open({str(tmp_path / "written")!r}, "w")
    await engine.sync()
    open({str(tmp_path / "synced")!r}, "w")
trio.run(main)
"""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", trace, "-e", "trace=openat,fsync,fdatasync,pwrite64"]
    subprocess.run([*command, sys.executable, "-c", program], check=True)
    lines = trace.read_text().splitlines()
    at = {
        mark: next(i for i, line in enumerate(lines) if f"/{mark}" in line) for mark in ("begin", "written", "synced")
    }
    writing, syncing = lines[at["begin"] : at["written"]], lines[at["written"] : at["synced"]]
    assert any("meta.db-wal" in line and "pwrite64" in line for line in writing)
    assert not any("sync(" in line for line in writing)
    assert any("fdatasync(" in line and "meta.db-wal" in line for line in syncing)
    assert any("fsync(" in line and f"<{tmp_path}>" in line for line in syncing), "the log's name reaches the disk too"


async def test_checkpoint_empties_the_log(engine: Sqlite3Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CHECKPOINT_BYTES", 1 << 20)
    engine._checkpoint_at = 1 << 20
    log = Path(f"{engine.path}-wal")
    checkpoints = 0
    for ino in range(1, 1200):
        await run(engine, put_symlink, ino, 4000)
        if engine.wants_checkpoint():
            await engine.checkpoint()
            checkpoints += 1
            assert not engine.wants_checkpoint()
        assert log.stat().st_size < 2 << 20
    assert checkpoints > 3
    assert Path(engine.path).stat().st_size > 3 << 20


async def test_checkpoint_beside_a_reader_stops_nobody(engine: Sqlite3Engine) -> None:
    """A reader that stays keeps the log from being emptied; the next attempt is due only after more growth."""
    engine._checkpoint_at = 1 << 20
    async with engine.transaction(write=False) as reader:
        assert await reader.symlink(1) is None
        for ino in range(1, 400):
            await run(engine, put_symlink, ino, 4000)
        assert engine.wants_checkpoint()
        await engine.checkpoint()
        assert not engine.wants_checkpoint()
        assert await reader.symlink(1) is None
        await run(engine, put_symlink, 1000, 4000)
    await engine.checkpoint()
    assert engine._wal.size() == 0


async def test_checkpoint_and_writers_at_the_same_time(engine: Sqlite3Engine) -> None:
    done = False

    async def write() -> None:
        nonlocal done
        for ino in range(1, 1500):
            await run(engine, put_symlink, ino, 500)
            await trio.lowlevel.checkpoint()
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while not done:
            await engine.checkpoint()
    async with engine.transaction(write=False) as tx:
        assert await tx.symlink(1499) == b"x" * 500
