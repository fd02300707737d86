"""From write(2) to slice records: one `FileWriter` for each open inode.

A write goes into an open slice of its chunk: 4 MiB blocks filled in place in pooled buffers.  A block that is full is
uploaded while the slice grows; the rest follows when the slice is sealed: by flush, by age, at the chunk's end, or because
memory is short.  A sealed slice whose blocks are all stored gets its record committed.

Order.  Later records of a chunk hide earlier ones, so those of one chunk are committed in the order in which their slices
were begun: sealing a slice seals all before it, and a slice waits for the one before it.  For the same reason a write joins
an open slice only if no younger slice overlaps it.  `dirty_slice` tells how small scattered writes share a slice.

Errors.  A block that the store refuses is tried again, and so is one that cannot be stored for any other reason; then the
slice is dropped: logged, counted in `error_seq`, and so reported on every handle once, by its next fsync, flush or write.
"""

import errno
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio

from jfs.errors import Conflict, CorruptRecord, FsError, StoreError, StoreFull
from jfs.meta.types import CHUNK_SIZE, Ino
from jfs.vfs.buffers import Buffer, BufferPool
from jfs.vfs.dirty_slice import DirtySlice
from jfs.vfs.durability import Durability
from jfs.vfs.landing import Landing

if TYPE_CHECKING:
    from jfs.chunk.store import BlockStore
    from jfs.meta.ahead import Ahead
    from jfs.meta.client import MetaClient
    from jfs.vfs.files import OpenFile

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

OPEN_SLICES: Final = 4
"""Unsealed slices of one chunk: so many places where a file may grow at once, each with a slice of its own.  From then on
small writes elsewhere are packed into the youngest; a large one has the oldest sealed."""

OLD_S: Final = 5.0
IDLE_S: Final = 1.0
RETRY_PAUSE_S: Final = 0.5
TIMES: Final = 64
"""So many slices are looked at for the oldest time; where a file has more, the order is kept by a nanosecond more each."""
UNFORESEEN_S: Final = 60.0
"""So long a block is tried again that fails in a way which nobody below has been patient with: no thread to be had, a bug."""

REFUSED: Final = {errno.ENOSPC: errno.ENOSPC, errno.EDQUOT: errno.EDQUOT, errno.EROFS: errno.EROFS} | dict.fromkeys(
    (errno.ENOENT, errno.EPERM, errno.EINVAL), errno.EBADF
)
"""What a refused record tells the writer; the record is certainly not there, so its blocks can go."""


