"""Random histories of one file against a bytearray: writes, appends, truncates, reads, flushes, reopening, compaction."""

from typing import Final

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import CHUNK_SIZE, ROOT
from jfs.vfs.handles import Handle
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import BLOCK, RDWR, FarEngine, Mounted, mounted, pattern

WRITES: Final = ("write", "append", "truncate", "scatter")
APPEND: Final = 0o2000
SPAN: Final = 5 * BLOCK

positions = st.one_of(
    st.integers(0, SPAN),
    st.integers(0, SPAN // BLOCK).map(lambda n: n * BLOCK),
    st.integers(0, 40).map(lambda n: n * 4096),
)
sizes = st.one_of(st.integers(1, 300), st.sampled_from([4096, BLOCK, BLOCK + 1]), st.integers(1, 2 * BLOCK))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), positions, sizes),
        st.tuples(st.just("scatter"), st.integers(0, 63), st.integers(5, 40)),
        st.tuples(st.just("append"), st.just(0), sizes),
        st.tuples(st.just("truncate"), positions, st.just(0)),
        st.tuples(st.just("read"), positions, sizes),
        st.tuples(st.sampled_from(["flush", "fsync", "seal", "reopen", "compact"]), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=40,
)


class Model:
    """A file around `base`: everything below is a hole."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.bytes = bytearray()
        """From `base` on."""

    def write(self, at: int, data: bytes) -> None:
        if len(self.bytes) < at:
            self.bytes.extend(bytes(at - len(self.bytes)))
        self.bytes[at : at + len(data)] = data

    def truncate(self, length: int) -> None:
        if length < len(self.bytes):
            del self.bytes[length:]
        else:
            self.bytes.extend(bytes(length - len(self.bytes)))


async def change(m: Mounted, model: Model, handle: Handle, step: tuple[str, int, int], seed: int) -> None:
    """One step that changes the bytes, on both."""
    kind, at, size = step
    base = model.base
    if kind == "truncate":
        assert handle.file is not None
        attr = await m.vfs.setattr(ROOT, handle.file.ino, handle.fh, AttrChange(), base + at)
        assert attr.length == base + at
        model.truncate(at)
    elif kind == "append":
        await m.write(handle, 0, pattern(size, seed))
        model.write(len(model.bytes), pattern(size, seed))
    elif kind == "write":
        await m.write(handle, base + at, pattern(size, seed))
        model.write(at, pattern(size, seed))
    else:  # enough small writes here and there to be packed into one slice
        for i in range(size):
            place, data = (at + i * 37) % 64 * 4500, pattern(3000 + 100 * (i % 20), seed + i)
            await m.write(handle, base + place, data)
            model.write(place, data)


async def play(m: Mounted, model: Model, history: list[tuple[str, int, int]]) -> None:
    base = model.base
    handle = await m.create(b"f")
    appender = await m.open(b"f", RDWR | APPEND)
    ino = handle.file.ino  # type: ignore[union-attr]
    await m.vfs.setattr(ROOT, ino, handle.fh, AttrChange(), base)
    for number, (step, at, size) in enumerate(history):
        if step in WRITES:
            await change(m, model, appender if step == "append" else handle, (step, at, size), number)
        elif step == "read":
            assert await m.read(handle, base + at, size) == bytes(model.bytes[at : at + size])
        elif step == "flush":
            await m.vfs.flush(appender.fh)
        elif step == "fsync":
            await m.vfs.fsync(handle.fh)
        elif step == "seal":
            m.vfs.writes.seal_all()
        elif step == "compact":
            for index in {base // CHUNK_SIZE, (base + SPAN) // CHUNK_SIZE}:
                await m.vfs.compactor.compact(ino, index)
        else:
            await m.close(handle)
            handle = await m.open(b"f")
        assert (await m.vfs.getattr(ino)).length == base + len(model.bytes)
    assert await m.read(handle, base, 1 << 30) == bytes(model.bytes)
    await m.close(handle)
    await m.close(appender)
    handle = await m.open(b"f", 0)
    assert await m.read(handle, base, 1 << 30) == bytes(model.bytes)
    await m.close(handle)
    assert m.vfs.pool.used == 0


def run_history(base: int, engine: MemoryEngine, buffer_size: int, history: list[tuple[str, int, int]]) -> None:
    async def main() -> None:
        options = VfsOptions(buffer_size=buffer_size, compact=False)
        async with mounted(engine=engine, options=options, trash_days=0) as m:
            await play(m, Model(base), history)

    trio.run(main)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps, st.sampled_from([MemoryEngine, FarEngine]), st.sampled_from([0, 16 << 20]))
def test_a_small_file(history: list[tuple[str, int, int]], engine: type[MemoryEngine], buffer_size: int) -> None:
    run_history(0, engine(), buffer_size, history)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps, st.sampled_from([MemoryEngine, FarEngine]))
def test_a_file_across_chunks(history: list[tuple[str, int, int]], engine: type[MemoryEngine]) -> None:
    run_history(CHUNK_SIZE - 2 * BLOCK - 77, engine(), 0, history)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), min_size=1, max_size=12), min_size=2, max_size=4)
)
def test_tasks_that_write_and_read_at_once(work: list[list[tuple[int, int]]]) -> None:
    """Each task owns every nth page; whatever the others do, it reads what it wrote."""
    page = 9000

    async def main() -> None:
        async with mounted(options=VfsOptions(buffer_size=0, compact=False)) as m:
            await m.close(await m.create(b"f"))

            async def task(number: int, steps_: list[tuple[int, int]]) -> None:
                handle = await m.open(b"f")
                mine: dict[int, bytes] = {}
                for count, (slot, action) in enumerate(steps_):
                    place = (slot * len(work) + number) * page
                    if action < 2:
                        mine[place] = pattern(page, number * 1000 + count)
                        await m.write(handle, place, mine[place])
                    if action:
                        await m.vfs.flush(handle.fh)
                    await trio.lowlevel.checkpoint()
                    for at, data in mine.items():
                        assert await m.read(handle, at, page) == data
                await m.close(handle)

            async with trio.open_nursery() as nursery:
                for number, steps_ in enumerate(work):
                    nursery.start_soon(task, number, steps_)

    trio.run(main)
