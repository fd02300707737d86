"""The index of a cache folder: what it knows, what it costs, and in what order blocks go."""

import os
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.chunk import cache_dir
from jfs.chunk.cache_dir import CacheDir
from jfs.chunk.cache_index import BLOCK_OVERHEAD, CacheIndex, block_cost, block_number
from jfs.chunk.eviction import expired, victims
from jfs.chunk.layout import block_key
from jfs.chunk.options import ChunkOptions
from jfs.chunk.stats import CacheCounts

BLOCK = 4 << 20
COUNT = 50_000
MOST_BYTES_A_BLOCK = 200


@given(
    slice_id=st.integers(1, 1 << 63), index=st.integers(0, 1 << 20), size=st.integers(1, 16 << 20), prefix=st.booleans()
)
def test_a_number_holds_the_whole_name(slice_id: int, index: int, size: int, *, prefix: bool) -> None:
    key = block_key(slice_id, index, size, hash_prefix=prefix)
    found = CacheIndex(hash_prefix=prefix)
    assert found.key(block_number(key)) == key
    assert block_cost(block_number(key)) == size + BLOCK_OVERHEAD
    assert found.names(key)


@pytest.mark.parametrize(
    "key", ["", "x", "chunks/0/0/1_0", "chunks/0/1/1_0_5", "1_0_5", f"chunks/0/0/1_0_{1 << 30}", "chunks/0/0/1_0_5.tmp"]
)
def test_other_files_are_no_blocks(key: str) -> None:
    assert not CacheIndex().names(key)


def test_books() -> None:
    index = CacheIndex()
    one, two = block_key(1, 0, 100), block_key(2, 0, 50)
    index.add(one, 10.7)
    index.add(one, 5)
    index.add(two, 3)
    index.touch(two, 20)
    index.touch(block_key(3, 0, 1), 20)
    assert (len(index), index.used, list(index.used_at.values())) == (2, 150 + 2 * BLOCK_OVERHEAD, [10, 20])
    index.discard(one)
    index.discard(one)
    assert (len(index), index.used, one in index, two in index) == (1, 50 + BLOCK_OVERHEAD, False, True)


def names(count: int) -> Iterator[str]:
    """Names as a volume in use has them: large slice ids, up to 16 blocks a slice."""
    for number in range(count):
        yield block_key(40_000_000_000 + number // 16, number % 16, BLOCK)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of Python's memory that the work held at most, beyond what was held before."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_block_costs_less_than_200_bytes() -> None:
    """The dictionary just before it grows, and just after: its worst moments."""
    for count in (COUNT, 87_381, 87_382):
        index = CacheIndex()

        def fill(index: CacheIndex = index, count: int = count) -> None:
            for number, key in enumerate(names(count)):
                index.add(key, 1_700_000_000 + number * 7)

        assert peak_of(fill) < MOST_BYTES_A_BLOCK * count
        assert len(index) == count


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheDir:
    """A folder that seems to hold many blocks; not one file is made."""

    def walk(root: str, *, failed: object) -> Iterator[tuple[str, object]]:
        for number, key in enumerate(names(COUNT)):
            yield key, SimpleNamespace(st_atime=1_700_000_000 + number)

    monkeypatch.setattr(cache_dir, "walk", walk)
    options = ChunkOptions(cache_dirs=[str(tmp_path)], cache_size=1 << 60, free_space_ratio=0.0)
    made = CacheDir(str(tmp_path / "uuid"), options, CacheCounts())
    made.open()
    return made


def test_a_scan_costs_less_than_200_bytes_a_block(many: CacheDir) -> None:
    assert peak_of(many.scan) < MOST_BYTES_A_BLOCK * COUNT
    assert len(many) == COUNT
    assert peak_of(many.scan) < 20 * COUNT, "a second scan adds nothing that lasts"


@pytest.mark.parametrize("policy", ["2-random", "lru"])
def test_eviction_costs_little_memory(many: CacheDir, policy: str) -> None:
    many.scan()

    def take_some() -> None:
        for _, number in zip(range(COUNT // 20), victims(policy, many.index.used_at), strict=False):
            many.index.discard(many.index.key(number))

    assert peak_of(take_some) < 50 * COUNT


def test_expiry_costs_little_memory(many: CacheDir) -> None:
    many.scan()
    assert peak_of(lambda: expired(many.index.used_at, 0)) < 20 * COUNT


@given(st.lists(st.integers(0, 50), max_size=300))
def test_lru_is_the_order_of_use(times: list[int]) -> None:
    used_at = dict(enumerate(times))
    assert list(victims("lru", used_at)) == sorted(used_at, key=lambda block: used_at[block])


def test_lru_of_many_by_parts() -> None:
    times = list(range(30_000))
    random.Random(5).shuffle(times)
    used_at = dict(enumerate(times))
    assert [used_at[block] for block in victims("lru", used_at)] == sorted(times)


@given(st.lists(st.integers(0, 50), max_size=300), st.randoms(use_true_random=False))
def test_2_random_takes_every_block_once(times: list[int], chance: random.Random) -> None:
    used_at = dict(enumerate(times))
    assert sorted(victims("2-random", used_at, chance.randrange)) == sorted(used_at)


def test_2_random_prefers_the_older() -> None:
    used_at = {block: block for block in range(1000)}
    order = list(victims("2-random", used_at, random.Random(1).randrange))
    assert sum(order[:300]) < sum(order[-300:])


def test_the_order_survives_changes_by_others() -> None:
    index = CacheIndex()
    for number, key in enumerate(names(5000)):
        index.add(key, number)
    stop = threading.Event()

    def disturb() -> None:
        number = 5000
        while not stop.is_set():
            index.add(block_key(number, 0, 1), number)
            index.discard(block_key(number - 500, 0, 1))
            number += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for policy in ("lru", "2-random"):
            for number in victims(policy, index.used_at):
                index.discard(index.key(number))
    finally:
        stop.set()
        thread.join()
    assert index.used == sum(map(block_cost, index))


def test_the_mount_does_not_wait_for_the_scan(many: CacheDir) -> None:
    """Until the index is there, any block may be in the folder: it is looked for in its place."""
    key = block_key(7, 0, 5)
    assert many.holds(key)
    path = Path(many.path(key))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"12345")
    assert many.get(key, 5, 0, 5) == b"12345"
    os.unlink(path)
    many.scan()
    assert not many.holds(key)
