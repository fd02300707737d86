"""Turns within one client: writers of the same inode wait for each other instead of losing races in the database."""

from types import TracebackType

import trio

from jfs.meta.types import Ino


class _Turn:
    """A lock, and how many want it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.users = 0


class InodeLocks:
    """A lock for each inode that somebody is changing."""

    __slots__ = ("turns",)

    def __init__(self) -> None:
        self.turns: dict[Ino, _Turn] = {}

    def hold(self, *inos: Ino) -> "Held":
        """`async with`: all of them, in an order that cannot deadlock."""
        return Held(self.turns, sorted(set(inos)))


class Held:
    """The scope of one change."""

    __slots__ = ("_inos", "_taken", "_turns")

    def __init__(self, turns: dict[Ino, _Turn], inos: list[Ino]) -> None:
        self._turns = turns
        self._inos = inos
        self._taken = 0

    async def __aenter__(self) -> None:
        turns = self._turns
        for ino in self._inos:
            turn = turns.get(ino)
            if turn is None:
                turn = turns[ino] = _Turn()
            turn.users += 1
        try:
            for ino in self._inos:
                lock = turns[ino].lock
                try:
                    lock.acquire_nowait()
                except trio.WouldBlock:
                    await lock.acquire()
                self._taken += 1
        except BaseException:
            self._release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        turns = self._turns
        for number, ino in enumerate(self._inos):
            turn = turns[ino]
            if number < self._taken:
                turn.lock.release()
            turn.users -= 1
            if not turn.users:
                del turns[ino]
