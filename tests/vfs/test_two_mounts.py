"""Two mounts of one volume: what one takes in of the other's changes."""

import errno
import os
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from jfs.errors import FsError
from jfs.meta import slices
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import CHUNK_SIZE, ROOT, ROOT_INO, Attr, Ino
from jfs.vfs.handles import Handle
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import BLOCK, MIB, RDONLY, RDWR, FarEngine, Mounted, ScriptedStore, mount, mounted, pattern

APPENDING = RDWR | os.O_APPEND


async def test_an_answer_that_was_overtaken_by_a_younger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make the file as short as it was, and the next line would go over the other mount's."""
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store) as here, mount(engine, store) as there:
        first = await here.create(b"log", APPENDING)
        assert first.file is not None
        await here.write(first, 0, b"one\n")
        await here.vfs.flush(first.fh)
        asked, answered = trio.Event(), trio.Event()
        getattr_ = here.meta.getattr

        async def slowly(ino: Ino, *, fresh: bool = False) -> Attr:
            attr = await getattr_(ino, fresh=fresh)
            asked.set()
            await answered.wait()
            return attr

        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(here.meta, "getattr", slowly)
            nursery.start_soon(here.vfs.getattr, first.file.ino)
            await asked.wait()
            monkeypatch.undo()
            other = await there.open(b"log", APPENDING)
            await there.write(other, 0, b"two\n")
            await there.close(other)
            last = await here.open(b"log", APPENDING)
            answered.set()
        await here.write(last, 0, b"three\n")
        await here.close(last)
        await here.close(first)
        assert await there.content(b"log") == b"one\ntwo\nthree\n"


async def test_what_is_open_and_was_removed_by_another_mount_goes_on_answering() -> None:
    """Nobody sustains it; fstat(2) works as on a local file system."""
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, trash_days=0) as here, mount(engine, store) as there:
        await here.close(await here.create(b"f"))
        folder = (await here.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
        handle, listing = await there.open(b"f"), await there.vfs.opendir(ROOT, folder)
        assert handle.file is not None
        await there.write(handle, 0, b"data")
        await there.vfs.flush(handle.fh)
        await there.write(handle, 4, b"more")
        await here.vfs.unlink(ROOT, ROOT_INO, b"f")
        await here.vfs.rmdir(ROOT, ROOT_INO, b"d")
        attr = await there.vfs.getattr(handle.file.ino)
        assert (attr.length, attr.nlink) == (8, 0)
        assert (await there.vfs.getattr(folder)).nlink == 0
        with pytest.raises(FsError) as caught:
            await there.close(handle)
        assert caught.value.errno == errno.EBADF
        await there.vfs.releasedir(listing)
        await there.vfs.release(handle.fh)
        for ino in (handle.file.ino, folder):
            with pytest.raises(FsError) as caught:
                await there.vfs.getattr(ino)
            assert caught.value.errno == errno.ENOENT


async def look_up(m: Mounted, ino: Ino) -> None:
    await m.vfs.lookup(ROOT, ROOT_INO, b"f")


async def list_all(m: Mounted, ino: Ino) -> None:
    listing = await m.vfs.opendir(ROOT, ROOT_INO)
    offset = 0
    while rows := await m.vfs.readdir(listing, offset):
        offset = rows[-1][3]
    await m.vfs.releasedir(listing)


async def get_attributes(m: Mounted, ino: Ino) -> None:
    await m.vfs.getattr(ino)


async def set_attributes(m: Mounted, ino: Ino) -> None:
    await m.vfs.setattr(ROOT, ino, None, AttrChange(mode=0o600), None)


async def link(m: Mounted, ino: Ino) -> None:
    await m.vfs.link(ROOT, ino, ROOT_INO, b"g")


@pytest.mark.parametrize("tell", [look_up, list_all, get_attributes, set_attributes, link])
async def test_once_a_new_mtime_is_told_an_open_file_reads_new_bytes(
    tell: Callable[[Mounted, Ino], Awaitable[None]],
) -> None:
    """The kernel would keep old ones for as long as that mtime stays."""
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store) as here, mount(engine, store) as there:
        writer = await there.create(b"f")
        await there.write(writer, 0, b"old")
        await there.vfs.flush(writer.fh)
        reader = await here.open(b"f", RDONLY)
        assert reader.file is not None
        assert await here.read(reader, 0, 3) == b"old"
        await there.write(writer, 0, b"new")
        await there.close(writer)
        await tell(here, reader.file.ino)
        assert await here.read(reader, 0, 3) == b"new"
        await here.close(reader)


