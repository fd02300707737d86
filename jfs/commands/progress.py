"""Counts of what a long command has done so far: a moving line on a terminal, nothing elsewhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Count(Protocol):
    """Something that is being counted."""

    def __call__(self, more: int = 1) -> None: ...


@contextmanager
def counting(what: str) -> Iterator[Count]:
    """`with counting("Scanned objects") as seen: ... seen()`."""
    if not sys.stdout.isatty() or os.environ.get("DISPLAY_PROGRESSBAR") == "false":
        yield _nothing
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(what, total=None)

        def count(more: int = 1) -> None:
            progress.advance(task, more)

        yield count


def _nothing(more: int = 1) -> None:
    """Nobody looks."""
