"""Which cached blocks go first.  Pure: an index in, keys out."""

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from jfs.errors import UserError

POLICIES: Final = ("2-random", "lru", "none")

# A cached block: [bytes that it costs, when it was used last (unix seconds)].
Block = list[float]


def check_policy(policy: str) -> str:
    """Raises UserError for a policy that is not there."""
    if policy not in POLICIES:
        raise UserError(f"unknown cache eviction policy {policy!r}; it is one of {', '.join(POLICIES)}")
    return policy


def victims(policy: str, index: dict[str, Block], choose: Callable[[int], int] = random.randrange) -> Iterator[str]:
    """Keys in the order of going; the caller stops when it has room."""
    if policy == "lru":
        return iter(heapq.nsmallest(len(index), index, key=lambda key: index[key][1]))
    if policy == "2-random":
        return _older_of_two(index, choose)
    return iter(())


def _older_of_two(index: dict[str, Block], choose: Callable[[int], int]) -> Iterator[str]:
    """Of two random blocks, the one unused for longer: nearly as good as LRU and needs no order."""
    keys = list(index)
    never = [0.0, 0.0]
    while keys:
        first, second = choose(len(keys)), choose(len(keys))
        if index.get(keys[second], never)[1] < index.get(keys[first], never)[1]:
            first = second
        keys[first], keys[-1] = keys[-1], keys[first]
        yield keys.pop()


def expired(index: dict[str, Block], before: float) -> Iterable[str]:
    """Blocks unused since `before`."""
    return [key for key, block in list(index.items()) if block[1] < before]
