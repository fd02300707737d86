"""What a volume costs does not grow with it: a million inodes against a thousand, and one directory of 200,000 files."""

import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.types import ROOT
from tests.meta.bulk import Folder, file_name, folders, load_sqlite, load_tikv
from tests.meta.volumes import connect, make_file
from tests.mounts import JFS, Mount, Volume, format_volume
from tests.tikv.cluster import Cluster

SMALL = folders(1000)
LARGE = folders(200_000, *(1000 for _ in range(800)))
MORE = 3.0
"""Times that are the same are never so far apart; a cost that grows with the volume would be a thousand times as much."""

SAMPLES = 200
STARTS = 6
"""At the most, until one is quick: the machine may have other work."""

LISTING_MIB = 64
"""A listing may hold a page of names, notes about 100,000 files at the most (20 MiB), and the database its cache of pages (32 MiB,
part of which was there before); all rows at once would take 150 MiB."""


@dataclass(frozen=True)
class Pair:
    """Two volumes on one kind of engine."""

    small: Volume
    large: Volume
    cluster: Cluster | None


@pytest.fixture(scope="module", params=["sqlite3", "tikv"])
def volumes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("growth")
    with ExitStack() as stack:
        # one of its own: a million records would stay in the shared one until the end of the session
        cluster = stack.enter_context(Cluster()) if request.param == "tikv" else None
        yield Pair(_made(folder, "small", cluster, SMALL), _made(folder, "large", cluster, LARGE), cluster)


def _made(folder: Path, name: str, cluster: Cluster | None, made: list[Folder]) -> Volume:
    address = cluster.url(name) if cluster else ""
    volume = format_volume(JFS, folder / name, name, address=address)
    if cluster:
        load_tikv(cluster, name, made)
    else:
        load_sqlite(str(volume.database), made)
    return volume


# -- operations


class Work:
    """Operations on files of one directory of a volume, each on another file."""

    def __init__(self, client: MetaClient, folder: Folder) -> None:
        self._client = client
        self._folder = folder
        self._numbers = iter(random.Random(1).sample(range(folder.count), folder.count))

    async def lookup(self) -> None:
        await self._client.lookup(ROOT, self._folder.ino, file_name(next(self._numbers)))

    async def stat(self) -> None:
        await self._client.getattr(self._folder.ino + 1 + next(self._numbers), fresh=True)

    async def create(self) -> None:
        await make_file(self._client, b"new-%d" % next(self._numbers), parent=self._folder.ino)


OPERATIONS = ("lookup", "stat", "create")


async def test_an_operation_costs_the_same_in_a_large_volume(volumes: Pair) -> None:
    small = await connect(open_engine(volumes.small.url))
    large = await connect(open_engine(volumes.large.url))
    try:
        for name in OPERATIONS:
            works: list[Callable[[], Awaitable[None]]] = [
                getattr(Work(client, folder), name)
                for client, folder in ((small, SMALL[0]), (large, LARGE[0]), (large, LARGE[-1]))
            ]
            counts = [await _requests(volumes.cluster, work) for work in works]
            assert counts[0] == counts[1] == counts[2], name
            times = await _medians(works)
            assert max(times[1:]) < MORE * times[0], (name, times)
    finally:
        for client in (small, large):
            await client.close_session()
            await client.engine.close()


async def _requests(cluster: Cluster | None, work: Callable[[], Awaitable[None]]) -> dict[str, int]:
    """By kind, of the second time: the first may draw inode numbers.  Commits go on in the background: not counted."""
    await work()
    if cluster is None:
        return {}
    cluster.control.reset_counters()
    await work()
    counts = cluster.control.counters()
    return {name: count.calls for name, count in counts.items() if count.calls and name != "commit"}


async def _medians(works: list[Callable[[], Awaitable[None]]]) -> list[float]:
    """Seconds of each, taken in turn, so that what else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(SAMPLES):
        for work, found in zip(works, times, strict=True):
            began = time.perf_counter()
            await work()
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in times]


# -- programs


def test_start_does_not_depend_on_the_size(volumes: Pair) -> None:
    for name, start in (("status", _status), ("mount", _mount)):
        times: dict[Volume, list[float]] = {volumes.small: [], volumes.large: []}
        for _ in range(STARTS):
            for volume, found in times.items():
                began = time.perf_counter()
                start(volume)
                found.append(time.perf_counter() - began)
            if min(times[volumes.large]) < MORE * min(times[volumes.small]):
                break
        else:
            raise AssertionError((name, times))


def _status(volume: Volume) -> None:
    assert f'"{volume.name}"' in JFS.run("status", volume.url).stdout


def _mount(volume: Volume) -> None:
    """With a first look, until it is gone again."""
    with volume.mounted(JFS) as mount:
        assert (mount.path / "dir-0" / os.fsdecode(file_name(7))).stat().st_size == 0


def test_a_large_directory_is_listed_in_flat_memory(volumes: Pair) -> None:
    with volumes.large.mounted(JFS, life=120) as mount:
        assert sum(1 for _ in os.scandir(mount.path / "dir-1")) >= LARGE[1].count  # whatever the first listing loads
        before = _peak_mib(mount)
        parts: list[float] = []
        for _ in range(STARTS):
            began = time.perf_counter()
            with os.scandir(mount.path / "dir-0") as rows:
                next(rows)
                first = time.perf_counter() - began
                found = 1 + sum(1 for _ in rows)
            parts.append(first / (time.perf_counter() - began))
            assert found >= LARGE[0].count
            if parts[-1] < 1 / 5:
                break
        assert min(parts) < 1 / 5, f"the first of {found} rows came after these parts of the time: {parts}"
        grown = _peak_mib(mount) - before
        assert grown < LISTING_MIB, f"grew by {grown:.0f} MiB"


def _peak_mib(mount: Mount) -> float:
    """The most that the mount's process ever held: what it holds goes down, too, where memory is short."""
    for line in Path(f"/proc/{mount.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no VmHWM of process {mount.process.pid}")
