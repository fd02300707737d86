"""`python -m bench.noop PATH`: a file system that does nothing, on the same transport as jfs: what FUSE and Python cost alone.

Names that end in `-absent` do not exist; every other name is a file of a gibibyte that reads as zeros and forgets what is written.
"""

import errno
import os
import sys
from collections import Counter
from functools import partial
from typing import Any

import trio

from jfs.errors import FsError
from jfs.fuse import device, mounting, replies, requests
from jfs.fuse.kernel import Op
from jfs.fuse.pipe import Pipe
from jfs.fuse.replies import Replies, Timeouts
from jfs.fuse.session import Row, Session
from jfs.meta.types import ROOT_INO, TYPE_DIR, TYPE_FILE, Attr, Cred, Entry, Ino
from jfs.meta.usage import StatFs
from jfs.vfs.handles import Handle

SIZE = 1 << 30
MOST = 1 << 20
ZEROS = memoryview(bytes(MOST))
ROOT = Attr(type=TYPE_DIR, mode=0o755, nlink=2, length=4096)
FILE = Attr(type=TYPE_FILE, mode=0o644, length=SIZE)


class Nothing:
    """Answers at once."""

    active = False

    def __init__(self) -> None:
        self._inodes: dict[bytes, int] = {}
        self._room = memoryview(bytearray(MOST))
        self.landed: memoryview | None = None

    def room(self) -> memoryview:
        self.landed = None
        return self._room

    def rows(self) -> dict[Op, Row]:
        reply = Replies(Timeouts())
        return {
            Op.LOOKUP: Row("lookup", requests.name, self.lookup, reply.entry),
            Op.GETATTR: Row("getattr", requests.inode, self.getattr, reply.attr),
            Op.SETATTR: Row("setattr", requests.asked_inode, self.setattr, reply.attr),
            Op.CREATE: Row("create", requests.create, self.create, reply.created),
            Op.OPEN: Row("open", requests.flags, self.open, replies.opened),
            Op.READ: Row("read", requests.read, self.read, _as_it_is),
            Op.WRITE: Row("write", partial(requests.write, self), self.write, replies.wrote),
            Op.FLUSH: Row("flush", requests.handle, self.nothing, replies.nothing),
            Op.RELEASE: Row("release", requests.handle, self.nothing, replies.nothing),
            Op.STATFS: Row("statfs", requests.no_more, self.statfs, replies.statfs),
        }

    async def lookup(self, cred: Cred, parent: Ino, name: bytes) -> Entry:
        if name.endswith(b"-absent") and name not in self._inodes:
            raise FsError(errno.ENOENT)
        return Entry(self._inodes.setdefault(name, len(self._inodes) + 2), FILE)

    async def getattr(self, ino: Ino) -> tuple[Ino, Attr]:
        return ino, ROOT if ino == ROOT_INO else FILE

    async def setattr(self, cred: Cred, ino: Ino) -> tuple[Ino, Attr]:
        return ino, FILE

    async def create(self, cred: Cred, parent: Ino, name: bytes, mode: int, flags: int) -> tuple[Entry, Handle]:
        ino = self._inodes.setdefault(name, len(self._inodes) + 2)
        return Entry(ino, FILE), await self.open(cred, ino, flags)

    async def open(self, cred: Cred, ino: Ino, flags: int) -> Handle:
        access = flags & os.O_ACCMODE
        return Handle(ino, None, readable=access != os.O_WRONLY, writable=access != os.O_RDONLY)

    async def read(self, fh: int, offset: int, size: int) -> memoryview:
        return ZEROS[: max(0, min(size, SIZE - offset))]

    async def write(self, fh: int, offset: int, data: memoryview, cached: bool) -> int:
        return len(data)

    async def nothing(self, fh: int) -> None:
        pass

    async def statfs(self) -> StatFs:
        return StatFs(1 << 40, 0, 1 << 40, 0, 1 << 20)

    async def served(self, row: Row, who: tuple[int, int, int], ino: Ino, args: tuple[Any, ...]) -> Any:
        return await row.handler(*args)


def _as_it_is(data: memoryview) -> memoryview:
    return data


async def serve(path: str) -> None:
    options = mounting.kernel_options([], name="nothing", read_only=False)
    mounted = device.mount(path, options)
    nothing = Nothing()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, mounting.tune_kernel, path)
            await Session(mounted.fd, nothing.rows(), nothing, Counter(), nothing, Pipe()).serve()
    finally:
        mounted.close()


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
