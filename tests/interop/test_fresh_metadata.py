"""What JuiceFS has acknowledged beside us on an SQLite volume is what we read next, and we ask SQLite no more than needed."""

import errno
import os
from pathlib import Path

import trio

from jfs.meta.client import ClientOptions, MetaClient
from jfs.meta.sql.sqlite3 import Sqlite3Engine, Sqlite3Transaction
from jfs.meta.types import ROOT, ROOT_INO, Ino
from tests.interop.conftest import assert_clean, both_mounted
from tests.meta.volumes import fails
from tests.mounts import PEER, format_volume

ROUNDS = 120
UNCACHED = ("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0", "--open-cache", "0")


class Counting(Sqlite3Engine):
    reads = 0

    def transaction(self, *, write: bool) -> Sqlite3Transaction:
        self.reads += not write
        return super().transaction(write=write)


def test_a_client_beside_a_mount_of_the_peer(tmp_path: Path) -> None:
    volume = format_volume(PEER, tmp_path, "vol", "--trash-days", "0")
    with volume.mounted(PEER, *UNCACHED) as mount:
        trio.run(_follow, str(volume.database), mount.path)
    assert_clean(volume, [mount])


async def _follow(database: str, folder: Path) -> None:
    engine = Counting(database)
    client = await MetaClient.connect(engine, ClientOptions(read_only=True))
    path = folder / "file"
    path.touch()
    ino = path.stat().st_ino
    asked = 0
    for number in range(1, ROUNDS + 1):
        with path.open("ab") as file:
            file.write(b"x" * 100)
        asked += await _reads(engine, client, ino, length=100 * number, records=number)
        path.chmod(0o400 + number)
        asked += await _reads(engine, client, ino, mode=0o400 + number)
        other = folder / f"other-{number}"
        await fails(errno.ENOENT, client.lookup(ROOT, ROOT_INO, other.name.encode()))
        os.link(path, other)
        assert (await client.lookup(ROOT, ROOT_INO, other.name.encode())).attr.nlink == 2
        other.unlink()
        await fails(errno.ENOENT, client.lookup(ROOT, ROOT_INO, other.name.encode()))
        assert (await client.getattr(ino)).nlink == 1
        if number % 10 == 0:
            await engine.checkpoint()
            await client.getattr(ino)
    # one for each kind of read and change, and some for what the peer does by itself: without a memory they are five times as many
    assert asked <= ROUNDS * 2 * 3 * 2
    path.unlink()
    await fails(errno.ENOENT, client.lookup(ROOT, ROOT_INO, b"file"))
    await fails(errno.ENOENT, client.getattr(ino))
    await engine.close()


async def _reads(
    engine: Counting, client: MetaClient, ino: Ino, *, length: int = 0, mode: int = 0, records: int = 0
) -> int:
    """Read it all five times; how many transactions that took."""
    count = engine.reads
    for _ in range(5):
        entry = await client.lookup(ROOT, ROOT_INO, b"file")
        assert entry.ino == ino
        assert await client.open(ROOT, ino, os.O_RDONLY) == entry.attr == await client.getattr(ino)
        await client.close(ino)
        if length:
            assert entry.attr.length == length
        if mode:
            assert entry.attr.mode == mode
    if 0 < records <= 10:
        for _ in range(2):
            assert sum(record.length for record in await client.read_chunk(ino, 0)) >= length
    return engine.reads - count


def test_mounts_side_by_side_without_the_kernels_caches(tmp_path: Path) -> None:
    volume = format_volume(PEER, tmp_path, "vol", "--trash-days", "0")
    with both_mounted(volume, *UNCACHED) as mounts:
        for number in range(ROUNDS):
            writer, reader = (mount.path for mount in (mounts if number % 2 else mounts[::-1]))
            name = f"name-{number}"
            assert not (reader / name).exists()
            (writer / name).write_bytes(b"x" * number)
            for _ in range(3):
                assert (reader / name).stat().st_size == number
                assert (reader / name).read_bytes() == b"x" * number
            (writer / name).chmod(0o600 + number)
            assert (reader / name).stat().st_mode & 0o777 == 0o600 + number & 0o777
            (writer / name).rename(writer / "moved")
            assert not (reader / name).exists()
            assert (reader / "moved").stat().st_size == number
            (writer / "moved").unlink()
            assert not (reader / "moved").exists()
    assert_clean(volume, mounts)