class WriteContext:
    """What the writers of one mount share."""

    def __init__(
        self, meta: "MetaClient", blocks: "BlockStore", pool: BufferPool, durability: Durability, put_tries: int
    ) -> None:
        self.meta = meta
        self.blocks = blocks
        self.pool = pool
        self.durability = durability
        self.put_tries = put_tries
        self.nursery: trio.Nursery | None = None
        self.on_records: Callable[[Ino, int, int], None] = _ignore
        """(inode, chunk, records in it) after each commit."""
        self.on_change: Callable[[Ino], None] = _unheard
        """After each commit too."""
        self.relieve: Callable[[Ino, int, int], Awaitable[None]] = _nobody_waits
        """The same; returns when the chunk has few enough records for another."""
        self.dirty: set[FileWriter] = set()
        self.landing = Landing(pool)
        pool.relieve = self.seal_all

    def seal_all(self) -> None:
        """Memory is short: let everything that is buffered go to the store."""
        for writer in list(self.dirty):
            writer.seal_all()

    def tick(self) -> None:
        """Called twice a second: seal what is old or idle."""
        now = trio.current_time()
        for writer in list(self.dirty):
            writer.seal_old(now)
        self.landing.tick()

    def start(self, work: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        if self.nursery is None:
            raise RuntimeError("the mount's background is not running")
        self.nursery.start_soon(work, *args)


class FileWriter:
    """The unflushed data of one inode."""

    __slots__ = (
        "_chunks",
        "_context",
        "_drawing",
        "_file",
        "_given_ns",
        "_lot",
        "_paused",
        "_pausing",
        "_tail",
        "_waiting",
        "_writing",
        "error",
        "error_seq",
        "mtime_ns",
    )

    def __init__(self, file: "OpenFile", context: WriteContext) -> None:
        self._file = file
        self._context = context
        self._chunks: dict[int, list[DirtySlice]] = {}
        """Slices that are not yet committed, by chunk, oldest first; the unsealed ones are always the youngest."""
        self._lot = trio.lowlevel.ParkingLot()
        self._drawing: trio.Lock | None = None
        self._paused = False
        self._pausing: trio.Lock | None = None
        self._tail: DirtySlice | None = None
        """What the latest write went to."""
        self._writing = 0
        self._waiting = 0
        """Writes that go part by part and may have to wait for memory; appends wait for them."""
        self.error = 0
        """The latest failure's errno."""
        self.error_seq = 0
        """How many failures there were."""
        self.mtime_ns = 0
        """When the latest write was."""
        self._given_ns = 0
        """The time that the latest commit gave the file."""

    @property
    def dirty(self) -> bool:
        return bool(self._chunks)

    @property
    def end(self) -> int:
        """Where the unflushed data ends in the file."""
        return max((piece.index * CHUNK_SIZE + piece.high for piece in self._slices()), default=0)

    def _slices(self) -> list[DirtySlice]:
        return [piece for pieces in self._chunks.values() for piece in pieces]

    def overlaps(self, offset: int, size: int) -> bool:
        """Whether unflushed data lies in the range."""
        end = offset + size
        for index in range(offset // CHUNK_SIZE, (end - 1) // CHUNK_SIZE + 1):
            base = index * CHUNK_SIZE
            for piece in self._chunks.get(index, ()):
                if piece.overlaps(max(offset - base, 0), min(end - base, CHUNK_SIZE)):
                    return True
        return False

    def tail(self) -> tuple[Buffer | None, int]:
        """Where the next bytes go if they continue the latest write: buffer and offset; no buffer at 0: a new block."""
        piece = self._tail
        if piece is None or piece.sealed:
            return None, 1
        number, inside = divmod(piece.length, self._context.pool.block_size)
        return (piece.buffers[number] if number < len(piece.buffers) else None), inside

    # -- writing

    async def write(self, offset: int, data: bytes | memoryview, *, append: bool = False) -> None:
        """Take the data over; returns as soon as it is in buffers.  With `append` it goes to the end of the file."""
        landing = self._context.landing
        while self._paused or (append and self._waiting):
            data = landing.settle(data)
            await self._lot.park()
        file = self._file
        if append:
            offset = file.length  # the kernel's idea of it may be out of date either way
        size = len(data)
        self._writing += 1
        try:
            index, pos = divmod(offset, CHUNK_SIZE)
            if pos + size > CHUNK_SIZE or not self._put_now(index, pos, data, size):
                await self._put_slowly(offset, memoryview(landing.settle(data)))
            elif offset + size > file.length:
                file.length = offset + size
            landing.note(self, size)
        finally:
            self._writing -= 1
            if self._lot:
                self._lot.unpark_all()

    def _put_now(self, index: int, pos: int, data: bytes | memoryview, size: int) -> bool:
        """The usual case: it fits into one block whose buffer is there.  False: nothing was done."""
        piece, offset = self._place(index, pos, size)
        if piece is None:
            return False
        number, inside = divmod(offset, self._context.pool.block_size)
        landing = self._context.landing
        if number == len(piece.buffers) and inside == 0:
            buffer = landing.take_spare(data)
            if buffer is not None:
                piece.buffers.append(buffer)
        else:
            buffer = piece.buffers[number] if number < len(piece.buffers) else None
        if buffer is None or inside + size > buffer.size:
            return False
        if not landing.is_at(data, buffer, inside):
            buffer.view[inside : inside + size] = data
        self._wrote(piece, pos, offset, size)
        return True

    async def _put_slowly(self, offset: int, view: memoryview) -> None:
        """Any write: part by part, waiting for buffers.  The file grows with each part, so nobody reads what is not there."""
        self._waiting += 1
        try:
            while view:
                index, pos = divmod(offset, CHUNK_SIZE)
                part = await self._put_part(index, pos, view[: CHUNK_SIZE - pos])
                offset += part
                view = view[part:]
                if offset > self._file.length:
                    self._file.length = offset
        finally:
            self._waiting -= 1

    async def _put_part(self, index: int, pos: int, view: memoryview) -> int:
        """Write what goes into one block; how much that was.  Waiting for a buffer starts the search anew."""
        pool = self._context.pool
        spare: Buffer | None = None
        try:
            while True:
                piece, offset = self._place(index, pos, len(view))
                number, inside = divmod(offset, pool.block_size)
                size = min(len(view), pool.block_size - inside)
                buffer = piece.buffers[number] if piece is not None and number < len(piece.buffers) else None
                if buffer is not None and inside + size <= buffer.size:
                    break
                want = pool.small_size if number == 0 and inside + size <= pool.small_size else pool.block_size
                if spare is None or spare.size < want:
                    if spare is not None:
                        pool.give(spare)
                    spare = pool.take_now(want)
                    if spare is None:
                        spare = await pool.take(want)
                        continue
                if piece is None:
                    piece = self._begin(index)
                buffer, spare = self._set_buffer(piece, number, buffer, spare), None
                break
        finally:
            if spare is not None:
                pool.give(spare)
        buffer.view[inside : inside + size] = view[:size]
        self._wrote(piece, pos, offset, size)  # type: ignore[arg-type]
        return size

    def _set_buffer(self, piece: DirtySlice, number: int, old: Buffer | None, new: Buffer) -> Buffer:
        """Give block `number` its buffer, or a larger one."""
        if old is None:
            piece.buffers.append(new)
            return new
        filled = piece.length - number * self._context.pool.block_size
        new.view[:filled] = old.view[:filled]
        piece.buffers[number] = new
        self._context.pool.give(old)
        return new

    def _place(self, index: int, pos: int, size: int) -> tuple[DirtySlice | None, int]:
        """The open slice that a write to [pos, pos+size) goes into, and where; None where it needs one of its own.

        It continues or rewrites a slice, if nothing younger overlaps it; else it is packed into the youngest.
        """
        pieces = self._chunks.get(index)
        if pieces is None or pieces[-1].sealed:
            return None, 0
        block_size = self._context.pool.block_size
        for piece in reversed(pieces):
            if piece.sealed:
                break
            offset = piece.joins(pos, block_size)
            if offset is not None:
                return piece, offset
            if piece.overlaps(pos, pos + size):
                break
        youngest = pieces[-1]
        packing = len(youngest.pieces) > 1 or (len(pieces) >= OPEN_SLICES and not pieces[-OPEN_SLICES].sealed)
        return (youngest, youngest.length) if packing and size < block_size else (None, 0)

    def _begin(self, index: int) -> DirtySlice:
        """A new slice; seals the oldest open one of the chunk if there are many."""
        pieces = self._chunks.setdefault(index, [])
        if len(pieces) >= OPEN_SLICES and not pieces[-OPEN_SLICES].sealed:
            self._seal(pieces[-OPEN_SLICES])
        fresh = DirtySlice(index, pieces[-1] if pieces else None, trio.current_time())
        pieces.append(fresh)
        self._context.dirty.add(self)
        return fresh

    def _wrote(self, piece: DirtySlice, pos: int, offset: int, size: int) -> None:
        """Bytes for chunk position `pos` are in the slice: note it, upload blocks that are full."""
        self._tail = piece
        piece.wrote(pos, offset, size)
        piece.mtime_ns = self.mtime_ns = self._context.meta.now_ns()
        piece.touched = trio.current_time()
        full = piece.length // self._context.pool.block_size
        while piece.started < full:
            self._start_upload(piece)
        if piece.full:
            self._seal(piece)

    # -- sealing

    def seal_all(self) -> None:
        for pieces in list(self._chunks.values()):
            self._seal(pieces[-1])

    def seal_old(self, now: float) -> None:
        for piece in self._slices():
            if not piece.sealed and (now - piece.begun >= OLD_S or now - piece.touched >= IDLE_S):
                self._seal(piece)

    def _seal(self, last: DirtySlice) -> None:
        """No more bytes for this slice and those before it in its chunk; a task finishes each."""
        pieces = self._chunks[last.index]
        first = len(pieces)
        while first and not pieces[first - 1].sealed:
            first -= 1
        for piece in pieces[first:]:
            piece.sealed = True
            self._context.start(self._finish, piece, 0)
            if piece is last:
                return

    async def flush(self) -> None:
        """Return once every byte written before this call is committed or given up (see `error_seq`)."""
        if not self._chunks:
            return
        waiting = self._slices()
        if len(waiting) == 1 and not waiting[0].sealed:
            waiting[0].sealed = True
            await self._finish(waiting[0], 0)  # no task for a small file's only slice
            return
        self.seal_all()
        for piece in waiting:
            while not piece.done:
                await piece.lot.park()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None, None]:
        """No write begins, and none is under way (for truncate)."""
        if self._pausing is None:
            self._pausing = trio.Lock()
        async with self._pausing:
            self._paused = True
            try:
                while self._writing:
                    await self._lot.park()
                yield
            finally:
                self._paused = False
                self._lot.unpark_all()

    # -- storing

    def _start_upload(self, piece: DirtySlice) -> None:
        """The next block is full: a task uploads it."""
        number = piece.started
        piece.started += 1
        piece.uploading += 1
        self._context.pool.uploading += 1
        self._context.start(self._upload, piece, number)

    async def _upload(self, piece: DirtySlice, number: int) -> None:
        """Store one block and give its buffer back."""
        pool = self._context.pool
        buffer = piece.buffers[number]
        if buffer is None:
            raise RuntimeError("a block was uploaded twice")
        size = min(pool.block_size, piece.length - number * pool.block_size)
        try:
            if not piece.error:
                if not piece.id:
                    await self._draw_id(piece)
                await self._put(piece, number, buffer.view[:size])
        except FsError as error:
            piece.error = piece.error or error.errno
        except Exception:
            log.exception("inode %d: block %d_%d", self._file.ino, piece.id, number)
            piece.error = errno.EIO
        finally:
            piece.buffers[number] = None
            piece.uploading -= 1
            pool.uploading -= 1
            pool.give(buffer)
            piece.lot.unpark_all()

    async def _draw_id(self, piece: DirtySlice) -> None:
        drawn = self._context.meta.new_slice_id_now()  # a lock is a trip through the loop
        if drawn is not None:
            piece.id = drawn
            return
        if self._drawing is None:
            self._drawing = trio.Lock()
        async with self._drawing:
            if not piece.id:
                drawn = await self._context.meta.new_slice_id()
                piece.id = piece.id or drawn  # another block may have found one in memory meanwhile

    async def _put(self, piece: DirtySlice, number: int, data: memoryview) -> None:
        """Raises FsError once the store has refused the block for good."""
        tries = self._context.put_tries
        deadline: float | None = None
        while True:
            try:
                mark = self._context.meta.fingerprinting
                piece.fingerprints[number] = await self._context.blocks.put(piece.id, number, data, mark=mark)
                return
            except StoreFull as error:
                log.error("inode %d: block %d_%d: %s", self._file.ino, piece.id, number, error)
                raise FsError(errno.ENOSPC) from error
            except StoreError as error:
                tries -= 1
                if tries <= 0:
                    log.error("inode %d: block %d_%d is given up: %s", self._file.ino, piece.id, number, error)
                    raise FsError(errno.EIO) from error
                log.warning("inode %d: block %d_%d: %s; trying again", self._file.ino, piece.id, number, error)
            except Exception as error:
                deadline = deadline or trio.current_time() + UNFORESEEN_S
                log.exception("inode %d: block %d_%d", self._file.ino, piece.id, number)
                if trio.current_time() >= deadline:
                    log.error("inode %d: block %d_%d is given up: %s", self._file.ino, piece.id, number, error)
                    raise FsError(errno.EIO) from error
            await trio.sleep(RETRY_PAUSE_S)

    async def _finish(self, piece: DirtySlice, _: int) -> None:
        """Store what is left of a sealed slice, then commit its record when its turn comes."""
        pool = self._context.pool
        upload_failed = False
        changes = self._file.changes
        try:
            ahead = self._begin_ahead(piece)
            while piece.started < len(piece.buffers):
                number = piece.started
                piece.started += 1
                piece.uploading += 1
                pool.uploading += 1
                await self._upload(piece, number)
            while piece.uploading:
                await piece.lot.park()
            before = piece.before
            while before is not None and not before.done:
                await before.lot.park()
            piece.before = None
            upload_failed = bool(piece.error)
            if not upload_failed:
                await self._commit(piece, ahead if self._file.changes == changes else None)
        except FsError as error:
            piece.error = error.errno
        except Exception:
            log.exception("inode %d: slice %d", self._file.ino, piece.id)
            piece.error = errno.EIO
        except BaseException:
            piece.error = errno.EIO
            raise
        finally:
            self._end(piece)
        if upload_failed and piece.id:
            await self._remove_blocks(piece)  # a full store has room again

    def _begin_ahead(self, piece: DirtySlice) -> "Ahead | None":
        """Have the transaction of the record begin while the last blocks are on their way to the store.

        The bytes are all there, so every write(2) whose effect it commits has begun before it; it commits when the blocks are
        stored.  Slices of one file that are finished at the same time would only conflict.
        """
        under_way = piece.uploading or piece.started < len(piece.buffers)
        if not under_way or any(other.sealed and other is not piece for other in self._slices()):
            return None
        ahead = self._context.meta.slices_ahead(self._file.ino, piece.index)
        if ahead is not None:
            self._context.start(ahead.begin)
        return ahead

    async def _commit(self, piece: DirtySlice, ahead: "Ahead | None") -> None:
        """Raises FsError where the metadata refuses the record."""
        context = self._context
        file = self._file
        try:
            async with context.durability:
                written = await context.meta.write_slices(
                    file.ino, piece.index, piece.records(), self._take_time(piece), piece.fingerprint(), ahead
                )
        except FsError as error:
            refused = REFUSED.get(error.errno)
            piece.gone = error.errno == errno.ENOENT
            level = logging.INFO if piece.gone else logging.ERROR
            log.log(level, "inode %d: the record of slice %d was refused: %s", file.ino, piece.id, error)
            if refused is None:
                raise FsError(errno.EIO) from error
            await self._remove_blocks(piece)
            raise FsError(refused) from error
        except (Conflict, CorruptRecord) as error:
            log.error("inode %d: the record of slice %d was not stored: %s", file.ino, piece.id, error)
            raise FsError(errno.EIO) from error
        file.committed(written.attr, piece.index)
        context.on_change(file.ino)
        context.on_records(file.ino, piece.index, written.records)
        await context.relieve(file.ino, piece.index, written.records)

    def _take_time(self, piece: DirtySlice) -> int:
        """The file's mtime by a commit that begins now: the oldest of those that its slices have still to give.

        Slices of different chunks are committed in any order.  So mtime never goes back, each commit moves it (it is by mtime
        that others find that there are new bytes), and after the last it is the time of the latest write.
        """
        some = islice((other for pieces in self._chunks.values() for other in pieces), TIMES)
        oldest = min((piece, *(other for other in some if not other.dated)), key=_mtime)
        piece.mtime_ns, oldest.mtime_ns = oldest.mtime_ns, piece.mtime_ns
        piece.dated = True
        self._given_ns = max(piece.mtime_ns, self._given_ns + 1)
        return self._given_ns

    async def _remove_blocks(self, piece: DirtySlice) -> None:
        try:
            await self._context.blocks.remove(piece.id, piece.length)
        except StoreError as error:
            log.warning("blocks of the lost slice %d stay until the next gc: %s", piece.id, error)
        except Exception:  # nobody waits for this, so nobody would hear of it
            log.exception("blocks of the lost slice %d stay until the next gc", piece.id)

    def _end(self, piece: DirtySlice) -> None:
        """The slice is committed or given up."""
        piece.done = True
        if piece is self._tail:
            self._tail = None
        for number, buffer in enumerate(piece.buffers):
            if buffer is not None:
                piece.buffers[number] = None
                self._context.pool.give(buffer)
        pieces = self._chunks[piece.index]
        pieces.remove(piece)
        if not pieces:
            del self._chunks[piece.index]
            if not self._chunks:
                self._context.dirty.discard(self)
        if piece.error:
            self.error = piece.error
            self.error_seq += 1
            self._file.lost()
            log.log(
                logging.INFO if piece.gone else logging.ERROR,
                "inode %d: %d bytes at %d are lost: %s",
                self._file.ino,
                piece.length,
                piece.index * CHUNK_SIZE + piece.low,
                FsError(piece.error),
            )
        piece.lot.unpark_all()


def _mtime(piece: DirtySlice) -> int:
    return piece.mtime_ns


def _ignore(ino: Ino, index: int, records: int) -> None:
    """Nobody compacts."""


async def _nobody_waits(ino: Ino, index: int, records: int) -> None:
    """Nobody compacts."""


def _unheard(ino: Ino) -> None:
    """Nobody remembers attributes."""
