"""Listings while the directory changes: what a row tells is what this mount knows now."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jfs.meta.client import MetaClient
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run_inline
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.transaction import Engine
from jfs.meta.types import ROOT, ROOT_INO, Attr, Ino
from jfs.vfs import directories
from tests.vfs.mounted import Mounted, mount, mounted

FILES = 60
HEAD = 2


class Listing:
    """An open directory of `FILES` files, read as the kernel does it: some rows at a time."""

    def __init__(self, m: Mounted, folder: Ino, fh: int) -> None:
        self.m = m
        self.folder = folder
        self.fh = fh
        self.offset = 0
        self.offsets: dict[bytes, int] = {}

    async def next(self, count: int) -> list[tuple[bytes, Attr | None]]:
        rows = (await self.m.vfs.readdir(self.fh, self.offset))[:count]
        for name, _, _, after in rows:
            self.offset = self.offsets[name] = after
        return [(name, attr) for name, _, attr, _ in rows]

    async def rest(self, count: int = 7) -> dict[bytes, Attr | None]:
        found: list[tuple[bytes, Attr | None]] = []
        while rows := await self.next(count):
            found += rows
        assert len(dict(found)) == len(found)
        return dict(found)

    async def ino(self, name: bytes) -> Ino:
        return (await self.m.vfs.lookup(ROOT, self.folder, name)).ino


def name_of(number: int) -> bytes:
    return b"f%03d" % number


@asynccontextmanager
async def listing(engine: Engine, count: int = HEAD + 5) -> AsyncGenerator[Listing, None]:
    """Its first `count` rows are told."""
    async with mounted(engine=engine, trash_days=0) as m:
        folder = (await m.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
        for number in range(FILES):
            await m.vfs.mknod(ROOT, folder, name_of(number), 0o100644, 0)
        fh = await m.vfs.opendir(ROOT, folder)
        listed = Listing(m, folder, fh)
        while listed.offset < count:
            await listed.next(min(7, count - listed.offset))
        yield listed
        await m.vfs.releasedir(fh)


@pytest.fixture(params=["memory", "sqlite3"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Engine, None, None]:
    made = MemoryEngine() if request.param == "memory" else Sqlite3Engine(str(tmp_path / "meta.db"), create=True)
    run_inline(made.prepare())
    yield made
    run_inline(made.close())


@pytest.mark.parametrize("page", [10, 4096])
async def test_what_this_mount_changes_is_told_as_it_is_now(
    engine: Engine, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "PAGE", page)
    async with listing(engine) as listed:
        vfs = listed.m.vfs
        await vfs.unlink(ROOT, listed.folder, name_of(7))
        await vfs.setattr(ROOT, await listed.ino(name_of(8)), None, AttrChange(mode=0o600), None)
        await vfs.rename(ROOT, listed.folder, name_of(9), listed.folder, b"z", 0)
        await vfs.rename(ROOT, listed.folder, name_of(10), listed.folder, name_of(11), 0)
        handle = await vfs.open(ROOT, await listed.ino(name_of(12)), 1)
        await vfs.write(handle.fh, 0, b"grown")
        await vfs.flush(handle.fh)
        await vfs.release(handle.fh)
        rest = await listed.rest()
        assert sorted(rest) == [*map(name_of, (5, 6, 8, *range(11, FILES))), b"z"]
        for name, attr in rest.items():
            assert attr == await vfs.getattr(await listed.ino(name)), name


async def test_unflushed_writes_show_in_rows_that_were_read_before(engine: Engine) -> None:
    async with listing(engine) as listed:
        vfs = listed.m.vfs
        handle = await vfs.open(ROOT, await listed.ino(name_of(20)), 1)
        await vfs.write(handle.fh, 0, b"grown")
        attr = (await listed.rest())[name_of(20)]
        assert attr is not None
        assert attr.length == 5
        await vfs.release(handle.fh)


async def test_what_changes_while_it_is_read_is_told_without_attributes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listing(engine, HEAD) as listed:
        readdir = MetaClient.readdir

        async def slow(self: MetaClient, *args: Any) -> Any:
            rows = await readdir(self, *args)
            await listed.m.vfs.unlink(ROOT, listed.folder, name_of(3))
            return rows

        monkeypatch.setattr(MetaClient, "readdir", slow)
        rows = dict(await listed.next(10))
        assert [name for name, attr in rows.items() if attr is None] == [name_of(3)]


async def test_what_others_change_is_seen_after_a_moment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listing(engine) as listed, mount(engine, listed.m.store) as other:
        await other.vfs.unlink(ROOT, listed.folder, name_of(40))
        monkeypatch.setattr(directories, "MOMENT_S", 0.0)
        assert name_of(40) not in await listed.rest()


async def test_too_many_changes_to_know(engine: Engine) -> None:
    async with listing(engine) as listed:
        await listed.m.vfs.unlink(ROOT, listed.folder, name_of(40))
        listed.m.meta.usage.changes.add(range(10**6, 10**6 + 5000))
        assert name_of(40) not in await listed.rest()


async def test_a_page_is_read_once_whatever_changes_elsewhere(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    readdir = MetaClient.readdir

    async def counted(self: MetaClient, *args: Any) -> Any:
        nonlocal read
        read += 1
        return await readdir(self, *args)

    monkeypatch.setattr(MetaClient, "readdir", counted)
    monkeypatch.setattr(directories, "MOMENT_S", 1000.0)
    async with listing(engine) as listed:
        seen: list[bytes] = []
        while rows := await listed.next(7):
            seen += [name for name, _ in rows]
            await listed.m.vfs.mknod(ROOT, ROOT_INO, b"elsewhere" + rows[-1][0], 0o100644, 0)
            for name, _ in rows:  # as rm -r does
                await listed.m.vfs.unlink(ROOT, listed.folder, name)
        assert seen == [name_of(number) for number in range(5, FILES)]
    assert read == 1


@pytest.mark.parametrize("page", [10, 4096])
async def test_seekdir_after_removals(engine: Engine, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "PAGE", page)
    async with listing(engine, HEAD + 49) as listed:
        for number in range(7):
            await listed.m.vfs.unlink(ROOT, listed.folder, name_of(number))
        for wanted in (33, 20, 40, 12):
            listed.offset = listed.offsets[name_of(wanted - 1)]
            assert [name for name, _ in await listed.next(3)] == [name_of(wanted + i) for i in range(3)]
        listed.offset = 0
        assert list(await listed.rest()) == [b".", b"..", *(name_of(number) for number in range(7, FILES))]
