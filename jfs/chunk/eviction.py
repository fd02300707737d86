"""Which cached blocks go first.  Pure: when each block was used last goes in, blocks come out.

The index may change meanwhile, by other threads; nothing here holds them up for long, however many blocks there are.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

from jfs.errors import UserError

POLICIES: Final = ("2-random", "lru", "none")

FIRST_REST_S: Final = 2.0
LONGEST_REST_S: Final = 300.0

_SAMPLE: Final = 2000
_PARTS: Final = 20


def check_policy(policy: str) -> str:
    """Raises UserError for a policy that is not there."""
    if policy not in POLICIES:
        raise UserError(f"unknown cache eviction policy {policy!r}; it is one of {', '.join(POLICIES)}")
    return policy


class Rest:
    """Looking for what can go takes time, and where nothing could go it is in vain: a pause, and a longer one each time."""

    def __init__(self) -> None:
        self._until = 0.0
        self._next = FIRST_REST_S

    def lasts(self, now: float) -> bool:
        return now < self._until

    def begin(self, now: float) -> None:
        self._until = now + self._next
        self._next = min(2 * self._next, LONGEST_REST_S)

    def wake(self) -> None:
        """The limits are kept, without slack: the next pause is no shorter for that."""
        self._until = 0.0

    def end(self) -> None:
        """There is room again."""
        self._until = 0.0
        self._next = FIRST_REST_S


def victims(policy: str, used_at: dict[int, int], choose: Callable[[int], int] = random.randrange) -> Iterator[int]:
    """Blocks in the order of going; the caller stops when it has room."""
    if policy == "lru":
        return _longest_unused(used_at)
    if policy == "2-random":
        return _older_of_two(used_at, choose)
    return iter(())


def _longest_unused(used_at: dict[int, int]) -> Iterator[int]:
    """In the order of use, a twentieth at a time: a sample tells where to cut, so that no sort takes long."""
    blocks = list(used_at)
    sample = sorted(used_at.get(block, 0) for block in random.sample(blocks, min(len(blocks), _SAMPLE)))
    step = max(len(sample) // _PARTS, 1)
    done = -1
    for until in [*sample[step - 1 :: step], max(used_at.values(), default=0)]:
        if until > done:
            part = [block for block in blocks if done < used_at.get(block, 0) <= until]
            yield from sorted(part, key=lambda block: used_at.get(block, 0))
            done = until


def _older_of_two(used_at: dict[int, int], choose: Callable[[int], int]) -> Iterator[int]:
    """Of two random blocks, the one unused for longer: nearly as good as LRU and needs no order."""
    blocks = list(used_at)
    while blocks:
        first, second = choose(len(blocks)), choose(len(blocks))
        if used_at.get(blocks[second], 0) < used_at.get(blocks[first], 0):
            first = second
        blocks[first], blocks[-1] = blocks[-1], blocks[first]
        yield blocks.pop()


def expired(used_at: dict[int, int], before: float) -> list[int]:
    """Blocks unused since `before`."""
    return [block for block in list(used_at) if used_at.get(block, before) < before]
