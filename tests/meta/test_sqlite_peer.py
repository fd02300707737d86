"""The sqlite3 engine beside a live JuiceFS on the same database, both writing."""

import threading
from pathlib import Path

import trio

from jfs.meta.run import read, run
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.transaction import Transaction
from jfs.meta.types import TYPE_DIR, TYPE_FILE, Attr, Dentry, DirStat, Ino
from tests.mounts import PEER, format_volume

FILES = 400
NOW_NS = 1_795_464_841_342_987_654


async def make_folder(tx: Transaction) -> Ino:
    folder = await tx.add_counter("nextInode", 1) - 1
    root = await tx.attr(1)
    assert root is not None
    root.nlink += 1
    tx.put_attr(1, root)
    tx.put_attr(folder, attr(TYPE_DIR, 0o755, 1, nlink=2, length=4096))
    tx.put_dentry(1, b"ours", Dentry(TYPE_DIR, folder))
    tx.put_dir_stat(folder, DirStat())
    return folder


def attr(kind: int, mode: int, parent: Ino, *, nlink: int = 1, length: int = 0) -> Attr:
    return Attr(kind, mode, 0, 0, NOW_NS, NOW_NS, NOW_NS, nlink, length, parent=parent)


async def make_file(tx: Transaction, folder: Ino, name: bytes) -> None:
    ino = await tx.add_counter("nextInode", 1) - 1
    assert await tx.attr(ino) is None, "an inode number was given twice"
    await tx.add_counter("usedSpace", 4096)
    await tx.add_counter("totalInodes", 1)
    tx.put_attr(ino, attr(TYPE_FILE, 0o644, folder))
    tx.put_dentry(folder, name, Dentry(TYPE_FILE, ino))


def test_both_write_for_a_while(tmp_path: Path) -> None:
    volume = format_volume(PEER, tmp_path)
    with volume.mounted(PEER, expect_log=["Transaction succeeded after"]) as mount:
        theirs = mount.path / "theirs"
        theirs.mkdir()
        finished = threading.Event()

        def peer_works() -> int:
            count = 0
            while not finished.is_set() or count < FILES:
                path = theirs / f"file-{count}"
                path.write_bytes(b"data" * 100)
                path.rename(theirs / f"renamed-{count}")
                count += 1
            return count

        async def main() -> int:
            engine = Sqlite3Engine(str(volume.database))
            count = 0

            async def work(task_status: trio.TaskStatus[None]) -> None:
                nonlocal count
                count = await trio.to_thread.run_sync(peer_works)

            folder = (await run(engine, make_folder))[0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, trio.TASK_STATUS_IGNORED)
                for number in range(FILES):
                    await run(engine, make_file, folder, b"file-%d" % number)
                    await trio.sleep(0.002)
                    if number % 100 == 50:
                        await engine.sync()
                        await engine.checkpoint()
                finished.set()
            await check(engine, count)
            await engine.close()
            return count

        count = trio.run(main)
        assert len(list(theirs.iterdir())) == count
        ours = sorted(path.name for path in (mount.path / "ours").iterdir())
        assert ours == sorted(f"file-{number}" for number in range(FILES))
        for number in range(0, FILES, 50):
            (mount.path / "ours" / f"file-{number}").write_bytes(b"written by the peer")
    PEER.run("fsck", volume.url)


async def check(engine: Sqlite3Engine, count: int) -> None:
    """What the peer wrote, read by the engine beside it."""

    async def theirs(tx: Transaction) -> list[tuple[bytes, int, int]]:
        entry = await tx.lookup(1, b"theirs")
        assert entry is not None
        found = []
        for child in await tx.entries(entry.ino, None, 1_000_000):
            assert child.attr is not None
            records = await tx.slices(child.dentry.ino, 0)
            found.append((child.name, child.attr.length, sum(record.length for record in records)))
        return found

    assert sorted(await read(engine, theirs)) == sorted((b"renamed-%d" % n, 400, 400) for n in range(count))
