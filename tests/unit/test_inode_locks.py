"""Turns of those who change the same inode."""

from itertools import permutations

import trio
import trio.testing

from jfs.meta.inode_locks import InodeLocks


async def test_one_after_the_other_in_order() -> None:
    locks = InodeLocks()
    order: list[str] = []

    async def change(name: str, *inos: int) -> None:
        async with locks.hold(*inos):
            order.append(f"{name} in")
            await trio.testing.wait_all_tasks_blocked()
            order.append(f"{name} out")

    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c"):
            nursery.start_soon(change, name, 7)
    assert order in [[f"{name} {way}" for name in names for way in ("in", "out")] for names in permutations("abc")]
    assert locks.turns == {}


async def test_others_do_not_wait() -> None:
    locks = InodeLocks()
    async with locks.hold(7):
        with trio.fail_after(30):
            async with locks.hold(8):
                pass


async def test_two_pairs_cannot_wait_for_each_other() -> None:
    locks = InodeLocks()

    async def change(first: int, second: int) -> None:
        for _ in range(50):
            async with locks.hold(first, second):
                await trio.lowlevel.checkpoint()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, 1, 2)
            nursery.start_soon(change, 2, 1)
    assert locks.turns == {}


async def test_the_same_inode_twice_is_once() -> None:
    locks = InodeLocks()
    with trio.fail_after(30):
        async with locks.hold(3, 3):
            assert list(locks.turns) == [3]


async def test_who_is_cancelled_leaves_no_turn_behind() -> None:
    locks = InodeLocks()

    async def give_up() -> None:
        with trio.move_on_after(0.01) as scope:
            async with locks.hold(1, 2, 3):
                raise AssertionError("that turn was taken")
        assert scope.cancelled_caught

    async with locks.hold(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
        assert list(locks.turns) == [2]
        async with locks.hold(1, 3):
            pass
    assert locks.turns == {}
