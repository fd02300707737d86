"""Which cache folder a block belongs to: a ring of some 100 points per folder, so that a lost folder moves few other blocks.

As the peer does it, a folder that covers more than its share of the ring loses points, and one that covers less gets some,
in up to five rounds: both programs must come to the same counts, so the arithmetic is not to be improved.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import mmh3

POINTS: Final = 100
CIRCLE: Final = 1 << 32
ROUNDS: Final = 5
DAMPING: Final = 0.75


class Ring:
    """Places keys on folders by the ids that the folders' `.lock` files hold."""

    def __init__(self, ids: Sequence[str]) -> None:
        points = _balanced_points(ids)
        self._hashes = [point for point, _ in points]
        self._places = [place for _, place in points]

    def place(self, key: str) -> int:
        """The folder's index for an object key without the volume's name."""
        found = bisect_left(self._hashes, mmh3.hash(key, signed=False))
        return self._places[found if found < len(self._places) else 0]


def _balanced_points(ids: Sequence[str]) -> list[tuple[int, int]]:
    counts = [POINTS] * len(ids)
    points = _points(ids, counts)
    for _ in range(ROUNDS if len(ids) > 1 else 0):
        changes = [
            _change(count, share, 1 / len(ids)) for count, share in zip(counts, _shares(points, len(ids)), strict=True)
        ]
        if not any(changes):
            break
        counts = [count + change for count, change in zip(counts, changes, strict=True)]
        points = _points(ids, counts)
    return points


def _change(count: int, share: float, wanted: float) -> int:
    """How many points a folder gets or loses; a single one is not worth it."""
    change = int(count * (wanted - share) / wanted * DAMPING)
    return 0 if change == 1 else change


def _points(ids: Sequence[str], counts: Sequence[int]) -> list[tuple[int, int]]:
    """So many points of each folder, in the ring's order: (where, the folder's index)."""
    return sorted(
        (mmh3.hash(f"{point}{name}", signed=False), place)
        for place, name in enumerate(ids)
        for point in range(counts[place])
    )


def _shares(points: Sequence[tuple[int, int]], folders: int) -> list[float]:
    """Which part of the ring belongs to each folder."""
    covered = [0] * folders
    before = points[-1][0] - CIRCLE
    for where, place in points:
        covered[place] += where - before
        before = where
    return [length / CIRCLE for length in covered]


def legacy_place(key: str, count: int) -> int:
    """Where clients before the ring put a key, among the folders in sorted order: FNV-1-32."""
    value = 0x811C9DC5
    for byte in key.encode():
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value % count