class Relay:
    """One file that two mounts hand to each other, and compact both; what must be in it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.base = self.dice.choice((0, CHUNK_SIZE - 3 * BLOCK - 77))
        """Below it is a hole."""
        self.span = self.dice.choice((5, 20, 40)) * BLOCK
        self.bytes = bytearray()
        """From `base` on."""

    async def turn(self, m: Mounted) -> None:
        handle = await m.open(b"f")
        for _ in range(self.dice.randrange(1, 6)):
            action = self.dice.choices((self.write, self.cut, self.flush, self.look), (12, 2, 4, 3))[0]
            await action(m, handle)
        await m.close(handle)

    def place(self) -> int:
        at = self.dice.randrange(self.span)
        return at if self.dice.random() < 0.6 else at // BLOCK * BLOCK

    async def write(self, m: Mounted, handle: Handle) -> None:
        at, size = self.place(), self.dice.choice((self.dice.randrange(1, 300), 4096, BLOCK, 3 * BLOCK + 5))
        data = pattern(size, self.dice.randrange(1 << 30))
        await m.write(handle, self.base + at, data)
        self.bytes.extend(bytes(max(0, at - len(self.bytes))))
        self.bytes[at : at + size] = data

    async def cut(self, m: Mounted, handle: Handle) -> None:
        length = self.place()
        assert handle.file is not None
        await m.vfs.setattr(ROOT, handle.file.ino, handle.fh, AttrChange(), self.base + length)
        del self.bytes[length:]
        self.bytes.extend(bytes(length - len(self.bytes)))

    async def flush(self, m: Mounted, handle: Handle) -> None:
        await m.vfs.flush(handle.fh)

    async def look(self, m: Mounted, handle: Handle) -> None:
        at, size = self.place(), self.dice.randrange(1, 3 * BLOCK)
        assert await m.read(handle, self.base + at, size) == bytes(self.bytes[at : at + size])

    async def compact(self, mounts: list[Mounted], ino: Ino) -> None:
        """On one mount, or on both at the same time."""
        index = (self.base + self.dice.choice((0, self.span))) // CHUNK_SIZE
        async with trio.open_nursery() as nursery:
            for m in self.dice.choice((mounts, [self.dice.choice(mounts)])):
                nursery.start_soon(m.vfs.compactor.compact, ino, index)


async def play(seed: int) -> None:
    relay = Relay(seed)
    dice = relay.dice
    engine, store = dice.choice((MemoryEngine, FarEngine))(), ScriptedStore()
    options = VfsOptions(buffer_size=dice.choice((0, 16 * MIB)), compact=False)
    async with (
        mounted(engine=engine, store=store, options=options, trash_days=dice.choice((0, 0, 1))) as first,
        mount(engine, store, options) as second,
    ):
        mounts = [first, second]
        handle = await first.create(b"f")
        assert handle.file is not None
        ino = handle.file.ino
        await first.vfs.setattr(ROOT, ino, handle.fh, AttrChange(), relay.base)
        await first.close(handle)
        for _ in range(dice.randrange(5, 40)):
            await relay.turn(dice.choice(mounts))
            if dice.random() < 0.5:
                await relay.compact(mounts, ino)
            if dice.random() < 0.5:
                await dice.choice(mounts).vfs.cleaner.work_off()
        for m in mounts:
            await m.vfs.cleaner.work_off()
            handle = await m.open(b"f", 0)
            assert await m.read(handle, relay.base, 1 << 30) == bytes(relay.bytes)
            await m.close(handle)


@pytest.mark.parametrize(
    ("keep_from", "fill", "parts_at_most"),
    [(slices.KEEP_FROM, slices.FILL, slices.PARTS_AT_MOST), (4096, 4096, slices.PARTS_AT_MOST), (4096, 100, 3)],
)
def test_a_file_that_two_mounts_write_and_compact(
    keep_from: int, fill: int, parts_at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "KEEP_FROM", keep_from)  # leading slices of so many bytes may stay as they are
    monkeypatch.setattr(slices, "FILL", fill)
    monkeypatch.setattr(slices, "PARTS_AT_MOST", parts_at_most)
    for seed in range(50):
        try:
            trio.run(play, seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
