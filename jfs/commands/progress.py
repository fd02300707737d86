"""Counts that move while a command works: bars on a terminal, nothing elsewhere (the summary lines say it all there)."""

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

Advance = Callable[[int], None]


def _nowhere(step: int) -> None:
    return None


class Progress:
    """`with Progress() as progress: step = progress.count("Scanned objects")`, then `step(n)`."""

    def __init__(self) -> None:
        self._bars: Any = None
        if not sys.stdout.isatty() or os.environ.get("DISPLAY_PROGRESSBAR", "").lower() == "false":
            return
        from rich import progress

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,.0f}"),
            progress.TimeElapsedColumn(),
            redirect_stderr=sys.stderr.isatty(),  # log lines go above the bars; into a file they go as ever
        )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def count(self, name: str, total: int | None = None) -> Advance:
        """A new count; `total` None where nobody knows how far it goes."""
        bars = self._bars
        if bars is None:
            return _nowhere
        task = bars.add_task(name, total=total)
        return lambda step: bars.advance(task, step)
