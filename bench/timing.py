"""What work returns, and the clock."""

import os
import time
from collections.abc import Callable, Iterable

Rows = dict[str, float]
"""Name -> rate; more is better."""


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def for_all(work: Callable[[str], object], names: Iterable[str]) -> None:
    """One after the other."""
    for name in names:
        work(name)


def touch(name: str) -> None:
    """Create a file, and close it."""
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
