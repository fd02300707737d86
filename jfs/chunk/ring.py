"""Which cache folder a block belongs to: a ring of 100 points per folder, so that a lost folder moves only its own blocks."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import mmh3

POINTS: Final = 100


class Ring:
    """Places keys on folders by the ids that the folders' `.lock` files hold."""

    def __init__(self, ids: Sequence[str]) -> None:
        points = sorted(
            (mmh3.hash(f"{point}{name}", signed=False), place)
            for place, name in enumerate(ids)
            for point in range(POINTS)
        )
        self._hashes = [point for point, _ in points]
        self._places = [place for _, place in points]

    def place(self, key: str) -> int:
        """The folder's index for an object key without the volume's name."""
        found = bisect_left(self._hashes, mmh3.hash(key, signed=False))
        return self._places[found if found < len(self._places) else 0]


def legacy_place(key: str, count: int) -> int:
    """Where clients before the ring put a key, among the folders in sorted order: FNV-1-32."""
    value = 0x811C9DC5
    for byte in key.encode():
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value % count
