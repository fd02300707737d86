"""When calls that may wait for a disk stay on the loop."""

import pytest

from jfs.chunk import promptness
from jfs.chunk.promptness import MEAN_OF, REST_FACTOR, REST_S, Promptness

SLOW_S = 0.002


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(promptness, "time", clock)
    return clock


def test_quick_calls_stay(clock: Clock) -> None:
    calls = Promptness(SLOW_S)
    for _ in range(100):
        assert calls.on_loop
        calls.took(SLOW_S * 0.9)


def test_one_that_lost_its_processor_does_not_count(clock: Clock) -> None:
    calls = Promptness(SLOW_S)
    calls.took(SLOW_S * (MEAN_OF - 1))
    assert calls.on_loop


def test_slow_ones_leave_for_a_while(clock: Clock) -> None:
    calls = Promptness(SLOW_S)
    count = 0
    while calls.on_loop:
        calls.took(SLOW_S * 2)
        count += 1
    assert 2 < count <= MEAN_OF
    clock.now += REST_S - 0.01
    assert not calls.on_loop
    clock.now += 0.02
    assert calls.on_loop
    calls.took(SLOW_S * 2)
    assert calls.on_loop, "they begin anew"


def test_who_hangs_is_left_alone_for_long(clock: Clock) -> None:
    calls = Promptness(SLOW_S)
    calls.took(30.0)
    clock.now += 30.0 * REST_FACTOR - 1
    assert not calls.on_loop
    clock.now += 2
    assert calls.on_loop
