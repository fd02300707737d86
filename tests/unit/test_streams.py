"""Which reads are sequential."""

import random

from jfs.vfs.streams import MOST, NEAR, SEQUENTIAL_FROM, Streams

KIB = 1 << 10
MIB = 1 << 20
WINDOW = 32 * MIB
STEP = 128 * KIB


def test_a_window_opens_with_the_fourth_read_and_grows() -> None:
    streams = Streams()
    windows = [streams.read(at, at + STEP).window(WINDOW) for at in range(0, 40 * MIB, STEP)]
    assert windows[: SEQUENTIAL_FROM - 1] == [0] * (SEQUENTIAL_FROM - 1)
    assert windows[SEQUENTIAL_FROM - 1] == 8 * STEP
    assert windows == sorted(windows)
    assert windows[-1] == WINDOW


def test_requests_in_any_order() -> None:
    """The kernel's own read-ahead: 1 MiB in parts, shuffled."""
    rng = random.Random(1)
    streams = Streams()
    for start in range(0, 16 * MIB, MIB):
        parts = list(range(start, start + MIB, STEP))
        rng.shuffle(parts)
        windows = [streams.read(at, at + STEP).window(WINDOW) for at in parts]
    assert len(streams.streams) == 1
    assert min(windows) > 8 * MIB


def test_random_reads_open_no_window() -> None:
    rng = random.Random(2)
    streams = Streams()
    for _ in range(2000):
        at = rng.randrange(1 << 30)
        assert streams.read(at, at + 4096).window(WINDOW) == 0
        assert len(streams.streams) <= MOST


def test_random_reads_in_a_narrow_range_open_no_window() -> None:
    rng = random.Random(3)
    streams = Streams()
    opened = sum(
        streams.read(at, at + 4096).window(WINDOW) > 64 * KIB for at in (rng.randrange(NEAR) for _ in range(200))
    )
    assert opened == 0


def test_several_streams_side_by_side() -> None:
    streams = Streams()
    starts = [number * 100 * MIB for number in range(MOST)]
    for at in range(0, 4 * MIB, STEP):
        windows = [streams.read(start + at, start + at + STEP).window(WINDOW) for start in starts]
    assert windows == [8 * MIB] * MOST


def test_a_stream_that_nobody_follows_gives_way() -> None:
    streams = Streams()
    for number in range(MOST + 1):
        streams.read(number * 100 * MIB, number * 100 * MIB + STEP)
    assert [stream.end for stream in streams.streams] == [n * 100 * MIB + STEP for n in range(1, MOST + 1)]
