"""Special files, directories and what they refuse."""

import errno
import json
import struct
from collections.abc import Awaitable

import pytest

from jfs.errors import FsError
from jfs.meta.types import ROOT, ROOT_INO, TRASH_INO, TYPE_DIR
from jfs.vfs import access_log as access_log_module
from jfs.vfs import directories
from jfs.vfs.access_log import AccessLog, AccessLogReader
from jfs.vfs.special_files import ACCESS_LOG_INO, CONFIG_INO, CONTROL_INO, STATS_INO
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import RDONLY, RDWR, WRONLY, Mounted, mounted


async def fails(expected: int, call: Awaitable[object]) -> None:
    with pytest.raises(FsError) as caught:
        await call
    assert errno.errorcode[caught.value.errno] == errno.errorcode[expected]


async def listing(m: Mounted, ino: int = ROOT_INO) -> list[bytes]:
    fh = await m.vfs.opendir(ROOT, ino)
    names: list[bytes] = []
    while rows := await m.vfs.readdir(fh, len(names)):
        names += [name for name, _, _, _ in rows]
    await m.vfs.releasedir(fh)
    return names


async def test_what_the_root_lists() -> None:
    async with mounted() as m:
        await m.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)
        names = await listing(m)
        assert names[:2] == [b".", b".."]
        assert sorted(names[2:]) == [b".accesslog", b".config", b".stats", b".trash", b"d"]
        folder = (await m.vfs.lookup(ROOT, ROOT_INO, b"d")).ino
        assert await listing(m, folder) == [b".", b".."]


async def test_hidden_files_are_not_listed_and_still_there() -> None:
    async with mounted(options=VfsOptions(hide_internal=True)) as m:
        assert await listing(m) == [b".", b".."]
        assert (await m.vfs.lookup(ROOT, ROOT_INO, b".config")).ino == CONFIG_INO


async def test_prefixed_names() -> None:
    async with mounted(options=VfsOptions(prefix_internal=True)) as m:
        assert (await m.vfs.lookup(ROOT, ROOT_INO, b".jfs.stats")).ino == STATS_INO
        await fails(errno.ENOENT, m.vfs.lookup(ROOT, ROOT_INO, b".stats"))


async def test_control_resolves_everywhere_and_refuses_unknown_commands() -> None:
    async with mounted() as m:
        folder = (await m.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
        for parent in (ROOT_INO, folder):
            assert (await m.vfs.lookup(ROOT, parent, b".control")).ino == CONTROL_INO
        handle = await m.vfs.open(ROOT, CONTROL_INO, RDWR)
        assert handle.direct_io
        request = struct.pack(">II", 4711, 3) + b"abc"
        await m.write(handle, 0, request[:5])
        assert await m.read(handle, 0, 10) == b""
        await m.write(handle, 5, request[5:])
        assert await m.read(handle, len(request), 10) == bytes([errno.EINVAL])
        await m.vfs.flush(handle.fh)
        await m.vfs.release(handle.fh)


async def test_config_and_stats_can_be_read() -> None:
    async with mounted() as m:
        handle = await m.vfs.open(ROOT, CONFIG_INO, RDONLY)
        config = json.loads(await m.read(handle, 0, 1 << 20))
        assert config["Format"]["Name"] == "testvol"
        assert config["Meta"]["Sid"] == m.meta.sid
        await m.vfs.release(handle.fh)
        handle = await m.vfs.open(ROOT, STATS_INO, RDONLY)
        figures = dict(line.split() for line in (await m.read(handle, 0, 1 << 20)).decode().splitlines())
        assert float(figures["juicefs_memory"]) > 0
        assert "juicefs_used_buffer_size_bytes" in figures
        await m.vfs.release(handle.fh)


async def test_special_names_are_taken() -> None:
    async with mounted() as m:
        await fails(errno.EEXIST, m.vfs.create(ROOT, ROOT_INO, b".stats", 0o644, RDWR))
        await fails(errno.EEXIST, m.vfs.mkdir(ROOT, ROOT_INO, b".trash", 0o755))
        await fails(errno.EPERM, m.vfs.unlink(ROOT, ROOT_INO, b".config"))
        await fails(errno.EPERM, m.vfs.rmdir(ROOT, ROOT_INO, b".trash"))
        await fails(errno.EPERM, m.vfs.rename(ROOT, ROOT_INO, b".stats", ROOT_INO, b"x", 0))
        await fails(errno.EPERM, m.vfs.link(ROOT, STATS_INO, ROOT_INO, b"x"))
        await fails(errno.EPERM, m.vfs.setxattr(ROOT, STATS_INO, b"user.x", b"", 0))
        await fails(errno.EACCES, m.vfs.open(ROOT, STATS_INO, WRONLY))
        assert (await m.vfs.lookup(ROOT, ROOT_INO, b".trash")).ino == TRASH_INO


async def test_access_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log_module, "IDLE_S", 0.01)
    log = AccessLog()
    assert not log.active
    reader = AccessLogReader(log)
    assert log.active
    log.note((0, 0, 7), "lookup (1,a)", ": (2)", 0, 0.0)
    log.note((0, 0, 7), "lookup (1,b)", "", errno.ENOENT, 0.0)
    lines = (await reader.read(0, 4096)).decode().splitlines()
    assert "[uid:0,gid:0,pid:7] lookup (1,a): (2) - OK <" in lines[0]
    assert "[uid:0,gid:0,pid:7] lookup (1,b): - no such file or directory <" in lines[1]
    assert await reader.read(0, 4096) == b"#\n"
    reader.close()
    assert not log.active


