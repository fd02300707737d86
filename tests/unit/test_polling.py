"""How FUSE workers wait: polling is earned and lost, one worker reads at a time, closing is heard."""

import os
from collections.abc import Generator

import pytest
import trio
import trio.testing

from jfs.fuse.polling import CREDIT_MAX, MISS_COST, Poller, ReadLock


@pytest.fixture
def pipe() -> Generator[tuple[int, int], None, None]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_a_descriptor_that_is_readable_is_a_hit(pipe: tuple[int, int]) -> None:
    poller = Poller(pipe[0])
    os.write(pipe[1], b"x")
    for _ in range(3):
        await poller.wait_readable()
    assert (poller.hits, poller.sleeps) == (3, 0)


async def test_nothing_to_read_is_slept_for(pipe: tuple[int, int]) -> None:
    poller = Poller(pipe[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.wait_readable)
        await trio.testing.wait_all_tasks_blocked()
        os.write(pipe[1], b"x")
    assert (poller.hits, poller.sleeps) == (0, 1)


async def test_a_few_misses_end_the_polling(pipe: tuple[int, int]) -> None:
    poller = Poller(pipe[0])
    os.write(pipe[1], b"x")
    for _ in range(CREDIT_MAX + 5):
        await poller.wait_readable()
    os.read(pipe[0], 1)
    for _ in range(CREDIT_MAX // MISS_COST):
        assert poller.credit > 0
        with trio.move_on_after(0.01):
            await poller.wait_readable()
    assert poller.credit <= 0


async def test_who_is_not_eager_sleeps_at_once(pipe: tuple[int, int]) -> None:
    poller = Poller(pipe[0])
    os.write(pipe[1], b"x")
    await poller.wait_readable(eager=False)
    assert (poller.hits, poller.sleeps) == (1, 0), "what is there already needs no sleep"
    os.read(pipe[0], 1)
    credit = poller.credit = CREDIT_MAX
    with trio.move_on_after(0.01):
        await poller.wait_readable(eager=False)
    assert (poller.credit, poller.sleeps) == (credit, 1), "and it costs no credit"


async def test_other_tasks_get_their_turn_however_fast_requests_come(pipe: tuple[int, int]) -> None:
    poller = Poller(pipe[0])
    os.write(pipe[1], b"x")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(100):
            await poller.turn()
            await poller.wait_readable()
        nursery.cancel_scope.cancel()
    assert turns >= 10


async def test_closing_is_heard_asleep_and_later(pipe: tuple[int, int]) -> None:
    poller = Poller(pipe[0])

    async def sleeper() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await poller.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.testing.wait_all_tasks_blocked()
        poller.close()
    await sleeper()


async def test_one_reader_at_a_time_and_the_idle_one_takes_over() -> None:
    lock = ReadLock()
    inside = 0
    served = {"a": 0, "b": 0}

    async def worker(name: str) -> None:
        nonlocal inside
        while sum(served.values()) < 20:
            async with lock:
                inside += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1
            served[name] += 1
            await trio.lowlevel.checkpoint()  # a request that has to wait

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker, "a")
        nursery.start_soon(worker, "b")
    assert min(served.values()) > 0


async def test_a_worker_that_did_not_wait_goes_on_reading() -> None:
    lock = ReadLock()
    order: list[str] = []

    async def worker(name: str) -> None:
        for _ in range(3):
            async with lock:
                order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker, "a")
        nursery.start_soon(worker, "b")
    assert order in (list("aaabbb"), list("bbbaaa"))


async def test_a_waiting_worker_can_be_cancelled() -> None:
    lock = ReadLock()

    async def impatient() -> None:
        with trio.move_on_after(0):
            async with lock:
                raise AssertionError("the lock was held")

    async with lock:
        await impatient()
    async with lock:
        pass
