"""A transaction that begins while its caller still waits for something else.

Before an operation writes, an engine that is far away is asked for a snapshot, and for the records that the operation looks
at.  Where it is known in advance that an operation will come, both can be had while, say, its object is on the way to the
store; what is left to wait for then is the commit.

Such a transaction promises what every other does, it only takes longer: it reads one snapshot, and what others have changed
since of what it writes or guards is a `Conflict`, upon which the operation runs again in a transaction that begins then.  Its
user sees to two things.  It must not begin before the call that it serves: whatever was over before that call has to be in
the snapshot.  And it holds no turn of its inode (`inode_locks.py`), so it is left alone if this process has changed the inode
meanwhile: it would not fail to conflict.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final

import trio

from jfs.errors import Conflict
from jfs.meta.transaction import ChargedTransaction, Engine, Transaction

MOST_AGE_S: Final = 5.0
"""An older snapshot is not worth the conflict that it may meet."""


class Ahead:
    """One transaction to write.  `async with` gives it as if it began there, once; one that is not used is let go."""

    __slots__ = ("_began", "_engine", "_failure", "_foresee", "_held", "_lot", "_over", "_tx")

    def __init__(self, engine: Engine, foresee: Callable[[Transaction], Awaitable[None]]) -> None:
        """`foresee` reads what the operation will.  The engine is not `inline`: transactions that are open hold up nobody."""
        self._engine = engine
        self._foresee = foresee
        self._began = trio.current_time()
        self._over = False
        self._lot = trio.lowlevel.ParkingLot()
        self._held: AsyncExitStack | None = None
        self._tx: ChargedTransaction | None = None
        self._failure: Exception = Conflict("the beginning of a transaction was cancelled")

    async def begin(self) -> None:
        """Take the snapshot, and read.  For a task of its own: what fails is told to whoever uses the transaction."""
        try:
            async with AsyncExitStack() as stack:
                tx = await stack.enter_async_context(self._engine.transaction(write=True))
                await self._foresee(tx)
                self._tx = tx
                self._held = stack.pop_all()
        except Exception as error:  # whatever it is, it concerns one operation and not the program
            self._failure = error
        finally:
            self._over = True
            self._lot.unpark_all()

    def fresh(self) -> bool:
        return trio.current_time() - self._began <= MOST_AGE_S

    async def __aenter__(self) -> ChargedTransaction:
        while not self._over:
            await self._lot.park()
        tx, self._tx = self._tx, None
        if tx is None:
            raise self._failure
        return tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        assert held is not None
        await held.__aexit__(kind, error, traceback)
