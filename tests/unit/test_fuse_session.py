"""The conversation with the kernel, whose part is played by the other end of a socket that keeps packets apart."""

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from jfs.chunk.file_range import FileRange, LocalFile
from jfs.errors import CorruptRecord, FsError
from jfs.fuse import kernel, requests
from jfs.fuse import session as session_module
from jfs.fuse.kernel import IN_HEADER, INIT_IN, INIT_OUT, OUT_HEADER, WRITE_IN, Op
from jfs.fuse.pipe import Pipe
from jfs.fuse.session import MAX_WRITE, WANTED, Row, Session
from jfs.meta.types import Cred
from tests.deadline import eventually_async

ROOM = 100


class Quiet:
    """Neither shows requests nor, at first, guesses where they go."""

    active = False

    def __init__(self) -> None:
        self.offered: memoryview | None = None
        self.landed: memoryview | None = None

    def room(self) -> memoryview | None:
        self.landed = None
        return self.offered

    async def served(self, row: Row, who: tuple[int, int, int], ino: int, args: tuple[Any, ...]) -> Any:
        raise AssertionError("nobody watches")


class Kernel:
    """The other side."""

    def __init__(self, end: socket.socket, session: Session, quiet: Quiet, counts: Counter[str]) -> None:
        self.end = end
        self.session = session
        self.quiet = quiet
        self.counts = counts
        self.last = 0

    async def send(self, op: int, body: bytes = b"", *, ino: int = 1, uid: int = 0) -> int:
        self.last += 1
        header = IN_HEADER.pack(IN_HEADER.size + len(body), op, self.last, ino, uid, 0, 7, 0, 0)
        await trio.lowlevel.wait_writable(self.end)
        self.end.send(header + body)
        return self.last

    async def answer(self) -> tuple[int, int, bytes]:
        """(unique number, errno, body)"""
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(self.end)
        packet = self.end.recv(2 << 20)
        length, error, unique = OUT_HEADER.unpack_from(packet)
        assert length == len(packet)
        return unique, -error, packet[OUT_HEADER.size :]

    async def ask(self, op: int, body: bytes = b"", **of: int) -> tuple[int, bytes]:
        unique = await self.send(op, body, **of)
        answered, error, reply = await self.answer()
        assert answered == unique
        return error, reply


def row(name: str, handler: Callable[..., Any], decode: Any = requests.name, encode: Any = bytes) -> Row:
    return Row(name, decode, handler, encode)


@asynccontextmanager
async def serving(rows: dict[Op, Row]) -> AsyncGenerator[Kernel, None]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    quiet, counts = Quiet(), Counter[str]()
    with ours, theirs, closing(Pipe()) as pipe:
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        session = Session(ours.fileno(), rows, quiet, counts, quiet, pipe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve)
            yield Kernel(theirs, session, quiet, counts)
            session.stop()


async def echo(cred: Cred, ino: int, name: bytes) -> bytes:
    return b"%d %d %s" % (cred.uid, ino, name)


