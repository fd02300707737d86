"""Two mounts of one volume: what one takes in of the other's changes."""

import os

import pytest
import trio

from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import Attr, Ino
from tests.vfs.mounted import RDWR, ScriptedStore, mount, mounted

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
