"""What a client remembers of its own doings."""

import time

import pytest

from jfs.meta import recent
from jfs.meta.recent import Recent
from jfs.meta.types import TYPE_FILE, Attr


def attr(length: int) -> Attr:
    return Attr(TYPE_FILE, 0o644, length=length)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_attributes_are_known_for_a_while(clock: list[float]) -> None:
    kept = Recent(1.0)
    kept.wrote({5: attr(1)}, 10, 0.5)
    assert kept.attr(5) == attr(1)
    clock[0] += 1.0
    assert kept.attr(5) is None


def test_how_old_they_are(clock: list[float]) -> None:
    """The kernel keeps attributes on its own: for what is left of the time."""
    kept = Recent(1.0)
    assert kept.age_s(5) == 0
    kept.wrote({5: attr(1)}, 10, 0.5)
    assert kept.age_s(5) == 0
    clock[0] += 0.75
    assert kept.attr(5) == attr(1)
    assert kept.age_s(5) == 0.75
    clock[0] += 0.25
    assert kept.age_s(5) == 0  # what is given now is what the database says
    assert kept.attr(5) is None


def test_whoever_gets_them_has_their_own(clock: list[float]) -> None:
    kept = Recent(1.0)
    written = attr(1)
    kept.wrote({5: written}, 10, 0.5)
    written.length = 2
    got = kept.attr(5)
    assert got is not None
    got.length = 3
    assert kept.attr(5) == attr(1)


def test_the_later_commit_counts_whenever_it_is_told(clock: list[float]) -> None:
    kept = Recent(1.0)
    kept.wrote({5: attr(2)}, 20, 0.5)
    kept.wrote({5: attr(1)}, 10, 0.5)
    assert kept.attr(5) == attr(2)
    kept.wrote({5: None}, 30, 0.5)
    kept.wrote({5: attr(2)}, 25, 0.5)
    assert kept.attr(5) is None


def test_the_database_knows_better(clock: list[float]) -> None:
    kept = Recent(1.0)
    kept.wrote({5: attr(1)}, 10, 0.5)
    kept.saw(5)
    assert kept.attr(5) is None


def test_nothing_is_kept_where_attributes_must_not_be_old(clock: list[float]) -> None:
    kept = Recent(0.0)
    kept.wrote({5: attr(1)}, 10, 0.5)
    assert kept.attr(5) is None


def test_both_are_bounded(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST_ATTRS", 3)
    monkeypatch.setattr(recent, "MOST_NAMES", 3)
    kept = Recent(1.0)
    for ino in range(1, 6):
        kept.wrote({ino: attr(ino)}, ino, 0.5)
        kept.named(1, b"%d" % ino, ino)
    assert [ino for ino in range(1, 6) if kept.attr(ino)] == [3, 4, 5]
    assert [ino for ino in range(1, 6) if kept.guess(1, b"%d" % ino)] == [3, 4, 5]
