"""The conversation with the kernel: reads requests, has them answered, writes the replies.

One worker at a time reads; it serves its request itself, so one that needs no waiting costs no task switch, and goes on
reading.  Where it has to wait another worker reads on.  An error that nobody foresaw is an answer too (EIO) and a line in
the log: it does not end the mount.
"""

import errno
import logging
import mmap
import os
from collections.abc import Awaitable, Callable, Mapping
from struct import Struct
from typing import Any, Final, Protocol

import msgspec
import trio

from jfs.chunk.file_range import FileRange
from jfs.errors import CorruptRecord, FsError
from jfs.fuse import kernel
from jfs.fuse.dying import is_dying
from jfs.fuse.kernel import IN_HEADER, INIT_IN, INIT_OUT, MOST_OPS, OUT_HEADER, Op
from jfs.fuse.pipe import Pipe
from jfs.fuse.polling import Poller, ReadLock
from jfs.fuse.requests import Landing
from jfs.meta.types import Cred, Ino

log = logging.getLogger(__name__)

MAX_WRITE: Final = 1 << 20
BUFFER_SIZE: Final = MAX_WRITE + 4096
"""What one request may take, header and all."""

HEAD: Final = kernel.WRITE_DATA
"""What comes before a write's data."""

MAX_PAGES: Final = MAX_WRITE // 4096
MAX_BACKGROUND: Final = 64
CONGESTED: Final = 48
"""So many requests that nobody waits for (read-ahead, direct I/O in parts) may be under way at once; from the second number
on the kernel begins fewer."""

MOST_IDLE: Final = 128
"""So many workers may wait for requests, with a buffer each.  There is no bound to those whose requests wait: who is killed while
a store hangs is let go only if somebody reads on."""

MOST_HELD: Final = 256 << 20
"""From so many bytes on, of all requests under way, no more are read."""

OPERATION: Final = Struct("<I")
SMALL: Final = 4096
"""A reply up to here is put together before it is written: cheaper than two parts."""

WANTED: Final = (
    kernel.ASYNC_READ
    | kernel.ATOMIC_O_TRUNC
    | kernel.EXPORT_SUPPORT
    | kernel.BIG_WRITES
    | kernel.AUTO_INVAL_DATA
    | kernel.DO_READDIRPLUS
    | kernel.ASYNC_DIO
    | kernel.PARALLEL_DIROPS
    | kernel.MAX_PAGES
)

GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN})
"""The mount is no more, or was aborted."""

UNANSWERED: Final = frozenset({Op.FORGET, Op.BATCH_FORGET})
"""Nobody waits for a reply.  Inodes need no counting of lookups."""

PATIENCE_S: Final = 2.0
"""How often it is looked whether the process behind an interrupted request is being killed."""

Reply = bytes | bytearray | memoryview | FileRange


class Row(msgspec.Struct, frozen=True):
    """How one kind of request is served."""

    name: str
    decode: Callable[[Any, int, Ino, Cred], tuple[Any, ...]]
    """(buffer, length of the request, inode, who asks) to the handler's arguments."""

    handler: Callable[..., Awaitable[Any]]
    encode: Callable[[Any], Reply]
    """What the handler gave, as the reply's body.  Called after the last wait, so it may use what is shared."""

    gives_handle: bool = False
    """The reply is what the kernel needs to release what was opened, so it cannot be done without."""


class Observer(Protocol):
    """Whoever shows the requests."""

    @property
    def active(self) -> bool:
        """Whether `served` is to be called in a handler's place."""

    async def served(self, row: Row, who: tuple[int, int, int], ino: Ino, args: tuple[Any, ...]) -> Any:
        """Call the handler; `who` is (uid, gid, pid)."""


class RequestBuffer:
    """Takes one request: `memory` is all of it, `head` a write's header, `rest` what follows."""

    __slots__ = ("head", "memory", "rest")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, BUFFER_SIZE)
        view = memoryview(self.memory)
        self.head = view[:HEAD]
        self.rest = view[HEAD:]


