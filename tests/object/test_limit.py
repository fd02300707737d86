"""Limits on bandwidth, on a clock of the test's own."""

import threading
from collections.abc import Callable
from typing import cast

import pytest

from jfs.errors import ObjectMissing
from jfs.object.limit import BYTES_PER_MEGABIT, LEAST_PIECE, Bandwidth, Limit, Limits
from jfs.object.memory import MemoryStore
from jfs.object.prefix import Prefix
from jfs.object.store import Errand
from tests.deadline import eventually

MEGABYTE = 1_000_000


class Time:
    """Passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def bucket(rate: float) -> tuple[Bandwidth, Time]:
    time = Time()
    made = Bandwidth(clock=time, wait=time.wait)
    made.set_rate(rate)
    return made, time


class Counting(MemoryStore):
    """Remembers the sizes of what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gets: list[int | None] = []

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets.append(length)
        return super().get(key, offset, length)


def limited(download_mbps: int) -> tuple[Limit, Counting, Time]:
    time = Time()
    limits = Limits()
    limits.download = Bandwidth(clock=time, wait=time.wait)
    limits.follow(0, download_mbps)
    inner = Counting()
    return Limit(inner, limits), inner, time


def test_the_rate_holds_over_time_and_the_first_does_not_wait() -> None:
    bandwidth, time = bucket(MEGABYTE)
    bandwidth.take(4 * MEGABYTE)
    assert time.now == 0
    for _ in range(10):
        bandwidth.take(4 * MEGABYTE)
    assert time.now == pytest.approx(40)


def test_a_quiet_time_saves_up_a_tenth_of_a_second() -> None:
    bandwidth, time = bucket(MEGABYTE)
    time.now = 1000
    for _ in range(100):
        bandwidth.take(MEGABYTE // 10)
    assert time.now == pytest.approx(1000 + 9.8)


def test_no_limit_never_waits() -> None:
    bandwidth, time = bucket(0)
    bandwidth.take(1 << 50)
    assert time.now == 0


@pytest.mark.parametrize("guess", [4 * MEGABYTE, MEGABYTE // 4])
def test_a_wrong_guess_is_corrected(guess: int) -> None:
    bandwidth, time = bucket(MEGABYTE)
    for _ in range(5):
        bandwidth.take(guess)
        bandwidth.correct(guess, MEGABYTE)
    bandwidth.take(1)
    assert time.now == pytest.approx(5)


def in_thread(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_first_come_first_served() -> None:
    bandwidth = Bandwidth()
    bandwidth.set_rate(MEGABYTE)
    bandwidth.take(MEGABYTE // 10)
    order: list[int] = []

    def turn(number: int) -> None:
        bandwidth.take(MEGABYTE // 20)
        order.append(number)

    threads = []
    for number in range(6):
        before = bandwidth._taken
        threads.append(in_thread(lambda number=number: turn(number)))  # type: ignore[misc]
        eventually(lambda before=before: bandwidth._taken > before)  # type: ignore[misc]
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("relief", ["faster", "no limit", "the end"])
def test_who_waits_hears_of_a_change(relief: str) -> None:
    bandwidth = Bandwidth()
    bandwidth.set_rate(1)
    bandwidth.take(MEGABYTE)
    thread = in_thread(lambda: bandwidth.take(MEGABYTE))
    eventually(lambda: bandwidth._taken == 2 * MEGABYTE)
    assert thread.is_alive()
    {
        "faster": lambda: bandwidth.set_rate(100 * MEGABYTE),
        "no limit": lambda: bandwidth.set_rate(0),
        "the end": bandwidth.stop,
    }[relief]()
    thread.join(10)
    assert not thread.is_alive()


def test_a_new_rate_counts_from_now() -> None:
    bandwidth, time = bucket(MEGABYTE)
    bandwidth.take(10 * MEGABYTE)
    time.now = 5
    bandwidth.set_rate(10 * MEGABYTE)
    bandwidth.take(1)
    assert time.now == pytest.approx(5.5)
    bandwidth.set_rate(0)
    bandwidth.take(1 << 40)
    bandwidth.set_rate(MEGABYTE)
    bandwidth.take(1)
    assert time.now == pytest.approx(5.5)


def test_options_win_over_settings() -> None:
    def rates(limits: Limits) -> tuple[float, float]:
        return limits.upload.rate / BYTES_PER_MEGABIT, limits.download.rate / BYTES_PER_MEGABIT

    limits = Limits()
    limits.follow(8, 16)
    assert rates(limits) == (8, 16)
    limits.follow(0, 32)
    assert rates(limits) == (0, 32)
    limits = Limits(upload=0, download=5)
    limits.follow(8, 16)
    assert rates(limits) == (0, 5)
    limits.stop()
    assert rates(limits) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, LEAST_PIECE, 4 * LEAST_PIECE, 4 * LEAST_PIECE + 1])
def test_large_ranges_come_in_pieces_and_objects_whole(size: int) -> None:
    store, inner, _ = limited(1)
    data = bytes(number % 251 for number in range(size))
    inner.put("k", data)
    assert store.get("k", 0, size) == data
    assert all(length is not None and length <= LEAST_PIECE for length in inner.gets)
    inner.gets.clear()
    assert store.get("k") == data
    assert inner.gets == [None]
    assert store.get("k", 100, 50) == data[100:150]
    assert store.get("k", size + 5) == b""


def test_downloads_pay_for_what_they_got() -> None:
    store, inner, time = limited(8)
    inner.put("k", bytes(MEGABYTE))
    for _ in range(2):
        store.get("k")
    store.get("k", 0, MEGABYTE)
    with pytest.raises(ObjectMissing):
        store.get("missing")
    store.get("k", 0, 1)
    assert time.now == pytest.approx(3)


def test_uploads_pay_their_size() -> None:
    time = Time()
    limits = Limits(upload=8)
    limits.upload = Bandwidth(clock=time, wait=time.wait)
    limits.follow(0, 0)
    store = Limit(MemoryStore(), limits)
    for number in range(5):
        store.put(f"k{number}", bytes(MEGABYTE))
    assert time.now == pytest.approx(4)


def test_bytes_do_not_go_past_a_limit() -> None:
    class Local(MemoryStore):
        def local_path(self, key: str) -> str | None:
            return f"/objects/{key}"

        def errand(self, key: str, size: int) -> Errand | None:
            return cast(Errand, f"{size} bytes of {key}")

    limits = Limits()
    store = Limit(Local(), limits)
    assert store.local_path("k") == "/objects/k"
    assert Prefix(store, "v/").errand("k", 7) == "7 bytes of v/k"
    limits.follow(1, 0)
    assert store.local_path("k") is None
    assert store.errand("k", 7) == "7 bytes of k"
    limits.follow(0, 1)
    assert store.errand("k", 7) is None
    limits.follow(0, 0)
    assert store.local_path("k") == "/objects/k"
