"""`--open-cache`: what is believed, for how long, and what is not."""

import errno
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from jfs.errors import FsError
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.recent import Recent
from jfs.meta.types import ROOT, ROOT_INO, Attr, Cred, Entry, Ino
from jfs.vfs.files import Asked
from jfs.vfs.handles import Handle
from jfs.vfs.open_cache import OpenCache
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import (
    BLOCK,
    MIB,
    RDONLY,
    RDWR,
    WRONLY,
    FarEngine,
    Mounted,
    ScriptedStore,
    mount,
    mounted,
    pattern,
)

OPTIONS = VfsOptions(buffer_size=16 * MIB, open_cache_s=1000.0, open_cache_limit=100)


def expire(m: Mounted) -> None:
    """The seconds are over."""
    for known in m.vfs.open_cache._known.values():
        known.until = 0.0
        for chunk in known.records.values():
            chunk.expires = 0.0


async def write(m: Mounted, name: bytes, data: bytes) -> None:
    handle = await m.open(name, WRONLY)
    await m.write(handle, 0, data)
    await m.close(handle)


async def content_of(m: Mounted, ino: Ino) -> bytes:
    """The file through a fresh handle, by its inode: no name is looked up."""
    handle = await m.vfs.open(ROOT, ino, RDONLY)
    data = await m.read(handle, 0, 1 << 40)
    await m.close(handle)
    return data


class Questions:
    """How often the database was asked for attributes, or a chunk's records."""

    def __init__(self, m: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        begin = m.meta.engine.transaction

        def counted(*, write: bool) -> object:
            self.count += 1
            return begin(write=write)

        monkeypatch.setattr(m.meta.engine, "transaction", counted)


async def test_an_open_soon_after_another_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(options=OPTIONS) as m:
        await m.close(await m.create(b"f"))
        await write(m, b"f", b"hello")
        ino = (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).ino
        first = await m.vfs.open(ROOT, ino, RDONLY)
        assert await m.read(first, 0, 100) == b"hello"
        await m.close(first)
        questions = Questions(m, monkeypatch)
        for _ in range(3):
            handle = await m.vfs.open(ROOT, ino, RDONLY)
            assert (await m.vfs.getattr(ino, handle.fh)).length == 5
            assert await m.read(handle, 0, 100) == b"hello"
            await m.close(handle)
        assert questions.count == 0
        monkeypatch.undo()


async def test_changes_of_others_are_seen_when_the_time_is_over() -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, options=OPTIONS) as m, mount(engine, store) as other:
        await m.close(await m.create(b"f"))
        await write(m, b"f", b"old")
        assert await m.content(b"f") == b"old"
        ino = (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).ino
        await write(other, b"f", b"newer")
        assert await content_of(m, ino) == b"old"
        expire(m)
        assert await content_of(m, ino) == b"newer"


async def test_own_changes_are_seen_at_once() -> None:
    async with mounted(options=OPTIONS, trash_days=0) as m:
        handle = await m.create(b"f")
        await m.write(handle, 0, b"one")
        await m.close(handle)
        ino = handle.file.ino  # type: ignore[union-attr]
        assert await m.content(b"f") == b"one"
        await write(m, b"f", b"three")
        assert await m.content(b"f") == b"three"
        await m.vfs.setattr(ROOT, ino, None, AttrChange(mode=0o600), None)
        assert (await m.vfs.getattr(ino)).mode == 0o600
        await m.vfs.setattr(ROOT, ino, None, AttrChange(), 2)
        assert await m.content(b"f") == b"th"
        emptied = await m.open(b"f", WRONLY | os.O_TRUNC)
        assert (await m.vfs.getattr(ino)).length == 0
        await m.close(emptied)
        assert await m.content(b"f") == b""
        held = await m.open(b"f", RDONLY)
        assert (await m.vfs.getattr(ino)).nlink == 1
        await m.vfs.link(ROOT, ino, ROOT_INO, b"g")
        assert (await m.vfs.getattr(ino)).nlink == 2
        await m.vfs.unlink(ROOT, ROOT_INO, b"g")
        assert (await m.vfs.getattr(ino)).nlink == 1
        await m.close(held)


async def test_permissions_are_those_that_are_believed() -> None:
    nobody = Cred(uid=65534, gid=65534, groups=(), check=True)
    async with mounted(options=OPTIONS) as m:
        handle = await m.create(b"f")
        ino = handle.file.ino  # type: ignore[union-attr]
        await m.vfs.setattr(ROOT, ino, None, AttrChange(mode=0o600), None)
        await m.close(handle)
        await m.close(await m.open(b"f"))
        with pytest.raises(FsError) as caught:
            await m.vfs.open(nobody, ino, RDONLY)
        assert caught.value.errno == errno.EACCES
        assert not m.meta.is_open(ino)


