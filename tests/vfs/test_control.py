"""`.control` under requests that no command makes."""

import errno
import sys

from jfs.vfs.control import COMPACT, DRAIN, HEADER, MOST_BODY, ControlHandle
from tests.meta.volumes import fails
from tests.vfs.mounted import Mounted, mounted

MIB = 1 << 20
UNKNOWN = 5


async def answers(control: ControlHandle) -> bytes:
    return await control.read(0, 4 * MIB)


def opened(m: Mounted) -> ControlHandle:
    return ControlHandle(m.vfs, privileged=True)


def kept(control: ControlHandle) -> int:
    return sys.getsizeof(control._request)


async def test_a_long_body_is_refused_at_once_and_not_kept() -> None:
    async with mounted() as m:
        control = opened(m)
        assert await control.write(0, HEADER.pack(UNKNOWN, 0xFFFFFFFF)) == HEADER.size
        assert await answers(control) == bytes([errno.EINVAL])
        for _ in range(20):
            assert await control.write(0, bytes(MIB)) == MIB
            assert kept(control) < MIB
        assert await answers(control) == b""


async def test_the_request_after_a_long_body_is_carried_out() -> None:
    async with mounted() as m:
        for cut in (3, 8, 9, 5000, 9000, 10_008, 10_010):
            control = opened(m)
            message = HEADER.pack(COMPACT, 10_000) + bytes(10_000) + HEADER.pack(DRAIN, 1) + b"\0"
            for part in (message[:cut], message[cut:]):
                await control.write(0, part)
            assert await answers(control) == bytes([errno.EINVAL, 0])


async def test_a_body_that_is_just_short_enough_comes_in_pieces() -> None:
    async with mounted() as m:
        control = opened(m)
        for byte in HEADER.pack(UNKNOWN, MOST_BODY) + bytes(MOST_BODY - 1):
            await control.write(0, bytes([byte]))
        assert await answers(control) == b""
        await control.write(0, b"x")
        assert await answers(control) == bytes([errno.EINVAL])


async def test_who_takes_no_answer_is_not_served_for_ever() -> None:
    async with mounted() as m:
        control = opened(m)
        requests = HEADER.pack(UNKNOWN, 0) * (MIB // HEADER.size)
        for _ in range(9):
            await control.write(0, requests)
        await fails(errno.EAGAIN, control.write(0, requests))
        assert len(await answers(control)) == 9 * MIB // HEADER.size
        await control.write(0, requests)
