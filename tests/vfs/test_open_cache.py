"""`--open-cache`: what is believed, for how long, and what is not."""

import errno
import os

import pytest

from jfs.errors import FsError
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import ROOT, ROOT_INO, Attr, Cred
from jfs.vfs.open_cache import OpenCache
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import MIB, RDONLY, WRONLY, Mounted, ScriptedStore, mount, mounted

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
        await write(other, b"f", b"newer")
        assert await m.content(b"f") == b"old"
        expire(m)
        assert await m.content(b"f") == b"newer"


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
        cache.saw(ino, Attr(1), cache.changes)
    assert len(cache) == 3
    assert cache.attr(1) is None
    assert cache.attr(4) is not None
    off = OpenCache(0.0, 3)
    off.saw(1, Attr(1), 0)
    assert len(off) == 0


async def test_an_answer_that_an_own_change_overtook_is_not_believed() -> None:
    cache = OpenCache(1000.0, 0)
    asked_at = cache.changes
    cache.forget(7)
    cache.saw(7, Attr(1), asked_at)
    assert cache.attr(7) is None