async def test_a_removed_file_cannot_be_opened() -> None:
    async with mounted(options=OPTIONS, trash_days=0) as m:
        await m.close(await m.create(b"f"))
        ino = (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).ino
        assert await m.content(b"f") == b""
        await m.vfs.unlink(ROOT, ROOT_INO, b"f")
        with pytest.raises(FsError) as caught:
            await m.vfs.open(ROOT, ino, RDONLY)
        assert caught.value.errno == errno.ENOENT


async def test_it_is_bounded_and_off_without_seconds() -> None:
    cache = OpenCache(1000.0, 3)
    for ino in range(5):
        cache.saw(ino, Attr(1), Asked(ino, 0, 0), keep=True)
    assert len(cache) == 3
    assert cache.attr(1) is None
    assert cache.attr(4) is not None
    off = OpenCache(0.0, 3)
    off.saw(1, Attr(1), Asked(1, 0, 0), keep=True)
    assert len(off) == 0


async def test_an_answer_that_an_own_change_overtook_is_not_believed() -> None:
    cache = OpenCache(1000.0, 0)
    asked = Asked(1, 0, cache.changes)
    cache.forget(7)
    cache.saw(7, Attr(1), asked, keep=True)
    assert cache.attr(7) is None


async def list_all(m: Mounted) -> None:
    listing = await m.vfs.opendir(ROOT, ROOT_INO)
    offset = 0
    while rows := await m.vfs.readdir(listing, offset):
        offset = rows[-1][3]
    await m.vfs.releasedir(listing)


async def look_up(m: Mounted) -> None:
    await m.vfs.lookup(ROOT, ROOT_INO, b"f")


Tell = Callable[[Mounted], Awaitable[None]]


@asynccontextmanager
async def two_mounts(engine: MemoryEngine | None = None) -> AsyncGenerator[tuple[Mounted, Mounted, Ino], None]:
    """One that believes for long and has read `f` when it held "old", another that has made it longer since."""
    engine, store = engine or MemoryEngine(), ScriptedStore()
    async with (
        mounted(engine=engine, store=store, options=OPTIONS, trash_days=0) as here,
        mount(engine, store) as there,
    ):
        await there.close(await there.create(b"f"))
        await write(there, b"f", b"old")
        assert await here.content(b"f") == b"old"
        ino = (await there.vfs.lookup(ROOT, ROOT_INO, b"f")).ino
        await write(there, b"f", b"newer data")
        yield here, there, ino


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("tell", [look_up, list_all])
async def test_what_was_told_since_is_what_is_believed(tell: Tell, opened: bool) -> None:
    """A stat would go back to the old length, and reads would end there."""
    async with two_mounts() as (here, _, ino):
        held = await here.vfs.open(ROOT, ino, RDONLY) if opened else None
        assert (await here.vfs.getattr(ino)).length == 3
        await tell(here)
        assert (await here.vfs.getattr(ino)).length == 10
        if held is not None:
            assert await here.read(held, 0, 10) == b"newer data"
            await here.close(held)
        assert await content_of(here, ino) == b"newer data"


