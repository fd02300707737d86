"""Which failures the kernel is told to look again for."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from jfs.errors import FsError
from jfs.fuse.adapter import Adapter
from jfs.fuse.kernel import Op
from jfs.fuse.replies import Timeouts
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import ROOT, ROOT_INO, Cred, Ino
from jfs.vfs.vfs import VfsOptions
from tests.vfs.mounted import Mounted, ScriptedStore, mount, mounted


async def errno_of(adapter: Adapter, kind: Op, *args: Any) -> int:
    with pytest.raises(FsError) as caught:
        await adapter.rows()[kind].handler(*args)
    return caught.value.errno


async def make(m: Mounted, name: bytes) -> Ino:
    return (await m.vfs.mkdir(ROOT, ROOT_INO, name, 0o755)).ino


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_a_directory_that_this_mount_replaced_is_reached_by_handles_alone(trash_days: int) -> None:
    """Its own kernel moved the name, so who still comes is in it: nothing could be found by looking again."""
    async with mounted(trash_days=trash_days) as m:
        adapter = Adapter(m.vfs, Timeouts(), xattrs=True, readdir_cache=False)
        old = await make(m, b"x")
        await make(m, b"fresh")
        await adapter.rows()[Op.RENAME].handler(ROOT, ROOT_INO, b"fresh", ROOT_INO, b"x", 0)
        gone = errno.EPERM if trash_days else errno.ENOENT
        assert await errno_of(adapter, Op.SETATTR, ROOT, old, None, AttrChange(mode=0o700), None, False, False) == gone
        if not trash_days:
            assert await errno_of(adapter, Op.GETATTR, old) == errno.ENOENT
            assert await errno_of(adapter, Op.OPENDIR, ROOT, old) == errno.ENOENT


@pytest.mark.parametrize("make_two", ["file", "directory"])
async def test_what_another_mount_replaced_is_looked_up_again(make_two: str) -> None:
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, trash_days=0) as here, mount(engine, store) as there:
        adapter = Adapter(here.vfs, Timeouts(), xattrs=True, readdir_cache=False)
        for name in (b"x", b"fresh"):
            if make_two == "directory":
                await make(here, name)
            else:
                await here.close(await here.create(name))
        old = (await here.vfs.lookup(ROOT, ROOT_INO, b"x")).ino
        await there.vfs.rename(ROOT, ROOT_INO, b"fresh", ROOT_INO, b"x", 0)
        assert await errno_of(adapter, Op.GETATTR, old) == errno.ESTALE
        assert await errno_of(adapter, Op.LISTXATTR, old, 0) == errno.ESTALE


async def test_a_file_with_another_name_that_this_mount_replaced_is_looked_up_again() -> None:
    """The other name is the kernel's still, and another mount may have replaced it too."""
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, trash_days=0) as here, mount(engine, store) as there:
        adapter = Adapter(here.vfs, Timeouts(), xattrs=True, readdir_cache=False)
        for name in (b"x", b"fresh", b"more"):
            await here.close(await here.create(name))
        old = (await here.vfs.lookup(ROOT, ROOT_INO, b"x")).ino
        await here.vfs.link(ROOT, old, ROOT_INO, b"other")
        await adapter.rows()[Op.RENAME].handler(ROOT, ROOT_INO, b"fresh", ROOT_INO, b"x", 0)
        await there.vfs.rename(ROOT, ROOT_INO, b"more", ROOT_INO, b"other", 0)
        assert await errno_of(adapter, Op.GETATTR, old) == errno.ESTALE


