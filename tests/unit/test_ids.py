"""Ids drawn in batches: one fetch at a time, whoever wants it."""

import pytest
import trio
import trio.testing

from jfs.meta.ids import Ids
from jfs.meta.run import run_inline


class Counter:
    """Gives batches of `size`; each fetch waits for `gate`, if there is one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fetches = 0
        self.gate: trio.Event | None = None
        self.failures = 0

    async def fetch(self) -> tuple[int, int]:
        self.fetches += 1
        number = self.fetches
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("the counter is away")
        return (number - 1) * self.size, number * self.size


async def test_who_comes_together_shares_a_fetch() -> None:
    counter = Counter(100)
    counter.gate = trio.Event()
    ids = Ids(counter.fetch, 100)
    drawn: list[int] = []

    async def draw() -> None:
        drawn.append(await ids.draw())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ids.refill)
        for _ in range(10):
            nursery.start_soon(draw)
        await trio.testing.wait_all_tasks_blocked()
        counter.gate.set()
    assert sorted(drawn) == list(range(10))
    assert counter.fetches == 1


async def test_who_waited_for_a_fetch_that_failed_tries_himself() -> None:
    counter = Counter(100)
    counter.gate = trio.Event()
    counter.failures = 1
    ids = Ids(counter.fetch, 100)
    drawn: list[int] = []

    async def draw() -> None:
        drawn.append(await ids.draw())

    async def refill() -> None:
        with pytest.raises(OSError, match="away"):
            await ids.refill()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refill)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(draw)
        nursery.start_soon(draw)
        await trio.testing.wait_all_tasks_blocked()
        counter.gate.set()
    assert sorted(drawn) == [100, 101]
    assert counter.fetches == 2


async def test_the_next_batch_is_there_before_this_one_ends() -> None:
    counter = Counter(20)
    ids = Ids(counter.fetch, 20)
    low = 0

    def on_low() -> None:
        nonlocal low
        low += 1

    ids.on_low = on_low
    for number in range(60):
        assert await ids.draw() == number
        if low > counter.fetches - 1:
            await ids.refill()
            assert counter.fetches == low + 1
    assert low == 3


def test_drawing_needs_no_loop() -> None:
    counter = Counter(2)
    ids = Ids(counter.fetch, 2)
    assert [run_inline(ids.draw()) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert counter.fetches == 3
