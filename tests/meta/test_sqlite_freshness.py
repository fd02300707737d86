"""Reads that take no transaction beside other processes that commit: whatever was acknowledged is seen by the next read."""

import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO

import pytest

from jfs.meta.client import MetaClient
from jfs.meta.run import run_inline
from jfs.meta.sql.sqlite3 import Sqlite3Engine, Sqlite3Transaction
from jfs.meta.types import ROOT, ROOT_INO, Ino
from tests.meta.volumes import Clock, connect, make_file, new_volume

# Commits a number and says it, for ever, or waits after each for a byte; every so many commits the log starts anew.
WRITER = """
import sqlite3, struct, sys
path, ino, checkpoint, every, wait = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5] == "wait"
db = sqlite3.connect(path, isolation_level=None, timeout=60)
db.execute("PRAGMA synchronous=OFF")
db.execute("PRAGMA wal_autocheckpoint=0")
number = db.execute("SELECT mtime FROM jfs_node WHERE inode=?", (ino,)).fetchone()[0]
while True:
    number += 1
    db.execute("UPDATE jfs_node SET mtime=?, mtimensec=0 WHERE inode=?", (number, ino))
    if number % every == 0:
        db.execute(f"PRAGMA wal_checkpoint({checkpoint})").fetchall()
    sys.stdout.buffer.write(struct.pack("=Q", number))
    sys.stdout.buffer.flush()
    if wait and not sys.stdin.buffer.read(1):
        break
    if wait and number % 50 == 0:
        db.close()
        db = sqlite3.connect(path, isolation_level=None, timeout=60)
"""
NUMBER = struct.Struct("=Q")


class Counting(Sqlite3Engine):
    reads = 0

    def transaction(self, *, write: bool) -> Sqlite3Transaction:
        self.reads += not write
        return super().transaction(write=write)


class Writer:
    """A process that commits numbers as a file's modification time."""

    def __init__(self, path: str, ino: Ino, *, checkpoint: str, every: int, wait: bool) -> None:
        arguments = [path, str(ino), checkpoint, str(every), "wait" if wait else "go"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.said = 0
        self._rest = b""

    @property
    def _out(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def next(self) -> int:
        """Wait for the next number."""
        self.said = int(NUMBER.unpack(self._out.read(NUMBER.size))[0])
        return self.said

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b".")

    def latest(self) -> int:
        """The last number that it has said by now."""
        os.set_blocking(self._out.fileno(), False)
        said = self._out.read(1 << 20)
        os.set_blocking(self._out.fileno(), True)
        if said:
            data = self._rest + said
            whole = len(data) - len(data) % NUMBER.size
            self._rest = data[whole:]
            if whole:
                self.said = int(NUMBER.unpack(data[whole - NUMBER.size : whole])[0])
        return self.said

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._out.close()
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def engine(tmp_path: Path) -> Generator[Counting, None, None]:
    made = Counting(str(tmp_path / "meta.db"), create=True)
    yield made
    run_inline(made.close())


async def number_of(client: MetaClient, ino: Ino) -> int:
    return (await client.getattr(ino)).mtime_ns // 1000


@pytest.mark.parametrize("checkpoint", ["PASSIVE", "RESTART", "TRUNCATE"])
@pytest.mark.parametrize("every", [1, 7])
async def test_each_commit_is_seen_by_the_next_read(engine: Counting, checkpoint: str, every: int) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    writer = Writer(engine.path, ino, checkpoint=checkpoint, every=every, wait=True)
    count = engine.reads
    first = writer.next()
    for number in range(first, first + 300):
        assert await number_of(client, ino) == number
        assert (await client.lookup(ROOT, ROOT_INO, b"file")).attr.mtime_ns == number * 1000
        assert (await client.open(ROOT, ino, os.O_RDONLY)).mtime_ns == number * 1000
        assert await number_of(client, ino) == number
        await client.close(ino)
        if number % 11 == 0:
            await engine.checkpoint()
            assert await number_of(client, ino) == number
        writer.go_on()
        assert writer.next() == number + 1
    assert engine.reads - count <= 300 * 2 + 30, "one for the attributes, one for the name; one after a checkpoint"
    writer.kill()


@pytest.mark.parametrize("checkpoint", ["PASSIVE", "TRUNCATE"])
async def test_nothing_acknowledged_is_missed_at_full_speed(engine: Counting, checkpoint: str) -> None:
    """Reads and commits meet at every moment; what is read never goes back."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    own = (await make_file(client, b"own")).ino
    writer = Writer(engine.path, ino, checkpoint=checkpoint, every=100, wait=False)
    start = await number_of(client, ino)
    seen = loops = writes = 0
    count = engine.reads
    began = time.monotonic()
    while time.monotonic() < began + 2 or ((writer.said < start + 100 or writes < 3) and time.monotonic() < began + 60):
        said = writer.latest()
        number = await number_of(client, ino)
        assert number >= said
        assert number >= seen
        seen = number
        loops += 1
        if loops % 997 == 0:
            length = writes = writes + 1
            await client.truncate(ROOT, own, length)
            assert (await client.getattr(own)).length == length
        if loops % 5003 == 0:
            await engine.checkpoint()
    writer.kill()
    assert writer.said >= start + 100
    assert writes >= 3
    assert engine.reads - count < loops


async def test_writers_that_are_killed(engine: Counting) -> None:
    """Wherever it dies, reads see what a new connection sees."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    chance = random.Random(5)
    for _ in range(15):
        writer = Writer(engine.path, ino, checkpoint="TRUNCATE", every=50, wait=False)
        writer.next()
        time.sleep(chance.uniform(0, 0.02))
        await number_of(client, ino)
        said = writer.latest()
        writer.kill()
        for _ in range(2):
            number = await number_of(client, ino)
            fresh = sqlite3.connect(engine.path)
            assert fresh.execute("SELECT mtime FROM jfs_node WHERE inode=?", (ino,)).fetchone() == (number,)
            fresh.close()
            assert number >= said


async def test_a_database_that_is_opened_again(tmp_path: Path) -> None:
    """Files are removed and made anew by whoever is last and first; each engine looks at those of its time."""
    clock = Clock()
    path = str(tmp_path / "meta.db")
    engine = Counting(path, create=True)
    ino = (await make_file(await new_volume(engine, clock), b"file")).ino
    await engine.close()
    for _ in range(5):
        writer = Writer(path, ino, checkpoint="PASSIVE", every=1000, wait=True)
        writer.next()
        engine = Counting(path)
        client = await connect(engine, clock)
        for _ in range(5):
            assert await number_of(client, ino) == await number_of(client, ino) == writer.said
            writer.go_on()
            writer.next()
        last = writer.said
        writer.kill()
        assert await number_of(client, ino) == last
        await engine.close()
        assert [name.name for name in tmp_path.iterdir()] == ["meta.db"]
