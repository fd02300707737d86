"""Mounting by either way, and what is said where the system refuses."""

import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jfs.errors import UserError
from jfs.fuse import device, mounting, requests
from jfs.fuse.kernel import Op
from jfs.fuse.pipe import Pipe
from jfs.fuse.replies import Replies, Timeouts
from jfs.fuse.session import PATIENCE_S, Row, Session
from jfs.meta.types import TYPE_DIR, Attr

OPTIONS = mounting.kernel_options([], name="v", read_only=True)


class Quiet:
    """Shows no requests, guesses nothing."""

    active = False
    landed: memoryview | None = None

    def room(self) -> None:
        return None

    async def served(self, *_: Any) -> Any:
        raise AssertionError("nobody watches")


async def look_at(path: Path) -> os.stat_result:
    """Mount a root directory there, stat it, unmount."""

    async def root(ino: int) -> tuple[int, Attr]:
        return ino, Attr(type=TYPE_DIR, mode=0o711, nlink=2)

    row = Row("getattr", requests.inode, root, Replies(Timeouts()).attr)
    mounted = device.mount(str(path), OPTIONS)
    quiet = Quiet()
    pipe = Pipe()
    session = Session(mounted.fd, {Op.GETATTR: row}, quiet, Counter(), quiet, pipe)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve)
            with trio.fail_after(60):
                found = await trio.to_thread.run_sync(os.stat, path)
            assert mounting.mounted_as(str(path)) == "fuse.juicefs"
            session.stop()
    finally:
        mounted.close()
        pipe.close()
    return found


async def test_mounted_directly(tmp_path: Path) -> None:
    found = await look_at(tmp_path)
    assert stat.S_ISDIR(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o711
    assert mounting.mounted_as(str(tmp_path)) is None


async def test_mounted_by_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who may not call mount(2)."""

    def refuse(path: str, options: set[str]) -> int:
        raise PermissionError

    monkeypatch.setattr(device, "_mount_directly", refuse)
    assert stat.S_IMODE((await look_at(tmp_path)).st_mode) == 0o711


@asynccontextmanager
async def served(path: Path) -> AsyncGenerator[device.Device, None]:
    """A mount that has no answer for anything."""
    mounted = device.mount(str(path), OPTIONS)
    quiet = Quiet()
    with closing(Pipe()) as pipe:
        session = Session(mounted.fd, {}, quiet, Counter(), quiet, pipe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve)
            yield mounted
            session.stop()


async def test_a_mount_that_took_anothers_place_stays(tmp_path: Path) -> None:
    """The one that was unmounted meanwhile learns of it late."""
    path = str(tmp_path)
    numbered_alike = False
    for _ in range(20):
        first = device.mount(path, OPTIONS)
        entry = mounting.mount_entry(path)
        assert mounting.unmount(path) is None
        async with served(tmp_path) as second:
            # the kernel gives the number out again, unless somebody else on this machine mounts something
            numbered_alike = mounting.mount_entry(path) == entry
            with trio.fail_after(60):
                assert await trio.to_thread.run_sync(first.unmount) is None
                await trio.to_thread.run_sync(first.close)
                assert mounting.mounted_as(path) == "fuse.juicefs"
                assert await trio.to_thread.run_sync(second.unmount) is None
            assert mounting.mounted_as(path) is None
        second.close()
        if numbered_alike:
            break
    assert numbered_alike


def test_a_connection_that_was_aborted_leaves_no_mount(tmp_path: Path) -> None:
    path, controls = tmp_path / "m", tmp_path / "controls"
    path.mkdir()
    controls.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", controls], check=True)
    try:
        mounted = device.mount(str(path), OPTIONS)
        entry = mounting.mount_entry(str(path))
        assert entry is not None
        (controls / entry[0].partition(":")[2] / "abort").write_text("1")
        mounted.close()
    finally:
        subprocess.run(["umount", controls], check=True)
    assert mounting.mounted_as(str(path)) is None


async def test_a_killed_process_does_not_hang_on_a_store_that_does(tmp_path: Path) -> None:
    """SIGALRM is nobody's death; SIGKILL is, though the request is never answered."""
    began, never = trio.Event(), trio.Event()

    async def wait(ino: int) -> tuple[int, Attr]:
        began.set()
        await never.wait()
        return ino, Attr(type=TYPE_DIR, mode=0o700, nlink=2)

    row = Row("getattr", requests.inode, wait, Replies(Timeouts()).attr)
    mounted = device.mount(str(tmp_path), OPTIONS)
    quiet = Quiet()
    pipe = Pipe()
    session = Session(mounted.fd, {Op.GETATTR: row}, quiet, Counter(), quiet, pipe)
    program = f"import os, signal; signal.signal(signal.SIGALRM, lambda *_: None); os.stat({str(tmp_path)!r})"
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve)
            process = await nursery.start(partial(trio.run_process, [sys.executable, "-c", program], check=False))
            await began.wait()
            process.send_signal(signal.SIGALRM)
            with trio.move_on_after(3 * PATIENCE_S):
                await process.wait()
            assert process.returncode is None
            process.kill()
            with trio.fail_after(60):
                await process.wait()
            assert process.returncode == -signal.SIGKILL
            never.set()
            session.stop()
    finally:
        mounted.close()
        pipe.close()


@pytest.mark.parametrize("directly", [True, False])
def test_a_refusal_says_what_the_system_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, directly: bool
) -> None:
    nowhere = tmp_path / "nowhere"
    mount = device._mount_directly if directly else device._mount_by_helper
    with pytest.raises(UserError, match=f"cannot mount on {nowhere}: .*No such file or directory"):
        mount(str(nowhere), OPTIONS)


def test_without_the_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"fusermount3 is missing \(install the package fuse3\)"):
        device._mount_by_helper(str(tmp_path), OPTIONS)


def test_a_mount_point_behind_a_symlink_is_found_again(tmp_path: Path) -> None:
    """The kernel lists mounts by their real paths."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = mounting.prepare_mount_point(str(tmp_path / "link"), nonempty=False)
    assert path == str(tmp_path / "real")
    mounted = device.mount(path, OPTIONS)
    assert mounting.mounted_as(path) == "fuse.juicefs"
    mounted.close()
    assert mounting.mounted_as(path) is None
