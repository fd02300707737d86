"""Running an operation in a transaction: the one retry loop, and ways to drive it from a command.

An operation is `async def op(tx, ...)`: what comes in are its arguments, what goes out is its result, so it may run again.
Keyword arguments are bound with `functools.partial`.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from errno import EIO
from typing import Any, Final, TypeVar, TypeVarTuple

from jfs.errors import Conflict, FsError, Unavailable
from jfs.meta.transaction import ChargedTransaction, Charges, Engine, Transaction

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger(__name__)

# As patient as the peer (50 tries, 40 s), but with short pauses: trying a busy database costs microseconds.
GIVE_UP_S: Final = 40.0
LONGEST_PAUSE_S: Final = 0.1
# A store that is away is not asked as often as one that is busy.
AWAY_PAUSE_S: Final = 1.0

_without_loop: ContextVar[bool] = ContextVar("without_loop", default=False)


async def run(
    engine: Engine,
    operation: Callable[[Transaction, *Ts], Awaitable[T]],
    *args: *Ts,
    write: bool = True,
    ahead: AbstractAsyncContextManager[ChargedTransaction] | None = None,
) -> tuple[T, Charges]:
    """The operation's result and what it adds to the volume's books, once committed.  Raises what the operation raises.

    `ahead` is a transaction that has begun already: the first try is made in it.
    """
    try:
        async with ahead or engine.transaction(write=write) as tx:
            result = await operation(tx, *args)
        return result, tx.charges
    except Conflict as conflict:
        first = conflict
    return await _again(engine, operation, args, write=write, conflict=first)


async def read(engine: Engine, operation: Callable[[Transaction, *Ts], Awaitable[T]], *args: *Ts) -> T:
    """The result of an operation that only reads."""
    try:
        async with engine.transaction(write=False) as tx:
            return await operation(tx, *args)
    except Conflict as conflict:
        first = conflict
    return (await _again(engine, operation, args, write=False, conflict=first))[0]


async def _again(
    engine: Engine,
    operation: Callable[[Transaction, *Ts], Awaitable[T]],
    args: tuple[*Ts],
    *,
    write: bool,
    conflict: Conflict,
) -> tuple[T, Charges]:
    """Later tries, after pauses that grow from 1 ms; EIO when none succeeded in the time that a system call may hang."""
    tries = 1
    deadline = _now() + GIVE_UP_S
    while _now() < deadline:
        longest = AWAY_PAUSE_S if isinstance(conflict, Unavailable) else LONGEST_PAUSE_S
        await _pause(min(tries * tries / 1000, longest) * random.uniform(0.5, 1.0))
        try:
            async with engine.transaction(write=write) as tx:
                result = await operation(tx, *args)
            return result, tx.charges
        except Conflict as again:
            conflict = again
            tries += 1
    name = getattr(operation, "__name__", repr(operation))
    log.error("transaction %s failed after %d tries: %s", name, tries, conflict)
    raise FsError(EIO) from conflict


def _now() -> float:
    """Seconds on the clock that `_pause` goes by."""
    if _without_loop.get():
        return time.monotonic()
    import trio

    return trio.current_time()


async def _pause(seconds: float) -> None:
    if _without_loop.get():
        time.sleep(seconds)  # noqa: ASYNC251 - there is no loop to hold up
        return
    import trio  # not at the top: `jfs status` on an embedded engine starts without it

    await trio.sleep(seconds)


def run_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Drive a coroutine that waits for nothing but an engine that answers inline, without an event loop."""
    token = _without_loop.set(True)
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        _without_loop.reset(token)
    coroutine.close()
    raise RuntimeError("the coroutine waited for something that needs an event loop")


def drive(engine: Engine, main: Callable[[], Coroutine[Any, Any, T]], *, loop: bool = False) -> T:
    """Run what a command does with an engine to its end.  An engine that never waits needs no event loop for it."""
    if engine.inline and not loop:
        return run_inline(main())
    import trio

    return trio.run(main)
