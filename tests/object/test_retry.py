"""Patience, on a clock of the test's own."""

from collections.abc import Iterator

import pytest

from jfs.errors import BadObject, ObjectMissing, StoreError, StoreFull
from jfs.object.memory import MemoryStore
from jfs.object.retry import LONGEST_DELAY, Retry, delay_after, patience
from jfs.object.store import Buffer, ObjectInfo

pytestmark = pytest.mark.logs("trying again")


class Flaky(MemoryStore):
    """Fails the next `failures` calls with `error`."""

    failures = 0
    error: StoreError = StoreError("503")
    calls = 0

    def _maybe_fail(self) -> None:
        self.calls += 1
        if self.failures > 0:
            self.failures -= 1
            raise self.error

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._maybe_fail()
        return super().get(key, offset, length)

    def put(self, key: str, data: Buffer) -> None:
        self._maybe_fail()
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._maybe_fail()
        super().delete(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        for found in super().list(prefix, after):
            self._maybe_fail()
            yield found


class Time:
    """Passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


def retry(flaky: Flaky, io_retries: int = 10) -> tuple[Retry, Time]:
    time = Time()
    return Retry(flaky, io_retries, clock=time, wait=time.wait), time


def test_it_goes_on_until_it_works(flaky: Flaky) -> None:
    store, _ = retry(flaky)
    flaky.failures = 20
    store.put("k", b"x")
    flaky.failures = 20
    assert store.get("k") == b"x"
    flaky.failures = 20
    store.delete("k")


def test_the_waits_are_short_and_last_as_long_as_the_peers(flaky: Flaky) -> None:
    store, time = retry(flaky, 10)
    flaky.failures = 10**9
    with pytest.raises(StoreError, match="503"):
        store.get("k")
    assert max(time.waits) <= LONGEST_DELAY
    assert time.now == pytest.approx(sum(number * number for number in range(1, 11)))


def test_no_retries_means_one_try(flaky: Flaky) -> None:
    store, time = retry(flaky, 0)
    flaky.failures = 1
    with pytest.raises(StoreError):
        store.get("k")
    assert time.waits == []


@pytest.mark.parametrize("error", [ObjectMissing("k"), BadObject("k"), StoreFull("k")])
def test_a_known_answer_is_not_asked_for_again(flaky: Flaky, error: StoreError) -> None:
    store, _ = retry(flaky)
    flaky.failures, flaky.error = 1, error
    with pytest.raises(type(error)):
        store.get("k")
    assert flaky.calls == 1


def test_a_broken_listing_goes_on_where_it_was(flaky: Flaky) -> None:
    store, _ = retry(flaky)
    for number in range(5):
        flaky.put(f"k{number}", b"")
    names = []
    for found in store.list():
        names.append(found.key)
        flaky.failures = 2
    assert names == [f"k{number}" for number in range(5)]


def test_sync_is_never_tried_again(flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def sync(keys: object) -> None:
        calls.append(keys)
        raise StoreError("lost")

    monkeypatch.setattr(flaky, "sync", sync)
    store, _ = retry(flaky)
    with pytest.raises(StoreError, match="lost"):
        store.sync(["k"])
    assert len(calls) == 1


def test_close_ends_the_waiting(flaky: Flaky) -> None:
    store = Retry(flaky, 10)
    flaky.failures = 10**9
    store.close()
    with pytest.raises(StoreError):
        store.get("k")
    assert flaky.calls == 1


def test_delays_grow_and_are_bounded() -> None:
    assert patience(0) == 0
    assert patience(10) == 385
    assert delay_after(0) <= 0.05
    assert 0 < delay_after(1000) <= LONGEST_DELAY
