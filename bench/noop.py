"""`python -m bench.noop PATH`: a file system that does nothing, on the same transport as jfs: what FUSE and Python cost alone.

Names that end in `-absent` do not exist; every other name is a file of a gibibyte that reads as zeros and forgets what is written.
"""

import errno
import os
import stat
import sys
from typing import Any

import pyfuse3
import trio

from jfs.fuse import mounting, polling

SIZE = 1 << 30
ZEROS = bytes(1 << 20)


class Nothing(pyfuse3.Operations):
    """Answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self._inodes: dict[bytes, int] = {}

    def _attr(self, inode: int) -> pyfuse3.EntryAttributes:
        attr = pyfuse3.EntryAttributes()
        root = inode == pyfuse3.ROOT_INODE
        attr.st_ino = inode
        attr.generation = 0
        attr.entry_timeout = attr.attr_timeout = 1.0
        attr.st_mode = stat.S_IFDIR | 0o755 if root else stat.S_IFREG | 0o644
        attr.st_nlink = 2 if root else 1
        attr.st_size = 4096 if root else SIZE
        attr.st_blksize = 4096
        return attr

    def _opened(self, inode: int, flags: int) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, direct_io=flags & os.O_ACCMODE == os.O_WRONLY)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        if name.endswith(b"-absent") and name not in self._inodes:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attr(self._inodes.setdefault(name, len(self._inodes) + 2))

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return self._attr(inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attr(inode)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode = self._inodes.setdefault(name, len(self._inodes) + 2)
        return self._opened(inode, flags), self._attr(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return self._opened(inode, flags)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return ZEROS[: max(0, min(size, SIZE - off))]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        return True

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()


async def serve(path: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, mounting.tune_kernel, path)
        await pyfuse3.main(min_tasks=1, max_tasks=64)


def main() -> None:
    path = sys.argv[1]
    polling.install()
    pyfuse3.init(Nothing(), path, mounting.kernel_options([], name="nothing", read_only=False))
    try:
        trio.run(serve, path)
    finally:
        pyfuse3.close(unmount=mounting.mounted_as(path) is not None)


if __name__ == "__main__":
    main()