@pytest.mark.parametrize("tell", [look_up, list_all])
async def test_what_was_told_since_changes_nothing_but_the_time_where_it_is_the_same(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(options=OPTIONS) as m:
        await m.close(await m.create(b"f"))
        await write(m, b"f", b"hello")
        assert await m.content(b"f") == b"hello"
        ino = (await m.vfs.lookup(ROOT, ROOT_INO, b"f")).ino
        await tell(m)
        questions = Questions(m, monkeypatch)
        assert await content_of(m, ino) == b"hello"
        assert questions.count == 0
        monkeypatch.undo()


async def test_a_lookup_keeps_nothing_that_was_not_opened() -> None:
    async with mounted(options=OPTIONS) as m:
        await m.vfs.mknod(ROOT, ROOT_INO, b"f", 0o644, 0)
        await look_up(m)
        await list_all(m)
        assert len(m.vfs.open_cache) == 0


async def test_an_own_change_elsewhere_does_not_bring_back_what_was_true_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer may be older than the change; but it was told, so what it contradicts is over."""
    async with two_mounts() as (here, _, ino):
        held = await here.vfs.open(ROOT, ino, RDONLY)
        lookup = here.meta.lookup

        async def overtaken(cred: Cred, parent: Ino, name: bytes) -> Entry:
            entry = await lookup(cred, parent, name)
            await here.close(await here.create(b"other"))
            await here.vfs.unlink(ROOT, ROOT_INO, b"other")
            return entry

        monkeypatch.setattr(here.meta, "lookup", overtaken)
        assert (await here.vfs.lookup(ROOT, ROOT_INO, b"f")).attr.length == 10
        monkeypatch.undo()
        assert (await here.vfs.getattr(ino)).length == 10
        assert await here.read(held, 0, 100) == b"newer data"
        await here.close(held)


async def test_a_listing_does_not_tell_what_was_true_before_a_lookup() -> None:
    async with two_mounts() as (here, there, ino):
        await write(there, b"f", b"newer than the newer data")
        listing = await here.vfs.opendir(ROOT, ROOT_INO)
        offset = 0
        while [row[1] for row in await here.vfs.readdir(listing, offset)][:1] != [ino]:
            offset += 1
        await write(there, b"f", b"newer than the newer data, and longer")
        await look_up(here)
        row = (await here.vfs.readdir(listing, offset))[0]
        assert row[2] is not None
        assert row[2].length == 37
        await here.vfs.releasedir(listing)


async def test_records_of_now_come_with_the_length_of_now() -> None:
    """Believed attributes and new records would make the beginning of the new file: neither the old one nor the new."""
    async with two_mounts() as (here, _, ino):
        held = await here.vfs.open(ROOT, ino, RDONLY)
        assert held.file is not None
        held.file.records.clear()
        assert await here.read(held, 0, 100) == b"newer data"
        assert (await here.vfs.getattr(ino)).length == 10
        await here.close(held)


async def test_blocks_that_another_mount_has_removed_are_those_of_the_old_length() -> None:
    async with two_mounts() as (here, there, ino):
        await there.vfs.compactor.compact(ino, 0)
        await there.vfs.cleaner.work_off()
        held = await here.vfs.open(ROOT, ino, RDONLY)
        assert held.file is not None
        assert held.file.length == 3
        assert await here.read(held, 0, 100) == b"newer data"
        await here.close(held)


async def test_a_shorter_file_is_not_filled_with_zeros() -> None:
    async with two_mounts() as (here, there, ino):
        assert await here.content(b"f") == b"newer data"
        await there.vfs.setattr(ROOT, ino, None, AttrChange(), 4)
        held = await here.vfs.open(ROOT, ino, RDONLY)
        assert held.file is not None
        held.file.records.clear()
        assert await here.read(held, 0, 100) == b"newe"
        await here.close(held)


async def test_a_file_that_another_mount_removed_is_read_on_where_it_is_open() -> None:
    async with two_mounts() as (here, there, ino):
        await look_up(here)
        held = await here.vfs.open(ROOT, ino, RDONLY)
        assert held.file is not None
        await there.vfs.unlink(ROOT, ROOT_INO, b"f")
        held.file.records.clear()
        assert await here.read(held, 0, 100) == b"newer data"
        await here.close(held)


async def test_what_an_own_change_made_is_not_believed_for_longer_than_it_is_remembered() -> None:
    """Of a database that is far away an answer may be this mount's own memory; it is not taken for the database's."""
    engine, store = FarEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, options=OPTIONS) as here, mount(engine, store) as there:
        here.meta._recent = Recent(1000.0)
        await here.close(await here.create(b"f"))
        await write(here, b"f", b"old")
        held = await here.open(b"f", RDONLY)
        assert held.file is not None
        await here.vfs.setattr(ROOT, held.file.ino, None, AttrChange(mode=0o600), None)
        await write(there, b"f", b"newer data")
        await list_all(here)
        assert (await here.vfs.getattr(held.file.ino)).length == 10
        await here.close(held)


async def test_own_changes_of_extended_attributes_are_seen_at_once() -> None:
    async with mounted(options=OPTIONS) as m:
        held = await m.create(b"f")
        ino = held.file.ino  # type: ignore[union-attr]
        before = await m.vfs.getattr(ino)
        await m.vfs.setxattr(ROOT, ino, b"user.a", b"1", 0)
        between = await m.vfs.getattr(ino)
        await m.vfs.removexattr(ROOT, ino, b"user.a")
        assert before.ctime_ns < between.ctime_ns < (await m.vfs.getattr(ino)).ctime_ns
        await m.close(held)


async def test_the_answer_to_an_older_question_comes_too_late() -> None:
    cache = OpenCache(1000.0, 0)
    cache.saw(7, Attr(1, length=10), Asked(2, 0, 0), keep=True)
    cache.keep_records(7, Attr(1, length=10), {0: "records"})
    cache.saw(7, Attr(1, length=3), Asked(1, 0, 0), keep=True)
    attr = cache.attr(7)
    assert attr is not None
    assert attr.length == 10
    assert cache.records(7) == {0: "records"}
    cache.saw(7, Attr(1, length=11), Asked(3, 0, 0), keep=False)
    assert cache.records(7) == {}


async def test_records_of_another_time_are_not_kept() -> None:
    cache = OpenCache(1000.0, 0)
    cache.saw(7, Attr(1, length=10), Asked(1, 0, 0), keep=True)
    cache.keep_records(7, Attr(1, length=3), {0: "records"})
    assert cache.records(7) == {}


class Versions:
    """One file that a mount rewrites over and over, and how far another that believes for long has come in seeing it."""

    def __init__(self, here: Mounted, there: Mounted, ino: Ino, dice: random.Random) -> None:
        self.here = here
        self.there = there
        self.ino = ino
        self.dice = dice
        self.contents: list[bytes] = []
        self.seen = 0
        self.held: list[Handle] = []

    async def rewrite(self) -> None:
        data = pattern(self.dice.randrange(1, 3 * BLOCK // 64) * 64 + len(self.contents), len(self.contents))
        self.contents.append(data)
        handle = await self.there.vfs.open(ROOT, self.ino, RDWR | self.dice.choice((0, os.O_TRUNC)))
        await self.there.write(handle, 0, data)
        await self.there.vfs.setattr(ROOT, self.ino, handle.fh, AttrChange(), len(data))
        await self.there.close(handle)

    async def clean(self) -> None:
        await self.there.vfs.compactor.compact(self.ino, 0)
        await self.there.vfs.cleaner.work_off()

    async def expire(self) -> None:
        """Of what is believed, or of the records only."""
        for known in self.here.vfs.open_cache._known.values():
            known.until = self.dice.choice((0.0, known.until))
        for chunk in self.held[0].file.records.values() if self.held and self.held[0].file else ():
            chunk.expires = 0.0

    async def open(self) -> None:
        self.held.append(await self.here.vfs.open(ROOT, self.ino, RDONLY))

    async def close(self) -> None:
        if self.held:
            await self.here.close(self.held.pop(self.dice.randrange(len(self.held))))

    async def read(self) -> None:
        if self.held:
            data = await self.here.read(self.dice.choice(self.held), 0, 1 << 30)
            self.see(len(data))
            assert data == self.contents[self.seen]

    async def stat(self) -> None:
        self.see((await self.here.vfs.getattr(self.ino)).length)

    async def look_up(self) -> None:
        self.see((await self.here.vfs.lookup(ROOT, ROOT_INO, b"f")).attr.length)
        assert self.seen == len(self.contents) - 1

    async def list_all(self) -> None:
        await list_all(self.here)

    async def change_another(self) -> None:
        await self.here.close(await self.here.create(b"other"))
        await self.here.vfs.unlink(ROOT, ROOT_INO, b"other")

    def see(self, length: int) -> None:
        """Each version has a length of its own; never an earlier one than the last that was seen."""
        lengths = [len(data) for data in self.contents]
        assert length in lengths
        assert self.seen <= lengths.index(length)
        self.seen = lengths.index(length)


async def watch(seed: int) -> None:
    dice = random.Random(seed)
    engine, store = dice.choice((MemoryEngine, FarEngine))(), ScriptedStore()
    async with (
        mounted(engine=engine, store=store, options=OPTIONS, trash_days=0) as here,
        mount(engine, store) as there,
    ):
        here.meta._recent = dice.choice((None, Recent(1000.0)))
        made = await there.create(b"f")
        assert made.file is not None
        file = Versions(here, there, made.file.ino, dice)
        await there.close(made)
        await file.rewrite()
        steps = (
            (file.rewrite, 4),
            (file.clean, 2),
            (file.expire, 1),
            (file.open, 4),
            (file.close, 3),
            (file.read, 8),
            (file.stat, 8),
            (file.look_up, 2),
            (file.list_all, 1),
            (file.change_another, 1),
        )
        for step in dice.choices([each for each, _ in steps], [weight for _, weight in steps], k=60):
            await step()
        while file.held:
            await file.close()


def test_what_is_seen_of_a_file_that_another_mount_rewrites_is_some_version_of_it_and_never_an_earlier_one() -> None:
    for seed in range(40):
        try:
            trio.run(watch, seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
