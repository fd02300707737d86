"""The data path as most people have it: SQLite and a folder, one reader beside a writer and compaction."""

import random
from pathlib import Path

import trio

from jfs.meta.engines import open_engine
from jfs.object.file import FileStore
from jfs.vfs.vfs import VfsOptions
from tests.deadline import eventually_async
from tests.vfs.mounted import BLOCK, MIB, RDONLY, mount, mounted, pattern

PAGE = 4096


async def test_reading_beside_compaction_and_removal(tmp_path: Path) -> None:
    """Old slices vanish under the reader, who must see whole pages, each either old or new."""
    engine = open_engine(f"sqlite3://{tmp_path}/meta.db", create=True)
    store = FileStore(f"{tmp_path}/objects/")
    store.create()
    rng = random.Random(1)
    pages = 4 * BLOCK // PAGE
    done = False
    async with mounted(engine=engine, store=store, trash_days=0, options=VfsOptions(buffer_size=16 * MIB)) as m:
        handle = await m.create(b"f")
        assert handle.file is not None
        versions = [0] * pages
        await m.write(handle, 0, b"".join(pattern(PAGE, 0) for _ in range(pages)))
        await m.vfs.fsync(handle.fh)
        reading = await m.open(b"f", RDONLY)

        reads = 0

        async def read() -> None:
            nonlocal reads
            while not done:
                at = rng.randrange(pages)
                before = versions[at]
                data = await m.read(reading, at * PAGE, PAGE)
                assert data in {pattern(PAGE, version) for version in range(before, versions[at] + 1)}
                reads += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for turn in range(1, 41):
                for _ in range(5):
                    at = rng.randrange(pages)
                    versions[at] += 1
                    await m.write(handle, at * PAGE, pattern(PAGE, versions[at]))
                    await m.vfs.flush(handle.fh)
                await m.vfs.compactor.compact(handle.file.ino, 0)
                if turn % 10 == 0:
                    await m.vfs.cleaner.work_off()
                await trio.lowlevel.checkpoint()
            done = True
        assert reads > 40
        await m.close(reading)
        await m.close(handle)
        assert await m.content(b"f") == b"".join(pattern(PAGE, version) for version in versions)
        slices = {record.id for record in await m.records(handle)}
        await eventually_async(
            lambda: {int(i.key.split("/")[-1].split("_")[0]) for i in store.list("chunks/")} == slices
        )
    async with mount(engine, store) as m:
        assert await m.content(b"f") == b"".join(pattern(PAGE, version) for version in versions)
    await engine.close()
