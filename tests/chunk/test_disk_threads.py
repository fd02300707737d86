"""Calls on a disk that may hang."""

import errno
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from jfs.chunk.disk_threads import Attempt, DiskThreads, Hangs
from tests.deadline import eventually_async


async def test_a_call_gives_its_result_or_its_error() -> None:
    disk = DiskThreads()
    ends: list[bool] = []
    assert await disk.run(divmod, 7, 2, over=ends.append) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await disk.run(divmod, 7, 0, over=ends.append, undo=lambda: ends.append(False))
    assert ends == [True, False]
    assert not disk.hangs


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_call_that_hangs_is_left_and_undone(*, cancelled: bool) -> None:
    disk = DiskThreads()
    gate, begun = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    events: list[str] = []

    def hang(what: str, wanted: Callable[[], bool]) -> str:
        assert wanted()
        token.run_sync_soon(begun.set)
        assert gate.wait(60)
        events.append(f"{what}, wanted: {wanted()}")
        return what

    async def ask() -> None:
        patience_s = 60.0 if cancelled else 0.1
        undo = lambda: events.append("undone")  # noqa: E731
        over = lambda done: events.append(f"over, done: {done}")  # noqa: E731
        await disk.run(hang, "a write", writes=True, patience_s=patience_s, undo=undo, over=over)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def asked() -> None:
                with pytest.raises(Hangs) as caught:
                    await ask()
                assert caught.value.errno == errno.ETIMEDOUT
                assert caught.value.first

            nursery.start_soon(ask if cancelled else asked)
            await begun.wait()
            if cancelled:
                scope.cancel()
    assert disk.hangs
    assert events == []
    ends: list[bool] = []
    with pytest.raises(Hangs) as caught:
        await disk.run(divmod, 7, 2, over=ends.append)  # at once, and nothing is asked of the disk
    assert not caught.value.first
    assert ends == [False]
    gate.set()
    await eventually_async(lambda: not disk.hangs)
    assert events == ["a write, wanted: False", "undone", "over, done: False"]
    assert await disk.run(divmod, 7, 2) == (3, 1)


async def test_who_has_waited_for_a_thread_in_vain_does_not_blame_the_disk() -> None:
    disk = DiskThreads()
    disk.others.total_tokens = 1
    gate = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.run, gate.wait, 60)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Hangs) as caught:
            await disk.run(divmod, 7, 2, patience_s=0.05)
        assert not caught.value.first
        assert not disk.hangs
        gate.set()


def test_what_is_done_at_the_last_moment_counts() -> None:
    attempt: Attempt[None] = Attempt()
    assert attempt.begin()
    assert attempt.end(done=True)
    attempt.leave()
    assert attempt.done
    assert not attempt.running


def test_what_ends_after_it_was_left_does_not_and_runs_until_that_is_known() -> None:
    attempt: Attempt[None] = Attempt()
    assert attempt.begin()
    attempt.leave()
    assert not attempt.wanted()
    assert not attempt.end(done=True)
    assert not attempt.done
    assert attempt.running, "it has still to be undone"
    late: Attempt[None] = Attempt()
    late.leave()
    assert not late.begin()
    assert not late.running
