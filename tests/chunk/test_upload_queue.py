"""Which staged block comes next, on trio's clock and without any store."""

from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.chunk.cache_dir import CacheDir
from jfs.chunk.layout import block_key
from jfs.chunk.options import ChunkOptions
from jfs.chunk.staging import Staged
from jfs.chunk.staging_dir import StagingDir
from jfs.chunk.stats import CacheCounts
from jfs.chunk.upload_queue import FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_READ_PAUSE_S, UploadQueue

CLOCK = trio.testing.MockClock


class Scene:
    """Blocks that are all due, numbered as they were staged, in two folders."""

    def __init__(self, folder: Path) -> None:
        self.queue = UploadQueue(lambda block: 0.0)
        options = ChunkOptions(uuid="u", free_space_ratio=0.0)
        self.folders = [
            StagingDir(CacheDir(str(folder / name), options, CacheCounts()), mode=0o600, checksums=True)
            for name in ("one", "two")
        ]
        self._numbers: dict[Staged, int] = {}

    def add(self, number: int, folder: int = 0) -> Staged:
        block = Staged(self.folders[folder], block_key(number, 0, 10), 10, float(number), attempted=False)
        self._numbers[block] = number
        self.queue.add(block)
        return block

    def take(self) -> Staged | None:
        block = self.queue.next()[1]
        if block is not None:
            self.queue.started(block)
        return block

    def succeed(self, block: Staged) -> None:
        self.queue.readable(block.folder)
        self.queue.succeeded()
        self.queue.ended(block)

    def fail(self, block: Staged, *, unreadable: bool = False) -> None:
        if unreadable:
            self.queue.unreadable(block.folder)
        self.queue.put_off(block, unreadable=unreadable)
        self.queue.ended(block)

    def take_all(self) -> list[int]:
        """The numbers of what may go now, each a success."""
        found = []
        while (block := self.take()) is not None:
            found.append(self._numbers[block])
            self.succeed(block)
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_block_that_failed_lets_others_go_first_and_is_oldest_again_then(scene: Scene) -> None:
    clock = CLOCK()

    async def scenario() -> None:
        for number in range(4):
            scene.add(number)
        first = scene.take()
        assert first is not None
        scene.fail(first)
        second = scene.take()
        assert second is not None
        scene.succeed(second)
        clock.jump(FIRST_PAUSE_S)
        assert scene.take_all() == [0, 2, 3]

    trio.run(scenario, clock=clock)


def test_pauses_grow_for_a_block_that_fails_while_others_go(scene: Scene) -> None:
    clock = CLOCK()

    async def scenario() -> None:
        bad = scene.add(0)
        pauses = []
        for number in range(1, 20):
            assert scene.take() is bad
            scene.fail(bad)
            scene.add(number)
            assert scene.take_all() == [number]
            pauses.append(scene.queue.next()[0])
            clock.jump(1.01 * pauses[-1])
        assert pauses[0] <= FIRST_PAUSE_S < 3 * FIRST_PAUSE_S < pauses[3]
        assert LONGEST_PAUSE_S / 2 <= pauses[-1] <= LONGEST_PAUSE_S

    trio.run(scenario, clock=clock)


def test_no_pause_grows_where_nothing_gets_through(scene: Scene) -> None:
    clock = CLOCK()

    async def scenario() -> None:
        for number in range(3):
            scene.add(number)
        for _ in range(20):
            while (block := scene.take()) is not None:
                scene.fail(block)
            assert 0 < scene.queue.next()[0] <= FIRST_PAUSE_S
            clock.jump(FIRST_PAUSE_S)
        assert scene.take_all() == [0, 1, 2]

    trio.run(scenario, clock=clock)


def test_a_folder_that_cannot_be_read_comes_after_the_other(scene: Scene) -> None:
    clock = CLOCK()

    async def scenario() -> None:
        for number in range(10):
            scene.add(number, folder=number // 5)
        block = scene.take()
        assert block is not None
        scene.fail(block, unreadable=True)
        clock.jump(LONGEST_READ_PAUSE_S)
        assert scene.take_all() == [5, 6, 7, 8, 9, 1, 2, 3, 4]

    trio.run(scenario, clock=clock)


def test_one_at_a_time_reads_from_a_folder_that_fails(scene: Scene) -> None:
    clock = CLOCK()

    async def scenario() -> None:
        for number in range(100):
            scene.add(number)
        first = scene.take()
        assert first is not None
        scene.fail(first, unreadable=True)
        tried = {first}
        for _ in range(60):
            wait = scene.queue.next()[0]
            assert 0 < wait < 1.01 * LONGEST_READ_PAUSE_S
            clock.jump(1.01 * wait)
            block = scene.take()
            assert block is not None
            assert scene.take() is None
            scene.fail(block, unreadable=True)
            tried.add(block)
        assert len(tried) > 20, "what failed may be tried again meanwhile, and the rest is tried all the same"
        clock.jump(LONGEST_READ_PAUSE_S)
        block = scene.take()
        assert block is not None
        scene.succeed(block)
        assert scene.take() is not None
        assert scene.take() is not None, "as many as there are, since one was read"

    trio.run(scenario, clock=clock)


def test_whoever_is_in_a_hurry_waits_for_nothing_that_failed(scene: Scene) -> None:
    async def scenario() -> None:
        blocks = [scene.add(number, folder=number) for number in range(2)]
        for block in blocks:
            assert scene.take() is block
            scene.fail(block)
        assert scene.take() is None
        assert scene.queue.oldest() is blocks[0]
        scene.queue.hurry(scene.folders[1])
        assert scene.take_all() == [1]
        scene.queue.hurry()
        assert scene.take_all() == [0]

    trio.run(scenario, clock=CLOCK())


def test_what_was_removed_is_neither_next_nor_oldest(scene: Scene) -> None:
    async def scenario() -> None:
        for number in range(3):
            scene.add(number)
        first, second = scene.take(), scene.take()
        assert first is not None
        assert second is not None
        scene.fail(first)
        scene.fail(second)
        first.ticket = 0
        assert scene.queue.oldest() is second
        scene.queue.hurry()
        assert scene.take_all() == [1, 2]

    trio.run(scenario, clock=CLOCK())
