"""A mount of a volume with fingerprints: what is written carries them, what is read is checked by them."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jfs.chunk.fingerprint import fingerprint_of
from jfs.errors import FsError
from jfs.meta import fingerprints
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.slices import referred
from jfs.meta.types import Slice, SliceRef
from jfs.meta.volume_format import create_volume
from jfs.object.file import FileStore
from jfs.object.store import ObjectStore
from jfs.vfs.compactor import Compactor
from jfs.vfs.handles import Handle
from tests.vfs.mounted import BLOCK, KIB, RDONLY, Mounted, ScriptedStore, mount, pattern

DATA = pattern(2 * BLOCK + 1000)


@asynccontextmanager
async def mounted(store: ObjectStore | None = None) -> AsyncIterator[Mounted]:
    engine = MemoryEngine()
    settings = Settings.fresh("testvol", bucket="/none/")
    settings.block_size = BLOCK // KIB
    settings.trash_days = 0
    await run(engine, create_volume, settings, 1)
    await fingerprints.turn(engine, on=True)
    async with mount(engine, store or ScriptedStore()) as m:
        yield m


async def marks(m: Mounted, handle: Handle) -> dict[int, bytes]:
    return await m.meta.fingerprints(referred(await m.records(handle)))


def rot(m: Mounted, number: int) -> None:
    """Flip a bit of the block with this number in whichever slice."""
    for key in m.store.blocks():
        if f"_{number}_" in key:
            data = bytearray(m.store.get(key))
            data[len(data) // 2] ^= 4
            m.store.put(key, bytes(data))


async def test_every_slice_gets_the_fingerprints_of_its_blocks() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        for at in range(0, len(DATA), 10_000):
            await m.write(handle, at, DATA[at : at + 10_000])
        await m.vfs.flush(handle.fh)
        expected = b"".join(fingerprint_of(DATA[at : at + BLOCK]) for at in range(0, len(DATA), BLOCK))
        assert list((await marks(m, handle)).values()) == [expected]
        for at in (10 * BLOCK, 30 * BLOCK, 50 * BLOCK, 20 * BLOCK, 40 * BLOCK, 5 * BLOCK):  # some share a slice
            await m.write(handle, at, b"scattered")
        await m.vfs.flush(handle.fh)
        assert set(await marks(m, handle)) == {record.id for record in await m.records(handle)}
        await m.close(handle)
        assert (await m.content(b"f"))[: len(DATA)] == DATA


async def test_what_was_begun_before_they_were_turned_on_gets_none() -> None:
    async with mounted() as m:
        m.meta.fingerprinting = False
        handle = await m.create(b"f")
        await m.write(handle, 0, DATA[:BLOCK])
        m.meta.fingerprinting = True
        await m.write(handle, BLOCK, DATA[BLOCK:])
        await m.vfs.flush(handle.fh)
        await m.close(handle)
        assert await m.content(b"f") == DATA


@pytest.mark.logs("is bad: .* not those that were written", "read inode")
async def test_rotten_bytes_are_an_error() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, DATA)
        await m.close(handle)
        rot(m, 1)
        handle = await m.open(b"f", RDONLY)
        assert await m.read(handle, 0, BLOCK) == DATA[:BLOCK]
        for offset, size in ((BLOCK, 1), (BLOCK - 1, 2), (2 * BLOCK - 100, 200), (0, len(DATA))):
            with pytest.raises(FsError) as caught:
                await m.read(handle, offset, size)
            assert caught.value.errno == errno.EIO
        assert await m.read(handle, 2 * BLOCK, 2000) == DATA[2 * BLOCK :]
        await m.close(handle)
        stats = m.vfs.blocks.stats
        assert stats.fingerprints_wrong == 4
        assert stats.fingerprints_checked > 4


async def test_compaction_makes_a_new_one_and_the_old_go() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        for number in range(3):
            await m.write(handle, number * 40_000, DATA[number * 40_000 :][:40_000])
            await m.vfs.flush(handle.fh)
        assert handle.file is not None
        compactor = Compactor(m.meta, m.vfs.blocks, m.vfs.files, m.vfs.durability)
        assert await compactor.compact(handle.file.ino, 0)
        await m.vfs.cleaner.work_off()
        (record,) = await m.records(handle)
        expected = b"".join(fingerprint_of(DATA[at : min(at + BLOCK, 120_000)]) for at in (0, BLOCK))
        assert await marks(m, handle) == {record.id: expected}
        assert len([ref async for page in fingerprints.all_slices(m.meta.engine) for ref in page]) == 1
        await m.close(handle)


@pytest.mark.logs("is bad: .* not those that were written", "compaction of inode .* failed")
async def test_compaction_does_not_bless_rotten_bytes() -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        for number in range(3):
            await m.write(handle, number * 1000, DATA[:1000])
            await m.vfs.flush(handle.fh)
        before = await m.records(handle)
        rot(m, 0)
        assert handle.file is not None
        compactor = Compactor(m.meta, m.vfs.blocks, m.vfs.files, m.vfs.durability)
        assert not await compactor.compact(handle.file.ino, 0)
        assert await m.records(handle) == before
        await m.close(handle)


async def test_only_new_slices_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as m:
        handle = await m.create(b"f")
        ask = m.meta.fingerprints
        asked: list[int] = []

        async def counted(refs: set[SliceRef]) -> dict[int, bytes]:
            asked.append(len(refs))
            return await ask(refs)

        monkeypatch.setattr(m.meta, "fingerprints", counted)
        await m.write(handle, 0, DATA[:1000])
        await m.vfs.flush(handle.fh)
        file = handle.file
        assert file is not None
        for number in range(4):  # as another client does it
            slice_id = await m.meta.new_slice_id()
            mark = await m.vfs.blocks.put(slice_id, 0, b"%010d" % number, mark=True)
            await m.meta.write_slices(file.ino, 0, [Slice(number * 10, slice_id, 10, 0, 10)], 1, mark)
            for chunk in file.records.values():
                chunk.expires = 0
            assert await m.read(handle, number * 10, 20) == b"%010d" % number + DATA[number * 10 + 10 :][:10]
        assert asked == [2, 1, 1, 1]
        await m.close(handle)


async def test_what_has_a_fingerprint_is_never_lent_unread(tmp_path: Path) -> None:
    store = FileStore(f"{tmp_path}/objects/")
    store.create()
    async with mounted(store) as m:
        m.vfs.reader.lend_most = BLOCK
        handle = await m.create(b"f")
        await m.write(handle, 0, DATA)
        await m.vfs.flush(handle.fh)
        assert await m.vfs.read(handle.fh, 0, BLOCK) == DATA[:BLOCK]
        assert m.vfs.blocks.stats.fingerprints_checked
