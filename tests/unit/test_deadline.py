"""The waiting helpers of the suite itself."""

import time

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.deadline import eventually, eventually_async


def test_eventually_returns_the_first_true_result() -> None:
    answers = iter([0, "", "yes"])
    assert eventually(lambda: next(answers)) == "yes"


def test_eventually_names_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.01 s: the moon"):
        eventually(lambda: False, 0.01, "the moon", pause=0.001)


def test_eventually_looks_once_more_after_a_standstill() -> None:
    """Of this process, which must not be taken for one of those that it waits for."""
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        time.sleep(0.05)
        return looks == 2

    assert eventually(look, 0.01, pause=0.0)


async def test_eventually_async_waits_for_a_task() -> None:
    done: list[int] = []

    async def work() -> None:
        await trio.lowlevel.checkpoint()
        done.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        assert await eventually_async(lambda: done, 5) == [1]