async def test_both_sides_agree_on_what_both_can() -> None:
    offered = WANTED & ~kernel.ASYNC_DIO | 1 << 31
    async with serving({}) as side:
        error, reply = await side.ask(Op.INIT, INIT_IN.pack(7, 99, 1 << 17, offered) + bytes(48))
        major, minor, read_ahead, flags, _, _, max_write, grain, pages, *_ = INIT_OUT.unpack(reply)
    assert error == 0
    assert (major, minor, read_ahead) == (7, kernel.MINOR, 1 << 17)
    assert flags == WANTED & ~kernel.ASYNC_DIO
    assert (max_write, grain, pages) == (MAX_WRITE, 1, MAX_WRITE // 4096)


@pytest.mark.logs("the kernel speaks FUSE 7.26")
async def test_a_kernel_that_is_too_old_is_told_so() -> None:
    async with serving({}) as side:
        error, _ = await side.ask(Op.INIT, INIT_IN.pack(7, 26, 1 << 17, 0) + bytes(48))
        assert error == errno.EPROTO


async def test_a_request_is_decoded_served_and_counted() -> None:
    async with serving({Op.LOOKUP: row("lookup", echo)}) as side:
        assert await side.ask(Op.LOOKUP, b"a name\0", ino=5, uid=1000) == (0, b"1000 5 a name")
        assert side.counts == {"lookup": 1}


async def test_large_replies_arrive_whole() -> None:
    data = os.urandom(100_000)

    async def large(*_: Any) -> memoryview:
        return memoryview(data)

    async with serving({Op.READLINK: row("readlink", large, encode=lambda it: it)}) as side:
        assert await side.ask(Op.READLINK, b"\0") == (0, data)


@pytest.mark.logs("the data cannot be handed on, it is read instead: it is too short")
async def test_a_range_that_cannot_be_handed_on_is_asked_for_again(tmp_path: Path) -> None:
    """A cache's disk may have lost what the store still has."""
    (tmp_path / "data").write_bytes(b"0123456789")
    file = LocalFile(os.open(tmp_path / "data", os.O_RDONLY), "the data")
    sound: list[bool] = []

    async def lend(cred: Cred, ino: int, name: bytes) -> FileRange | bytes:
        sound.append(file.sound)
        return FileRange(file, 4, ino) if file.sound else b"from elsewhere"

    async with serving({Op.LOOKUP: row("lookup", lend, encode=lambda it: it)}) as side:
        assert await side.ask(Op.LOOKUP, b"x\0", ino=6) == (0, b"456789")
        assert await side.ask(Op.LOOKUP, b"x\0", ino=7) == (0, b"from elsewhere")
        assert sound == [True, True, False]
        file.sound = True
        assert await side.ask(Op.LOOKUP, b"x\0", ino=1) == (0, b"4"), "what was in the pipe is gone"


async def test_what_nobody_serves_is_refused_once_for_all() -> None:
    async with serving({}) as side:
        assert await side.ask(39) == (errno.ENOSYS, b"")
        assert await side.ask(4000) == (errno.ENOSYS, b"")


async def test_what_nobody_waits_for_is_not_answered() -> None:
    async with serving({Op.LOOKUP: row("lookup", echo)}) as side:
        for op in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):  # the last for nobody
            await side.send(op, bytes(16))
        assert (await side.ask(Op.LOOKUP, b"x\0"))[0] == 0


@pytest.mark.logs("lookup: .*torn", "lookup failed")
async def test_failures_are_answers() -> None:
    failures = iter([FsError(errno.ENOENT), CorruptRecord("node 1", "torn"), ValueError("a bug")])

    async def fail(*_: Any) -> bytes:
        raise next(failures)

    async with serving({Op.LOOKUP: row("lookup", fail)}) as side:
        assert [(await side.ask(Op.LOOKUP, b"x\0"))[0] for _ in range(3)] == [errno.ENOENT, errno.EIO, errno.EIO]


def holding(gate: trio.Event) -> Callable[[Cred, int, bytes], Awaitable[bytes]]:
    """A handler that answers with the name, for inode 2 once the gate is open."""

    async def wait(cred: Cred, ino: int, name: bytes) -> bytes:
        if ino == 2:
            await gate.wait()
        return name

    return wait


async def test_one_that_waits_holds_up_nobody() -> None:
    gate = trio.Event()
    async with serving({Op.LOOKUP: row("lookup", holding(gate))}) as side:
        held = [await side.send(Op.LOOKUP, b"held\0", ino=2) for _ in range(5)]
        for _ in range(20):
            assert await side.ask(Op.LOOKUP, b"free\0") == (0, b"free")
        gate.set()
        assert {(await side.answer())[0] for _ in held} == set(held)


