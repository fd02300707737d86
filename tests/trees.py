"""A directory tree as a value, to compare what two file systems hold."""

import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Node(NamedTuple):
    """What a user can see of one file, apart from where it lies."""

    kind: str
    mode: int
    owner: tuple[int, int]
    nlink: int
    size: int
    content: str
    mtime_ns: int
    rdev: int
    xattrs: tuple[tuple[str, bytes], ...]


def describe(path: str, *, times: bool = True) -> Node:
    """A file by lstat, content and extended attributes."""
    attr = os.lstat(path)
    kind = stat.filemode(attr.st_mode)[0]
    content, size = "", attr.st_size
    if kind == "-":
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == "l":
        content = os.readlink(path)
    elif kind == "d":
        size = 0
    names = os.listxattr(path, follow_symlinks=False) if kind in "-d" else []
    xattrs = tuple((name, os.getxattr(path, name)) for name in sorted(names))
    when = attr.st_mtime_ns if times else 0
    return Node(
        kind,
        stat.S_IMODE(attr.st_mode),
        (attr.st_uid, attr.st_gid),
        attr.st_nlink,
        size,
        content,
        when,
        attr.st_rdev,
        xattrs,
    )


def walk(root: str | Path) -> Iterator[str]:
    """Every path below `root`, directories before what is in them."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            yield os.path.join(folder, name)


def snapshot(root: str | Path, *, times: bool = True) -> dict[str, Node]:
    """The tree below `root` by relative path."""
    return {os.path.relpath(path, root): describe(path, times=times) for path in walk(root)}


def outcome(call: Callable[[], object]) -> object:
    """What a call gives: its result, or the name of its error."""
    try:
        return call()
    except OSError as error:
        return f"{type(error).__name__}: {os.strerror(error.errno or 0)}"


def sh(command: str, cwd: str | Path, **env: str) -> str:
    """Run a shell command to its end, which must be good; its output."""
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, f"{command}\nexit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
