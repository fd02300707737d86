"""The retry loop and the loopless driver."""

import errno
import subprocess
import sys
from types import TracebackType
from typing import Self

import pytest
import trio
import trio.testing

from jfs.errors import Conflict, FsError
from jfs.meta.run import GIVE_UP_S, LONGEST_PAUSE_S, read, run, run_inline
from jfs.meta.transaction import Charges


class Scripted:
    """An engine whose transactions conflict where the script says so: at `enter`, in the `body`, at `exit`, or not at all."""

    def __init__(self, *script: str) -> None:
        self.script = list(script)
        self.begun: list[bool] = []
        self.charges = Charges()
        self.at = ""

    def transaction(self, *, write: bool) -> "Scripted":
        self.begun.append(write)
        self.at = self.script.pop(0) if self.script else ""
        self.charges = Charges()
        return self

    async def __aenter__(self) -> Self:
        if self.at == "enter":
            raise Conflict("enter")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self.at == "exit":
            raise Conflict("exit")

    async def work(self) -> None:
        if self.at == "body":
            raise Conflict("body")


async def double(tx: Scripted, value: int) -> int:
    tx.charges.charge(4096, 1)
    await tx.work()
    return value * 2


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


async def test_result_and_charges_come_back() -> None:
    engine = Scripted()
    result, charges = await run(engine, double, 21)
    assert (result, charges.space, charges.inodes) == (42, 4096, 1)
    assert engine.begun == [True]


async def test_reading_asks_for_a_reading_transaction() -> None:
    engine = Scripted()
    assert await read(engine, double, 4) == 8
    assert (await run(engine, double, 4, write=False))[0] == 8
    assert engine.begun == [False, False]


@pytest.mark.parametrize("write", [True, False])
def test_conflicts_run_the_operation_again(clock: trio.testing.MockClock, write: bool) -> None:
    async def main() -> None:
        engine = Scripted("enter", "body", "exit")
        if write:
            result, charges = await run(engine, double, 1)
            assert charges.inodes == 1, "a lost try must not be charged"
        else:
            result = await read(engine, double, 1)
        assert result == 2
        assert engine.begun == [write] * 4
        assert 0 < trio.current_time() - began < 0.1

    began = 0.0

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    trio.run(timed, clock=clock)


@pytest.mark.logs(r"transaction double failed after \d+ tries: enter")
def test_endless_conflicts_end_in_eio(clock: trio.testing.MockClock) -> None:
    async def main() -> None:
        engine = Scripted(*["enter"] * 10_000)
        began = trio.current_time()
        with pytest.raises(FsError) as failed:
            await run(engine, double, 1)
        assert failed.value.errno == errno.EIO
        assert GIVE_UP_S <= trio.current_time() - began < GIVE_UP_S + 2 * LONGEST_PAUSE_S

    trio.run(main, clock=clock)


async def test_other_errors_pass_at_once() -> None:
    async def refuse(tx: Scripted) -> None:
        raise FsError(errno.ENOENT)

    engine = Scripted()
    with pytest.raises(FsError) as failed:
        await run(engine, refuse)
    assert failed.value.errno == errno.ENOENT
    assert len(engine.begun) == 1


def test_inline_gives_result_and_errors() -> None:
    assert run_inline(run(Scripted(), double, 3))[0] == 6

    async def refuse(tx: Scripted) -> None:
        raise FsError(errno.EPERM)

    with pytest.raises(FsError):
        run_inline(run(Scripted(), refuse))


def test_inline_waits_out_a_conflict() -> None:
    assert run_inline(read(Scripted("exit", "exit"), double, 3)) == 6


def test_inline_refuses_to_wait_for_a_loop() -> None:
    class Suspended:
        def __await__(self) -> object:
            yield

    async def main() -> None:
        await Suspended()

    with pytest.raises(RuntimeError, match="event loop"):
        run_inline(main())


def test_status_path_stays_without_trio() -> None:
    code = "import sys, jfs.meta.run, jfs.meta.engines, jfs.meta.sql.sqlite3; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