async def test_a_crowd_that_waits_holds_up_nobody_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody read on, nobody would hear that those who wait are being killed."""
    monkeypatch.setattr(session_module, "MOST_IDLE", 8)
    gate = trio.Event()
    async with serving({Op.LOOKUP: row("lookup", holding(gate))}) as side:
        held = [await side.send(Op.LOOKUP, b"held\0", ino=2) for _ in range(200)]
        assert await side.ask(Op.LOOKUP, b"free\0") == (0, b"free")
        gate.set()
        assert {(await side.answer())[0] for _ in held} == set(held)
        await eventually_async(lambda: side.session._workers <= 8 + 2, 30, "most workers to end")
        assert len(side.session._buffers) <= 8 + 2
        assert await side.ask(Op.LOOKUP, b"free\0") == (0, b"free")


async def test_memory_bounds_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MOST_HELD", 5 * (IN_HEADER.size + 1000))
    gate = trio.Event()
    began = 0

    async def wait(*_: Any) -> bytes:
        nonlocal began
        began += 1
        await gate.wait()
        return b""

    async with serving({Op.LOOKUP: row("lookup", wait)}) as side:
        held = [await side.send(Op.LOOKUP, bytes(1000)) for _ in range(20)]
        await eventually_async(lambda: began == 5, 30, "some to begin")
        await trio.testing.wait_all_tasks_blocked()
        assert began == 5
        gate.set()
        assert {(await side.answer())[0] for _ in held} == set(held)


@pytest.mark.parametrize("dying", [True, False])
@pytest.mark.parametrize("gives_handle", [True, False])
async def test_only_the_dying_are_let_go(monkeypatch: pytest.MonkeyPatch, *, dying: bool, gives_handle: bool) -> None:
    looked: list[int] = []

    def is_dying(pid: int) -> bool:
        looked.append(pid)
        return dying

    monkeypatch.setattr(session_module, "is_dying", is_dying)
    monkeypatch.setattr(session_module, "PATIENCE_S", 0.01)
    gate = trio.Event()

    async def wait(*_: Any) -> bytes:
        await gate.wait()
        return b"done"

    held = msgspec.structs.replace(row("lookup", wait), gives_handle=gives_handle)
    async with serving({Op.LOOKUP: held, Op.RMDIR: row("rmdir", echo)}) as side:
        unique = await side.send(Op.LOOKUP, b"x\0")
        await side.send(Op.INTERRUPT, kernel.INODE_IN.pack(unique))
        if dying and not gives_handle:
            assert await side.answer() == (unique, errno.EINTR, b"")
            gate.set()
            assert (await side.ask(Op.RMDIR, b"y\0"))[0] == 0, "the late reply is not sent"
        else:
            if not gives_handle:
                await eventually_async(lambda: len(looked) > 2, 30, "the process to be looked at")
            gate.set()
            assert await side.answer() == (unique, 0, b"done")
    assert set(looked) == (set() if gives_handle else {7})


async def test_what_is_under_way_is_answered_before_the_end() -> None:
    began, gate = trio.Event(), trio.Event()

    async def wait(*_: Any) -> bytes:
        began.set()
        await gate.wait()
        return b"late"

    async with serving({Op.LOOKUP: row("lookup", wait)}) as side:
        unique = await side.send(Op.LOOKUP, b"x\0")
        await began.wait()
        side.session.stop()
        gate.set()
        assert await side.answer() == (unique, 0, b"late")


def write_body(data: bytes, offset: int = 0, kind: int = 0, flags: int = os.O_WRONLY | os.O_APPEND) -> bytes:
    return WRITE_IN.pack(3, offset, len(data), kind, flags) + data


@pytest.mark.parametrize("size", [1, ROOM - 1, ROOM, ROOM + 1, 5000, MAX_WRITE])
async def test_a_write_arrives_whole_in_the_room_or_out_of_it(size: int) -> None:
    data = os.urandom(size)
    room = memoryview(bytearray(ROOM))
    took: list[tuple[int, int, bytes, int, bool]] = []

    async with serving({}) as side:

        async def write(fh: int, offset: int, given: memoryview, flags: int) -> int:
            took.append((fh, offset, bytes(given), flags, given is side.quiet.landed))
            return len(given)

        side.session._rows[Op.WRITE] = row(
            "write", write, lambda *request: requests.write(side.quiet, *request), lambda count: b"%d" % count
        )
        assert await side.ask(Op.WRITE, write_body(data, 9, kernel.WRITE_CACHE)) == (0, b"%d" % size)
        side.quiet.offered = room
        await side.ask(Op.WRITE, write_body(b""))  # the offer counts from the next reading on
        assert await side.ask(Op.WRITE, write_body(data, 9)) == (0, b"%d" % size)
    assert took[0] == (3, 9, data, os.O_WRONLY, False), "a page of the cache is not appended"
    assert took[2] == (3, 9, data, os.O_WRONLY | os.O_APPEND, size <= ROOM)


@pytest.mark.parametrize("length", [1, 20, 60, 200, 255])
async def test_other_requests_are_put_together_where_a_write_was_expected(length: int) -> None:
    seen: list[tuple[Any, ...]] = []

    async def rename(*args: Any) -> bytes:
        seen.append(args[1:])
        return b""

    old, new = b"o" * length, b"n" * length
    async with serving({Op.RENAME2: row("rename", rename, requests.rename2)}) as side:
        side.quiet.offered = memoryview(bytearray(ROOM))
        for _ in range(2):
            body = struct.pack("<QII", 8, 1, 0) + old + b"\0" + new + b"\0"
            assert await side.ask(Op.RENAME2, body, ino=4) == (0, b"")
    assert seen == [(4, old, 8, new, 1)] * 2


async def test_the_kernel_can_be_made_to_forget_attributes() -> None:
    async with serving({}) as side:
        side.session.forget_attr(77)
        assert await side.answer() == (0, -kernel.NOTIFY_INVAL_INODE, kernel.INVAL_INODE.pack(77, -1, 0))
