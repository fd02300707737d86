"""When an open has to tell the kernel to forget a file's length."""

import pytest

from jfs.fuse import told
from jfs.fuse.told import Told
from jfs.meta.types import TYPE_FILE, Attr


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(told, "time", clock)
    return clock


def file(length: int, mtime_ns: int = 1) -> Attr:
    return Attr(type=TYPE_FILE, mode=0o644, length=length, mtime_ns=mtime_ns)


def test_only_a_file_that_was_told_of_otherwise_misleads(clock: Clock) -> None:
    kernel = Told(1.0)
    assert not kernel.misled(7, file(10))
    kernel.note(7, file(10))
    assert not kernel.misled(7, file(10))
    assert not kernel.misled(7, file(10))
    assert kernel.misled(7, file(11)), "it still believes what it was told first"
    assert not kernel.misled(7, file(12)), "it was made to forget"
    kernel.note(7, file(10))
    assert kernel.misled(7, file(10, mtime_ns=2))
    kernel.note(7, file(10))
    kernel.note(7, file(12))
    assert not kernel.misled(7, file(12)), "the latest counts"


def test_notes_last_as_long_as_the_kernel_may_believe_them(clock: Clock) -> None:
    kernel = Told(1.0)
    kernel.note(1, file(1))
    clock.now += 0.9
    kernel.note(7, file(10))
    clock.now += 0.2
    kernel.note(2, file(1))
    clock.now += 0.7
    assert kernel.misled(7, file(11))
    kernel.note(7, file(10))
    for _ in range(2):
        clock.now += 1.1
        kernel.note(2, file(1))
    assert not kernel.misled(7, file(11)), "the kernel has forgotten by itself"


def test_more_files_than_can_be_noted_are_taken_for_misleading(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "MOST", 10)
    kernel = Told(1.0)
    for ino in range(100):
        kernel.note(ino, file(1))
    assert kernel.misled(3, file(2))
    clock.now += 1.1
    assert not kernel.misled(4, file(2))