@pytest.mark.parametrize(
    ("uid", "mode", "flags", "opened"),
    [
        (1000, 0o600, os.O_RDWR, True),
        (1000, 0o600, os.O_RDWR | os.O_TRUNC, True),
        (1000, 0o600, os.O_RDWR | os.O_EXCL, False),
        (1000, 0o400, os.O_RDONLY, True),
        (1000, 0o400, os.O_WRONLY, False),
        (1000, 0o400, os.O_RDONLY | os.O_TRUNC, False),
        (1000, 0o277, os.O_RDWR, False),
        (1000, 0o077, os.O_RDONLY, False),
        (1001, 0o666, os.O_RDONLY, False),
        (0, 0o666, os.O_RDONLY, False),
    ],
)
async def test_creation_opens_what_is_there_for_its_owner_alone(
    uid: int, mode: int, flags: int, *, opened: bool
) -> None:
    async with mounted() as m:
        adapter = Adapter(m.vfs, Timeouts(), xattrs=True, readdir_cache=False)
        create = adapter.rows()[Op.CREATE].handler
        handle = await m.create(b"f")
        await m.write(handle, 0, b"data")
        await m.close(handle)
        assert handle.file is not None
        await m.vfs.setattr(ROOT, handle.file.ino, None, AttrChange(uid=1000), None)
        await m.vfs.setattr(ROOT, handle.file.ino, None, AttrChange(mode=mode), None)
        who = Cred(uid=uid, gid=uid)
        if opened:
            entry, given = await create(who, ROOT_INO, b"f", 0o644, flags)
            assert entry.attr.length == (0 if flags & os.O_TRUNC else 4)
            assert given.writable == bool(flags & os.O_ACCMODE)
            await m.close(given)
        else:
            expected = errno.EEXIST if flags & os.O_EXCL else errno.ESTALE
            assert await errno_of(adapter, Op.CREATE, who, ROOT_INO, b"f", 0o644, flags) == expected
        assert not m.meta.is_open(handle.file.ino)


TO_OPEN_FILES: dict[str, tuple[Op, Callable[[Ino], tuple[Any, ...]]]] = {
    "fchmod": (Op.SETATTR, lambda ino: (ROOT, ino, None, AttrChange(mode=0o640), None, False, False)),
    "truncate": (Op.SETATTR, lambda ino: (ROOT, ino, None, AttrChange(), 3, False, False)),
    "fsetxattr": (Op.SETXATTR, lambda ino: (ROOT, ino, b"user.more", b"1", 0)),
    "fremovexattr": (Op.REMOVEXATTR, lambda ino: (ROOT, ino, b"user.a")),
    "open": (Op.OPEN, lambda ino: (ROOT, ino, os.O_RDWR)),
}
"""What the kernel asks without a handle, though a program does it by a descriptor, or by /proc/self/fd."""


@pytest.mark.parametrize("open_cache_s", [0, 1000])
@pytest.mark.parametrize("how", ["removed", "replaced"])
@pytest.mark.parametrize("what", TO_OPEN_FILES)
async def test_an_open_file_in_the_trash_is_still_changed(what: str, how: str, open_cache_s: float) -> None:
    async with mounted(trash_days=1, options=VfsOptions(open_cache_s=open_cache_s)) as m:
        adapter = Adapter(m.vfs, Timeouts(), xattrs=True, readdir_cache=False)
        handle = await m.create(b"f")
        assert handle.file is not None
        ino = handle.file.ino
        await m.vfs.setxattr(ROOT, ino, b"user.a", b"1", 0)
        if how == "removed":
            await m.vfs.unlink(ROOT, ROOT_INO, b"f")
        else:
            await m.close(await m.create(b"g"))
            await m.vfs.rename(ROOT, ROOT_INO, b"g", ROOT_INO, b"f", 0)
        kind, args = TO_OPEN_FILES[what]
        given = await adapter.rows()[kind].handler(*args(ino))
        if what == "open":
            await m.close(given)
        await m.close(handle)
        kind, args = TO_OPEN_FILES["open"]
        assert await errno_of(adapter, kind, *args(ino)) == errno.ESTALE


@pytest.mark.parametrize("what", TO_OPEN_FILES)
async def test_an_open_file_that_another_mount_replaced_is_looked_up_again(what: str) -> None:
    """By its name that the kernel has still, the other file is meant."""
    engine, store = MemoryEngine(), ScriptedStore()
    async with mounted(engine=engine, store=store, trash_days=1) as here, mount(engine, store) as there:
        adapter = Adapter(here.vfs, Timeouts(), xattrs=True, readdir_cache=False)
        handle = await here.create(b"f")
        assert handle.file is not None
        await here.vfs.setxattr(ROOT, handle.file.ino, b"user.a", b"1", 0)
        await there.close(await there.create(b"g"))
        await there.vfs.rename(ROOT, ROOT_INO, b"g", ROOT_INO, b"f", 0)
        kind, args = TO_OPEN_FILES[what]
        assert await errno_of(adapter, kind, *args(handle.file.ino)) == errno.ESTALE
        await here.close(handle)
