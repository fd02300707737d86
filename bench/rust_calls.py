"""Calls into the TiKV client library, awaited under trio.

The library is Rust and hands out asyncio futures.  All that it uses of asyncio is `get_running_loop()`, and of the loop
`create_future()` and `call_soon_threadsafe()`, which it calls from threads of its own.  A `Call` is loop and future in one:
no second event loop runs, and an answer wakes the task that waits for it and nothing else.
"""

from asyncio import _set_running_loop
from collections.abc import Callable
from typing import Any

import trio


class Call:
    """One call.  Made by the task that waits for it; completed by a thread of the library, which holds the interpreter."""

    __slots__ = ("_done", "_error", "_task", "_token", "_value")

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._task: trio.lowlevel.Task | None = None
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Send it, from any thread."""
        _set_running_loop(self)  # type: ignore[arg-type]
        try:
            function(*args)
        finally:
            _set_running_loop(None)

    async def wait(self) -> Any:
        """The result.  Raises what the library raised; if cancelled, the call goes on by itself."""
        if not self._done:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abandon)
        if self._error is not None:
            raise self._error
        return self._value

    def _abandon(self, _: Callable[[], Any]) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _finish(self) -> None:
        self._done = True
        try:
            self._token.run_sync_soon(self._wake)
        except trio.RunFinishedError:
            return  # the program ends: nobody is left to be told

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    # -- the loop, as the library sees it

    def create_future(self) -> "Call":
        return self

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object, context: object = None) -> None:
        callback(*args)

    # -- the future, as the library sees it

    def add_done_callback(self, callback: object, *, context: object = None) -> None:
        """It would only tell the library of cancellations, of which there are none."""

    def cancelled(self) -> bool:
        return False

    def set_result(self, value: Any) -> None:
        self._value = value
        self._finish()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._finish()
