"""Several mounts of one volume, of jfs and of the peer, all at work: nothing is lost, and everybody sees the same."""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.conftest import assert_clean
from tests.interop.crowd import COMMON, Job
from tests.interop.several import UNCACHED, several_mounts
from tests.mounts import JFS, MOUNT_LIFE, Mount, Volume, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address
from tests.trees import Node, describe, snapshot

PROJECT = Path(__file__).parents[2]
WORKERS = 6

SECONDS = float(os.environ.get("JFS_CROWD_SECONDS", "12"))
"""How long the crowds work; minutes for a soak."""

SEED = int(os.environ.get("JFS_CROWD_SEED", "1"))


def crowd(volume: Volume, mounts: list[Mount], *, uncached: bool, trash: bool) -> list[dict[str, dict[str, int | str]]]:
    """Let the workers work; their reports."""
    first = mounts[0].path
    for number in range(3):
        (first / f"shared/{number}").mkdir(parents=True)
    for number in range(COMMON):
        (first / f"count-{number}").write_text(f"{0:020}")
    ours = [str(mount.path) for mount in mounts if mount.client is JFS]
    everywhere = [str(mount.path) for mount in mounts]
    jobs = []
    for number in range(WORKERS):
        places = everywhere if uncached else [everywhere[number % len(everywhere)]]
        report = volume.folder / f"{number}.report"
        seed = SEED * 100 + number
        folder = str(volume.folder)
        jobs.append(Job(f"{number}", seed, SECONDS, places, ours, uncached, trash, folder, str(report)))
    run_all(volume, jobs)
    return [json.loads(Path(job.report).read_text()) for job in jobs]


def run_all(volume: Volume, jobs: list[Job]) -> None:
    with ExitStack() as stack:
        processes = []
        for job in jobs:
            described = volume.folder / f"{job.who}.job"
            described.write_text(json.dumps(asdict(job)))
            output = stack.enter_context((volume.folder / f"{job.who}.out").open("w"))
            command = [sys.executable, "-m", "tests.interop.crowd", str(described)]
            process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output)
            stack.callback(process.kill)
            processes.append(process)
        codes = [process.wait(SECONDS + 120) for process in processes]
    failed = [job for job, code in zip(jobs, codes, strict=True) if code]
    told = "\n".join((volume.folder / f"{job.who}.out").read_text()[-3000:] for job in failed)
    assert not failed, f"seed {SEED}: {len(failed)} workers failed\n{told}"


def check_private(root: Path, reports: list[dict[str, dict[str, int | str]]]) -> None:
    """Each worker's directory holds what the worker knows, and nothing else."""
    for number, report in enumerate(reports):
        seen = {f"own-{number}/{name}": node for name, node in snapshot(root / f"own-{number}").items()}
        files = {name: node.content for name, node in seen.items() if node.kind == "-"}
        assert files == report["files"], f"seed {SEED}, worker {number} on {root}"


def check_common(root: Path, reports: list[dict[str, dict[str, int | str]]]) -> None:
    """No line and no count is lost, and each worker's lines are in order."""
    added = Counter[str]()
    for report in reports:
        added.update({name: int(times) for name, times in report["added"].items()})
    for number in range(COMMON):
        assert int((root / f"count-{number}").read_text()) == added[f"count-{number}"], f"seed {SEED} on {root}"
        lines = (root / f"log-{number}").read_text().splitlines()
        for who, report in enumerate(reports):
            own = [line for line in lines if line.startswith(f"{who} ")]
            assert own == [f"{who} {n}" for n in range(int(report["added"].get(f"log-{number}", 0)))], f"seed {SEED}"
        assert len(lines) == added[f"log-{number}"]


def tree(root: Path) -> dict[str, Node]:
    """What a mount shows, by path, without what the program itself puts into the root."""
    shown: dict[str, Node] = {}
    for name in os.listdir(root):
        if not name.startswith("."):
            shown[name] = describe(str(root / name))
            shown.update((f"{name}/{below}", node) for below, node in snapshot(root / name).items())
    return shown


def differences(roots: list[Path]) -> list[str]:
    """The names that not all mounts show alike."""
    first, *others = (tree(root) for root in roots)
    return [
        f"{root}/{name}: {other.get(name)}, on {roots[0]}: {first.get(name)}"
        for root, other in zip(roots[1:], others, strict=True)
        for name in sorted(first.keys() | other.keys())
        if other.get(name) != first.get(name)
    ]


def check_trees(roots: list[Path]) -> None:
    """All mounts come to show the same."""
    found: list[str] = []

    def same() -> bool:
        found[:] = differences(roots)
        return not found

    try:
        eventually(same, 60, "all mounts show the same tree")
    except AssertionError as error:
        error.add_note("\n".join(found))
        raise


@pytest.mark.timeout(240 + 5 * SECONDS)
@pytest.mark.parametrize(
    ("ours", "theirs", "uncached", "trash"),
    [
        pytest.param(3, 0, True, 0, id="three without caches"),
        pytest.param(2, 1, True, 1, id="two and the peer without caches"),
        pytest.param(3, 1, False, 0, id="three and the peer"),
    ],
)
def test_a_crowd_at_work(
    tmp_path: Path, tikv_cluster: Cluster, ours: int, theirs: int, uncached: bool, trash: int
) -> None:
    address = fresh_address(tikv_cluster)
    volume = format_volume(JFS, tmp_path, "crowd", "--trash-days", str(trash), address=address)
    flags = UNCACHED if uncached else ()
    with several_mounts(volume, ours, theirs, *flags, life=MOUNT_LIFE + 4 * SECONDS) as mounts:
        for mount in mounts[ours:]:
            mount.expect_log(r"write inode:\d+ indx:\d+ no such file")  # it was removed elsewhere meanwhile
        reports = crowd(volume, mounts, uncached=uncached, trash=trash > 0)
        roots = [mount.path for mount in mounts]
        check_trees(roots)
        for root in roots:
            check_private(root, reports)
            check_common(root, reports)
    assert_clean(volume, mounts[ours:])
