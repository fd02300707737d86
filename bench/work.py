"""The work that both mounts do.  Each function does one kind and returns its rows: name -> rate, more is better."""

import json
import os
import re
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from bench.data import data, write_only
from bench.mounts import Mounted, Place, binary, run, settle
from bench.timing import Rows, for_all, timed, touch

FILES = 10_000
REMOTE_FILES = 1_000
BENCH_ROWS = {
    "Write big file": "big file, write (MiB/s)",
    "Read big file": "big file, read (MiB/s)",
    "Write small file": "128 KiB files, write (files/s)",
    "Read small file": "128 KiB files, read (files/s)",
    "Stat file": "128 KiB files, stat (files/s)",
}


def juicefs_bench(mount: Mounted) -> Rows:
    """JuiceFS's own benchmark."""
    text = run([binary("juicefs"), "bench", "-p", "2", str(mount.path)])
    rows = {}
    for item, name in BENCH_ROWS.items():
        found = re.search(rf"{item} \|\s*([\d.]+)", text)
        if found is None:
            raise SystemExit(f"juicefs bench printed no row {item!r}:\n{text}")
        rows[name] = float(found[1])
    return rows


def random_io(mount: Mounted) -> Rows:
    """fio, one process, 4 KiB at random places of a 128 MiB file."""
    rows = {}
    common = ["fio", "--name=r", f"--filename={mount.path}/random", "--size=128M", "--bs=4k", "--ioengine=psync"]
    run([*common, "--rw=write", "--bs=1M"])
    for kind, amount in (("write", "--io_size=32M"), ("read", "--io_size=64M")):
        settle()
        out = json.loads(run([*common, f"--rw=rand{kind}", amount, "--randrepeat=1", "--output-format=json"]))
        rows[f"4 KiB random {kind} (ops/s)"] = out["jobs"][0][kind]["iops"]
    return rows


def small_files(mount: Mounted) -> Rows:
    """Empty files in one directory."""
    return {f"{FILES:,} empty files, {label}": rate for label, rate in metadata(mount, FILES).items()}


def metadata_updates(mount: Mounted) -> Rows:
    """The same, fewer, where each change is a few round trips to a cluster; and the mean of all changes."""
    rates = metadata(mount, REMOTE_FILES, changes=("create", "chmod", "rename", "remove"))
    changes = [rate for label, rate in rates.items() if label.split()[0] not in ("stat", "list")]
    mean = len(changes) / sum(1 / rate for rate in changes)
    return {f"empty files, {label}": rate for label, rate in rates.items()} | {"metadata updates, mean (per s)": mean}


def metadata(mount: Mounted, count: int, changes: tuple[str, ...] = ("create", "remove")) -> Rows:
    """One after the other: what the changes take, and what it takes to see the files."""
    folder = mount.path / "many"
    folder.mkdir()
    names = [f"{folder}/file-{number}" for number in range(count)]

    def listing() -> None:
        if len(os.listdir(folder)) != count:
            raise SystemExit("the listing is not complete")

    work: dict[str, Callable[[], None]] = {
        "create": lambda: for_all(touch, names),
        "stat": lambda: for_all(os.stat, names),
        "list": listing,
        "chmod": lambda: for_all(lambda name: os.chmod(name, 0o600), names),
        "rename": lambda: for_all(lambda name: os.rename(name, f"{name}+"), names),
        "remove": lambda: for_all(lambda name: os.unlink(f"{name}+" if "rename" in changes else name), names),
    }
    rows = {}
    for label, step in work.items():
        if label in ("stat", "list") or label in changes:
            rows[f"{label} (files/s)"] = count / timed(step)
            time.sleep(1.5)  # the kernel's caches of names and attributes last a second
    return rows


def untar(mount: Mounted) -> Rows:
    """Python's standard library from an archive."""
    archive = source_archive()
    (mount.path / "tree").mkdir()
    took = timed(lambda: run(["tar", "-xf", str(archive), "-C", str(mount.path / "tree")]))
    return {"untar a source tree (per minute)": 60 / took}


def clone(mount: Mounted) -> Rows:
    """git, from a repository on the local disk."""
    repository = source_repository()
    took = timed(lambda: run(["git", "clone", "-q", "--no-hardlinks", str(repository), str(mount.path / "clone")]))
    return {"git clone (per minute)": 60 / took}


class Comparison(NamedTuple):
    """The same work on volumes of each program."""

    section: str
    place: Place
    work: Callable[[Mounted], Rows]
    others: Mapping[str, Callable[[Mounted], Rows]] = MappingProxyType({})


LOCAL = "Metadata in SQLite, data in a directory"
CLUSTER = "Metadata in TiKV, data in S3"
RCLONE = {"rclone": write_only}

COMPARISONS = {
    "bench": Comparison(LOCAL, Place(), juicefs_bench),
    "random": Comparison(LOCAL, Place(), random_io),
    "small": Comparison(LOCAL, Place(), small_files),
    "untar": Comparison(LOCAL, Place(), untar),
    "clone": Comparison(LOCAL, Place(), clone),
    "tikv-bench": Comparison(CLUSTER, Place("tikv", "s3"), juicefs_bench),
    "tikv-meta": Comparison(CLUSTER, Place("tikv", "s3"), metadata_updates),
    "tikv-untar": Comparison(CLUSTER, Place("tikv", "s3"), untar),
    "file": Comparison("The data path: a directory", Place(), data),
    "file-writeback": Comparison("The data path: a directory, with --writeback", Place(writeback=True), data),
    "s3": Comparison("The data path: S3", Place(storage="s3"), data),
    "s3-writeback": Comparison(
        "The data path: S3, with --writeback", Place(storage="s3", writeback=True), data, RCLONE
    ),
}


def place() -> Path:
    return Path(os.environ["JFS_BENCH_FOLDER"])


def source_tree() -> Path:
    tree = place() / "source"
    if not tree.exists():
        skipped = shutil.ignore_patterns("site-packages", "__pycache__", "test", "*.a")
        shutil.copytree(sysconfig.get_path("stdlib"), tree, ignore=skipped)
    return tree


def source_archive() -> Path:
    archive = place() / "source.tar"
    if not archive.exists():
        run(["tar", "-cf", str(archive), "-C", str(source_tree()), "."])
    return archive


def source_repository() -> Path:
    repository = place() / "repository"
    if not repository.exists():
        shutil.copytree(source_tree(), repository)
        git = ["git", "-C", str(repository), "-c", "user.name=bench", "-c", "user.email=bench@example.org"]
        run([*git, "init", "-q"])
        run([*git, "add", "."])
        run([*git, "commit", "-q", "-m", "source"])
    return repository
