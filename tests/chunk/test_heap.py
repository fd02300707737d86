"""What the C library does with freed blocks, in a process of its own: the settings hold for all of it."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import trio
import trio.testing

from jfs.chunk import heap
from jfs.chunk.options import ChunkOptions
from jfs.chunk.store import HEAP_IDLE_S, BlockStore
from jfs.object.memory import MemoryStore

PROGRAM = """
import resource, threading
from jfs.chunk import heap

heap.keep_freed()
BLOCK = 4 << 20

def held() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use() -> None:
    blocks = [bytes(BLOCK) + b"." for _ in range(4)]

def in_thread() -> None:
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

start = held()
in_thread()
print("kept", held() - start >= 3 * BLOCK)
before = faults()
for _ in range(5):
    in_thread()
print("used again", faults() - before < 5 * 4 * BLOCK // resource.getpagesize() // 4)
heap.give_back()
print("given back", held() - start < BLOCK)
"""


def test_freed_blocks_are_used_again_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "kept True\nused again True\ngiven back True\n"


def test_memory_is_given_back_once_when_the_traffic_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(heap, "give_back", lambda: given.append(trio.current_time()))
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)

    async def scenario() -> None:
        blocks = BlockStore(MemoryStore(), ChunkOptions(block_size=10))
        async with trio.open_nursery() as nursery:
            await nursery.start(blocks.run)
            await trio.sleep(10.5 * HEAP_IDLE_S)
            assert given == []
            for _ in range(5):
                await blocks.put(1, 0, b"x")
                await trio.sleep(HEAP_IDLE_S)
            assert given == []
            await trio.sleep(20 * HEAP_IDLE_S)
            assert len(given) == 1
            nursery.cancel_scope.cancel()
        await blocks.close()

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


async def at_once(call: Callable[..., object], *args: object, **options: object) -> object:
    """A thread would let the clock jump while it works."""
    return call(*args)
