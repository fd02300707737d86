"""`.control`, the command channel: u32 command, u32 length of the body, body; big-endian, perhaps in several writes.

The answer: 0xFE and two u64 each time there is progress to tell, at last one byte, an errno.  Reading when there is
nothing to say yet waits a moment, then gives no bytes: "ask again".
"""

import errno
import logging
import struct
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import FsError
from jfs.meta.types import ROOT_INO
from jfs.vfs.compact_tree import TreeCompaction

if TYPE_CHECKING:
    from jfs.vfs.vfs import Vfs

log = logging.getLogger(__name__)

COMPACT: Final = 1008
"""Body: u64 inode, u16 how many chunks at a time.  Progress tells chunks found, and done."""

DRAIN: Final = 0x6A660001
"""Command of jfs alone: upload staged blocks at once, and stage no more (`umount --flush`).  Body: a byte, on or off."""

PROGRESS: Final = 0xFE

MOST_BODY: Final = 4096
"""The commands here have ten bytes.  The peer's have up to megabytes: lists of paths to warm up."""

MOST_ANSWER: Final = 1 << 20

TELL_S: Final = 0.3
THREADS: Final = 10

HEADER: Final = struct.Struct(">II")
COMPACT_BODY: Final = struct.Struct(">QH")
_INO: Final = struct.Struct(">Q")
PROGRESS_MESSAGE: Final = struct.Struct(">BQQ")


class ControlHandle:
    """One open `.control`.  What it has started ends when it is closed."""

    writable = True

    def __init__(self, vfs: "Vfs", *, privileged: bool) -> None:
        self._vfs = vfs
        self._privileged = privileged
        self._request = bytearray()
        self._refused = 0
        """So many bytes are still to come of a body that nobody wants."""
        self._answer = bytearray()
        self._told = trio.lowlevel.ParkingLot()
        self._work: set[trio.CancelScope] = set()

    async def read(self, offset: int, size: int) -> bytes:
        """The next bytes of the answer, whatever the offset; none: not yet."""
        if not self._answer and self._work:
            with trio.move_on_after(TELL_S):
                await self._told.park()
        data = bytes(self._answer[:size])
        del self._answer[:size]
        return data

    async def write(self, offset: int, data: bytes | memoryview) -> int:
        """Raises EAGAIN to who asks on and on and takes no answer."""
        if len(self._answer) > MOST_ANSWER:
            raise FsError(errno.EAGAIN)
        rest = data[self._refused :]
        self._refused -= len(data) - len(rest)
        self._request += rest
        while len(self._request) >= HEADER.size:
            command, length = HEADER.unpack_from(self._request)
            if length > MOST_BODY:
                self._refuse(length)
                continue
            if len(self._request) < HEADER.size + length:
                break
            body = bytes(self._request[HEADER.size : HEADER.size + length])
            del self._request[: HEADER.size + length]
            self._carry_out(command, body)
        return len(data)

    def _refuse(self, length: int) -> None:
        """No command has so long a body: what has come of it goes, and what is to come is not kept."""
        came = min(len(self._request) - HEADER.size, length)
        del self._request[: HEADER.size + came]
        self._refused = length - came
        self._end(errno.EINVAL)

    def _say(self, answer: bytes) -> None:
        self._answer += answer
        self._told.unpark_all()

    def _end(self, code: int) -> None:
        self._say(bytes([code]))

    def _carry_out(self, command: int, body: bytes) -> None:
        if command == COMPACT and len(body) >= _INO.size:
            ino, threads = (
                COMPACT_BODY.unpack_from(body)
                if len(body) >= COMPACT_BODY.size
                else (_INO.unpack_from(body)[0], THREADS)
            )
            scope = trio.CancelScope()
            self._work.add(scope)
            self._vfs.start_soon(self._compact, scope, ino, threads)
        elif command == DRAIN and len(body) == 1:
            self._end(self._drain(on=body != b"\0"))
        else:
            self._end(errno.EINVAL)

    def _drain(self, *, on: bool) -> int:
        """The errno that answers."""
        if not self._privileged:
            return errno.EPERM
        staging = self._vfs.blocks.staging
        if staging is not None:
            staging.drain(on=on)
        return 0

    # -- compaction

    async def _compact(self, scope: trio.CancelScope, ino: int, threads: int) -> None:
        log.info("compacting inode %d, %d chunks at a time", ino, threads)
        tree = TreeCompaction(self._vfs.meta, self._vfs.compactor, threads)
        try:
            with scope:
                code = await self._watched(tree, ino)
                self._say(PROGRESS_MESSAGE.pack(PROGRESS, tree.chunks, tree.done))
                self._end(code)
        finally:
            self._work.discard(scope)

    async def _watched(self, tree: TreeCompaction, ino: int) -> int:
        """The errno that answers, once it is done; until then the progress is told."""
        code = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, tree)
            try:
                await tree.run(self._vfs.meta.root if ino == ROOT_INO else ino)
            except FsError as error:
                code = error.errno
            except Exception:  # whoever asked must get an answer
                log.exception("compaction of inode %d failed", ino)
                code = errno.EIO
            nursery.cancel_scope.cancel()
        return code

    async def _tell(self, tree: TreeCompaction) -> None:
        while True:
            await trio.sleep(TELL_S)
            if not self._answer:
                self._say(PROGRESS_MESSAGE.pack(PROGRESS, tree.chunks, tree.done))

    def close(self) -> None:
        self._request.clear()
        self._answer.clear()
        for scope in self._work:
            scope.cancel()