class Session:
    """One mount's requests, from INIT to the unmount."""

    def __init__(
        self,
        fd: int,
        rows: Mapping[Op, Row],
        observer: Observer,
        requests: dict[str, int],
        landing: Landing,
        pipe: Pipe,
    ) -> None:
        """`fd`: a mounted /dev/fuse, not blocking.  `requests` counts them by name.  `pipe`: for replies that are file ranges."""
        self._fd = fd
        self._rows: list[Row | None] = [None] * MOST_OPS
        for op, row in rows.items():
            self._rows[op] = row
        self._observer = observer
        self._requests = requests
        self._landing = landing
        self._pipe = pipe
        self._creds: dict[tuple[int, int], Cred] = {}
        self._poller = Poller(fd)
        self._lock = ReadLock()
        self._buffers: list[RequestBuffer] = []
        self._workers = 0
        self._held = 0
        """Bytes of the requests under way."""
        self._asked: dict[int, int] = {}
        """Of each request under way: who could be told before it is done that it is not (a pid, or 0)."""
        self._ended = False
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        """Until the file system is unmounted or `stop` is called; what is under way is answered first."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._add_worker()

    def stop(self) -> None:
        """No request is read any more."""
        self._ended = True
        self._poller.close()

    def forget_attr(self, ino: Ino) -> None:
        """Have the kernel ask for the inode's attributes again."""
        self._answer(0, kernel.NOTIFY_INVAL_INODE, kernel.INVAL_INODE.pack(ino, -1, 0))

    def _add_worker(self) -> None:
        if self._nursery is not None and self._held < MOST_HELD:
            self._workers += 1
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        lock = self._lock
        while True:
            async with lock:
                if self._ended:
                    break
                buffer = self._buffers.pop() if self._buffers else RequestBuffer()
                size = await self._receive(buffer)
                if size == 0:
                    self._ended = True
                    break
                self._held += size
                if not lock.has_heir:
                    self._add_worker()
            await self._serve_one(buffer.memory, size)
            self._held -= size
            if lock.idle >= MOST_IDLE:
                break
            self._buffers.append(buffer)
        self._workers -= 1
        if self._workers == 0 and self._nursery is not None:
            self._nursery.cancel_scope.cancel()  # whoever watches over interrupted requests

    async def _receive(self, buffer: RequestBuffer) -> int:
        """The next request; its length, or 0 after the last."""
        poller = self._poller
        whole = (buffer.memory,)
        await poller.turn()
        while True:
            room = self._landing.room()
            try:
                size = os.readv(self._fd, whole if room is None else (buffer.head, room, buffer.rest))
            except BlockingIOError:
                try:
                    # What is under way waits for a server or a thread, which can use the processor better than polling.
                    await poller.wait_readable(eager=not self._asked)
                except trio.ClosedResourceError:
                    return 0
            except OSError as error:
                if error.errno in GONE:
                    return 0
                if error.errno != errno.ENOENT:  # that one was taken back while it was read
                    raise
            else:
                poller.hit()
                if room is not None and size > HEAD:
                    self._sort(buffer, size, room)
                return size

    def _sort(self, buffer: RequestBuffer, size: int, room: memoryview) -> None:
        """What is behind the head lies in the room: a write's data stays there, all else is put together."""
        length = size - HEAD
        landed = room[:length]
        if OPERATION.unpack_from(buffer.head, 4)[0] == Op.WRITE and length <= len(room):
            self._landing.landed = landed
            return
        beyond = length - len(landed)
        if beyond:
            buffer.rest[len(landed) : length] = bytes(buffer.rest[:beyond])
        buffer.rest[: len(landed)] = landed

    async def _serve_one(self, buffer: mmap.mmap, size: int) -> None:
        _, number, unique, ino, uid, gid, pid, _, _ = IN_HEADER.unpack_from(buffer)
        row = self._rows[number] if number < MOST_OPS else None
        if row is None:
            self._serve_other(number, unique, buffer)
            return
        cred = self._creds.get((uid, gid))
        if cred is None:
            cred = self._new_cred(uid, gid)
        self._requests[row.name] += 1
        asked = self._asked
        asked[unique] = 0 if row.gives_handle else pid
        try:
            args = row.decode(buffer, size, ino, cred)
            if self._observer.active:
                result = await self._observer.served(row, (uid, gid, pid), ino, args)
            else:
                result = await row.handler(*args)
            reply = row.encode(result)
            while isinstance(reply, FileRange) and not self._fill_pipe(unique, reply):
                reply = row.encode(await row.handler(*args))
        except FsError as error:
            number, reply = error.errno, b""
        except CorruptRecord as error:
            log.error("%s: %s", row.name, error)
            number, reply = errno.EIO, b""
        except Exception:
            log.exception("%s failed", row.name)
            number, reply = errno.EIO, b""
        else:
            number = 0
        if asked.pop(unique, None) is None:
            return  # it was interrupted and answered
        self._answer(unique, -number, reply)

    def _new_cred(self, uid: int, gid: int) -> Cred:
        """The kernel checks permissions and has applied the umask by the time it asks."""
        if len(self._creds) > 1000:
            self._creds.clear()
        cred = self._creds[uid, gid] = Cred(uid=uid, gid=gid)
        return cred

    def _answer(self, unique: int, number: int, body: Reply = b"") -> None:
        """`number`: -errno or 0; with `unique` 0 the kind of what the kernel is told unasked.  A range is in the pipe already."""
        length = len(body)
        header = OUT_HEADER.pack(OUT_HEADER.size + length, number, unique)
        try:
            if isinstance(body, FileRange):
                self._pipe.empty_into(self._fd)
            elif length <= SMALL:
                os.write(self._fd, header + body)
            else:
                os.writev(self._fd, (header, body))
        except OSError as error:
            # ENOENT: whoever asked was killed meanwhile, or an inode to be forgotten is not known to the kernel.
            if error.errno != errno.ENOENT and error.errno not in GONE:
                log.error("the kernel takes no reply: %s", error.strerror)

    def _fill_pipe(self, unique: int, data: FileRange) -> bool:
        """Put a reply whose data lies in a local file into the pipe, from where it goes to whoever asked before anything else.

        False where the file cannot be read, of which pages in memory tell nothing: a cache's disk may fail where a store
        does not.  It is lent no more.
        """
        try:
            self._pipe.fill(OUT_HEADER.pack(OUT_HEADER.size + len(data), 0, unique), data)
        except OSError as error:
            log.warning("%s cannot be handed on, it is read instead: %s", data.file.path, error.strerror)
            data.file.sound = False
            return False
        return True

    def _serve_other(self, number: int, unique: int, buffer: mmap.mmap) -> None:
        """What no handler is for.  The kernel learns from one ENOSYS that a request is not to be made again."""
        if number == Op.INIT:
            self._init(unique, buffer)
        elif number == Op.DESTROY:
            self._answer(unique, 0)
        elif number == Op.INTERRUPT:
            self._interrupt(kernel.INODE_IN.unpack_from(buffer, kernel.BODY)[0])
        elif number not in UNANSWERED:
            self._answer(unique, -errno.ENOSYS)

    def _interrupt(self, unique: int) -> None:
        """A signal came for a process that waits for this request."""
        pid = self._asked.get(unique)
        if pid and self._nursery is not None:
            self._nursery.start_soon(self._let_go, unique, pid)

    async def _let_go(self, unique: int, pid: int) -> None:
        """A process that is being killed shall not hang for as long as the store does.  The request itself goes on.

        Other signals wait: programs expect no EINTR of a file, and a killed writer's close is worth some patience too.
        """
        while unique in self._asked:
            await trio.sleep(PATIENCE_S)
            if unique in self._asked and is_dying(pid):
                del self._asked[unique]
                self._answer(unique, -errno.EINTR)

    def _init(self, unique: int, buffer: mmap.mmap) -> None:
        """Agree on a protocol."""
        major, minor, read_ahead, offered = INIT_IN.unpack_from(buffer, kernel.BODY)
        if major != kernel.MAJOR or minor < kernel.OLDEST_MINOR:
            log.critical(
                "the kernel speaks FUSE %d.%d; %d.%d or newer is needed (Linux 4.20)",
                major,
                minor,
                kernel.MAJOR,
                kernel.OLDEST_MINOR,
            )
            self._answer(unique, -errno.EPROTO)
            self._ended = True
            return
        body = INIT_OUT.pack(
            kernel.MAJOR,
            min(minor, kernel.MINOR),
            read_ahead,
            WANTED & offered,
            MAX_BACKGROUND,
            CONGESTED,
            MAX_WRITE,
            1,  # times are exact to the nanosecond
            MAX_PAGES,
            *(0,) * 4,
        )
        self._answer(unique, 0, body)