async def test_the_access_log_is_active_while_it_is_open() -> None:
    async with mounted() as m:
        handle = await m.vfs.open(ROOT, ACCESS_LOG_INO, RDONLY)
        assert m.vfs.access_log.active
        await m.vfs.release(handle.fh)
        assert not m.vfs.access_log.active


async def test_a_directory_of_many_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "PAGE", 10)
    async with mounted() as m:
        folder = (await m.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
        names = [b"%03d" % i for i in range(37)]
        for name in names:
            await m.vfs.mknod(ROOT, folder, name, 0o100644, 0)
        assert await listing(m, folder) == [b".", b"..", *names]
        fh = await m.vfs.opendir(ROOT, folder)
        seen: dict[bytes, int] = {}
        offset = 0
        while rows := await m.vfs.readdir(fh, offset):
            for name, _, attr, after in rows:
                assert name not in seen
                assert attr is not None
                seen[name] = after
                if name.isdigit() and int(name) % 2:  # removing and adding names meanwhile hides and repeats nothing
                    await m.vfs.unlink(ROOT, folder, name)
                    await m.vfs.mknod(ROOT, folder, b"-" + name, 0o100644, 0)
            offset = rows[-1][3]
        assert [name for name in seen if name.isdigit()] == names
        for offset in (12, 3, 30):  # seekdir, also backwards
            assert (await m.vfs.readdir(fh, offset))[0][3] == offset + 1
        await m.vfs.releasedir(fh)
        await fails(errno.EBADF, m.vfs.readdir(fh, 0))


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_an_open_directory_answers_after_it_was_removed(trash_days: int) -> None:
    async with mounted(trash_days=trash_days) as m:
        folder = (await m.vfs.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
        fh = await m.vfs.opendir(ROOT, folder)
        await m.vfs.rmdir(ROOT, ROOT_INO, b"d")
        if trash_days == 0:
            assert (await m.vfs.getattr(folder)).nlink == 0
        assert (await m.vfs.getattr(folder)).type == TYPE_DIR
        await m.vfs.releasedir(fh)
        await fails(errno.ENOTDIR, m.vfs.opendir(ROOT, (await m.vfs.mknod(ROOT, ROOT_INO, b"f", 0o100644, 0)).ino))
