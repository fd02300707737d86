"""Uploads beside writers: who goes when, by a clock that the tests set."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jfs.chunk.cache import DiskCache
from jfs.chunk.layout import block_key
from jfs.chunk.options import ChunkOptions
from jfs.chunk.pacing import BUSY_S, LATE_S, PAUSE_S, Pace
from jfs.chunk.staging import Staged, Staging
from jfs.chunk.staging_dir import Found, StagingDir

WORKERS = 4
NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("staged", "ended", "due", "running", "wait"),
    [
        (None, 0.0, 0.0, 3, 0.0),  # nobody has staged anything
        (BUSY_S, 0.0, 0.0, 3, 0.0),  # nor lately
        (0.2, 0.0, 0.2, 1, BUSY_S - 0.2),
        (0.2, PAUSE_S, 0.2, 0, 0.0),
        (0.2, 0.04, 0.2, 0, PAUSE_S - 0.04),
        (BUSY_S - 0.01, 0.04, 0.2, 0, 0.01),  # quiet before the pause is over
        (0.0, 0.0, LATE_S - 0.02, 0, 0.02),  # or late
        (0.0, 0.0, LATE_S - 0.02, 1, 0.02),
        (0.0, 0.0, LATE_S, 3, 0.0),
        (-100.0, -100.0, 0.0, 3, 0.0),  # the clock was set back since
    ],
)
def test_when_the_next_upload_may_start(
    staged: float | None, ended: float, due: float, running: int, wait: float
) -> None:
    """All but `running` are seconds ago."""
    pace = Pace()
    if staged is not None:
        pace.staged(NOW - staged)
    pace.ended(NOW - ended)
    assert pace.wait(NOW, NOW - due, running) == pytest.approx(wait, abs=1e-6)


class Scene:
    """A mount's staging whose uploads start when they may and end when the test says so."""

    def __init__(self, folder: Path, clock: trio.testing.MockClock, **options: Any) -> None:
        self._clock = clock
        chosen = ChunkOptions(
            uuid="u",
            cache_dirs=[str(folder)],
            free_space_ratio=0.0001,
            writeback=options.pop("writeback", True),
            **options,
        )
        self._cache = DiskCache(chosen)
        self.staging = Staging(self._cache, chosen, lambda: NOW + trio.current_time())
        self._running: list[Staged] = []
        self._ended = trio.lowlevel.ParkingLot()
        self._number = 0

    async def play(self, part: Callable[["Scene"], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            await trio.testing.wait_all_tasks_blocked()
            await part(self)
            nursery.cancel_scope.cancel()
        self._cache.close()

    async def _work(self) -> None:
        while True:
            (block,) = await self.staging.next_due()
            self._running.append(block)
            while block in self._running:
                await self._ended.park()

    async def write(self, count: int = 1) -> None:
        for _ in range(count):
            assert await self.staging.put(block_key(self._number, 0, 10), bytes(10), inline=True)
            self._number += 1
        await trio.testing.wait_all_tasks_blocked()

    async def pass_by(self, seconds: float) -> None:
        self._clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async def write_on(self, seconds: float) -> None:
        """A block each 0.1 s."""
        for _ in range(round(seconds * 10)):
            await self.pass_by(0.1)
            await self.write()

    async def end(self, *, failed: bool = False) -> None:
        """The oldest upload under way is over."""
        block = self._running.pop(0)
        self._ended.unpark_all()
        if failed:
            self.staging.give_back(block)
        else:
            self.staging.settle(block)
            self.staging.left([block.key])
        await trio.testing.wait_all_tasks_blocked()

    @property
    def running(self) -> list[int]:
        """The blocks that are being uploaded, by number."""
        return [int(block.key.rpartition("/")[2].partition("_")[0]) for block in self._running]


def play(folder: Path, part: Callable[[Scene], Awaitable[None]], **options: Any) -> None:
    clock = trio.testing.MockClock()

    async def scenario() -> None:
        await Scene(folder, clock, **options).play(part)

    trio.run(scenario, clock=clock)


def test_a_single_block_goes_at_once(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write()
        assert scene.running == [0]

    play(tmp_path, part)


def test_beside_writers_one_goes_at_a_time_with_pauses_and_the_oldest_first(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(5)
        await scene.write_on(0.5)
        assert scene.running == [0]
        await scene.end()
        assert scene.running == []
        await scene.pass_by(PAUSE_S / 2)
        assert scene.running == []
        await scene.pass_by(PAUSE_S / 2)
        assert scene.running == [1]

    play(tmp_path, part)


def test_all_go_once_the_writers_are_quiet(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(9)
        await scene.pass_by(BUSY_S - 0.01)
        assert scene.running == [0]
        await scene.pass_by(0.01)
        assert scene.running == [0, 1, 2, 3]
        await scene.end()
        assert scene.running == [1, 2, 3, 4]

    play(tmp_path, part)


def test_no_block_waits_for_writers_for_more_than_some_seconds(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(3)
        await scene.write_on(LATE_S - 0.1)
        assert scene.running == [0]
        await scene.write_on(0.1)
        assert scene.running == [0, 1, 2], "those that are late, and no younger one"

    play(tmp_path, part)


def test_a_delay_is_no_lateness(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(3)
        await scene.write_on(60.0)
        assert scene.running == [0]
        await scene.write_on(LATE_S)
        assert scene.running == [0, 1, 2, 3], "the fourth, too, is due for almost as long"

    play(tmp_path, part, upload_delay=59.9)


def test_a_failed_upload_goes_again_after_a_pause_beside_writers(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write_on(0.3)
        await scene.end(failed=True)
        assert scene.running == []
        await scene.pass_by(PAUSE_S)
        assert scene.running == [0]

    play(tmp_path, part)


def test_a_drain_waits_for_no_writer(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(9)
        scene.staging.drain(on=True)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.running == [0, 1, 2, 3]

    play(tmp_path, part)


def test_a_disk_that_gets_short_of_room_has_its_blocks_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(9)
        assert scene.running == [0]
        monkeypatch.setattr(StagingDir, "free_share", lambda _: 0.00009)
        await scene.write()
        assert scene.running == [0, 1, 2, 3]
        monkeypatch.setattr(StagingDir, "free_share", lambda _: 0.5)
        scene.staging.look_for_room()
        for _ in range(4):
            await scene.end()
        await scene.write()
        assert scene.running == [], "there is room again"

    play(tmp_path, part)


def test_nobody_yields_while_half_of_the_most_are_being_staged(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write(9)
        scene.staging.counts.writing = 6
        await scene.write()
        assert scene.running == [0, 1, 2, 3], "a worker that takes a block calls the next"

    play(tmp_path, part, max_stage_write=11)


def test_what_an_earlier_mount_left_goes_to_all_workers(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        await scene.write()
        assert scene.running == [0]
        (folder,) = scene.staging.dirs
        for number in range(100, 109):
            key = block_key(number, 0, 10)
            folder.write(key, bytes(10))
            assert scene.staging.take_over(folder, Found(key, 10, NOW - 1000.0))
        await trio.testing.wait_all_tasks_blocked()
        assert scene.running == [0, 100, 101, 102]

    play(tmp_path, part)


def test_a_mount_without_writeback_has_no_writers_to_wait_for(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        (folder,) = scene.staging.dirs
        for number in range(9):
            key = block_key(number, 0, 10)
            folder.write(key, bytes(10))
            assert scene.staging.take_over(folder, Found(key, 10, NOW))
        await trio.testing.wait_all_tasks_blocked()
        assert scene.running == [0, 1, 2, 3]

    play(tmp_path, part, writeback=False)
