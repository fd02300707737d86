"""Data of writes that is read right to where it belongs: guesses that hit, guesses that miss, and nothing overwritten by either."""

import random
from typing import Any

import pytest
import trio
import trio.testing

from jfs.vfs import landing as landing_module
from jfs.vfs.handles import Handle
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import BLOCK, KIB, MIB, WRONLY, Mounted, ScriptedStore, mounted, pattern

LARGE = 4 * KIB


@pytest.fixture(autouse=True)
def small_writes_are_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing_module, "LARGE", LARGE)


class Reader:
    """Does what the reader of requests does: puts a write's data into the room that is offered."""

    def __init__(self, m: Mounted) -> None:
        self.m = m
        self.landing = m.vfs.landing
        self.hits: list[bool] = []
        asked = self.landing.is_at

        def is_at(*where: Any) -> bool:
            self.in_place = asked(*where)
            return self.in_place

        self.watched = is_at
        self.in_place = False

    async def write(self, handle: Handle, offset: int, data: bytes) -> None:
        """`hits` says of each write whether its data was in place already."""
        room = self.landing.room()
        given: bytes | memoryview = data
        if room is not None:
            filler = b"\xee" * len(room)
            room[:] = filler  # whatever lies there after a wrong guess must not matter
            if len(data) <= len(room):
                room[: len(data)] = data
                given = self.landing.landed = room[: len(data)]
        buffer, start = handle.file.writer.tail() if handle.file is not None else (None, 1)
        spare = self.landing._spare
        place = (buffer, start) if buffer is not None else (spare, 0)
        self.hits.append(place[0] is not None and self.landing.is_at(given, place[0], place[1]))
        assert await self.m.vfs.write(handle.fh, offset, given) == len(data)


async def test_a_row_of_large_writes_is_read_in_place() -> None:
    async with mounted() as m:
        handle = await m.create(b"f", WRONLY)
        reader = Reader(m)
        data = pattern(4 * BLOCK)
        for offset in range(0, len(data), BLOCK // 4):
            await reader.write(handle, offset, data[offset : offset + BLOCK // 4])
        assert reader.hits == [False, False] + [True] * 14, "blocks that begin are guessed too"
        await m.close(handle)
        assert await m.content(b"f") == data


async def test_two_files_that_take_turns_are_told_apart() -> None:
    async with mounted() as m:
        handles = [await m.create(name, WRONLY) for name in (b"a", b"b")]
        reader = Reader(m)
        contents = [pattern(2 * BLOCK, seed) for seed in (1, 2)]
        for offset in range(0, 2 * BLOCK, BLOCK // 4):
            for handle, content in zip(handles, contents, strict=True):
                await reader.write(handle, offset, content[offset : offset + BLOCK // 4])
        assert all(reader.hits[4:])
        for name, handle, content in zip((b"a", b"b"), handles, contents, strict=True):
            await m.close(handle)
            assert await m.content(name) == content


async def test_the_rest_of_a_large_write_ends_no_row() -> None:
    """A buffer that begins within a page is cut by the kernel: two files take turns, each with a large part and a few bytes."""
    async with mounted() as m:
        handles = [await m.create(name, WRONLY) for name in (b"a", b"b")]
        reader = Reader(m)
        data = pattern(BLOCK // 4)
        for offset in range(0, BLOCK, BLOCK // 4):
            for handle in handles:
                await reader.write(handle, offset, data[:-10])
                await reader.write(handle, offset + len(data) - 10, data[-10:])
        assert all(reader.hits[8::2]), "the large parts"
        for name, handle in zip((b"a", b"b"), handles, strict=True):
            await m.close(handle)
            assert await m.content(name) == data * 4


async def test_small_writes_end_the_guessing() -> None:
    async with mounted() as m:
        handle = await m.create(b"f", WRONLY)
        for number in range(4):
            await m.write(handle, number * LARGE, bytes(LARGE))
        assert m.vfs.landing.room() is not None
        for number in range(4):
            await m.write(handle, 4 * LARGE + number, b"x")
        assert m.vfs.landing.room() is None


async def test_small_writes_are_not_guessed() -> None:
    async with mounted() as m:
        handle = await m.create(b"f", WRONLY)
        for offset in range(0, 10 * KIB, KIB):
            assert m.vfs.landing.room() is None
            await m.write(handle, offset, bytes(KIB))


async def test_no_guess_does_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewrites, gaps, appends, flushes and several files in any order."""
    chance = random.Random(20)
    async with mounted() as m:
        reader = Reader(m)
        names = [b"a", b"b", b"c"]
        handles = {name: await m.create(name) for name in names}
        model = {name: bytearray() for name in names}
        for step in range(600):
            name = chance.choice(names) if chance.random() < 0.3 else names[step // 40 % 3]
            content = model[name]
            size = chance.choice([100, LARGE, LARGE + 1, BLOCK // 4, BLOCK // 2, BLOCK])
            offset = len(content) if chance.random() < 0.8 else chance.randrange(len(content) + 2 * BLOCK)
            data = chance.randbytes(size)
            await reader.write(handles[name], offset, data)
            content.extend(bytes(max(0, offset + size - len(content))))
            content[offset : offset + size] = data
            if chance.random() < 0.05:
                await m.vfs.flush(handles[name].fh)
            if chance.random() < 0.02:
                assert await m.read(handles[name], 0, len(content)) == content
        assert sum(reader.hits) > 100
        for name in names:
            await m.close(handles[name])
            assert await m.content(name) == model[name]


async def test_data_that_has_to_wait_is_moved_out_of_the_way() -> None:
    """While a truncate keeps a write waiting, the room is offered to the next one."""
    async with mounted() as m:
        reader = Reader(m)
        first, second = await m.create(b"first", WRONLY), await m.create(b"second", WRONLY)
        for offset in range(0, 4 * LARGE, LARGE):
            await reader.write(first, offset, bytes(LARGE))
        assert first.file is not None
        mine = pattern(LARGE, 7)
        async with trio.open_nursery() as nursery:
            async with first.file.writer.paused():
                nursery.start_soon(reader.write, first, 4 * LARGE, mine)
                await trio.testing.wait_all_tasks_blocked()
                for offset in range(0, 3 * LARGE, LARGE):
                    await reader.write(second, offset, b"\xff" * LARGE)
        await m.close(first)
        await m.close(second)
        assert (await m.content(b"first"))[4 * LARGE :] == mine


async def test_a_spare_buffer_goes_back_when_nobody_comes_for_it() -> None:
    store = ScriptedStore()
    async with mounted(store=store, options=VfsOptions(buffer_size=16 * MIB)) as m:
        handle = await m.create(b"f", WRONLY)
        reader = Reader(m)
        for offset in range(0, BLOCK, BLOCK // 4):
            await reader.write(handle, offset, bytes(BLOCK // 4))
        assert m.vfs.landing.room() is not None
        await m.close(handle)
        used = m.vfs.pool.used
        assert used == BLOCK
        m.vfs.landing.tick()
        m.vfs.landing.tick()
        assert m.vfs.pool.used == 0
        assert m.vfs.landing.room() is None
