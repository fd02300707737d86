"""The work that both mounts do.  Each function does one kind and returns its rows: name -> rate, more is better."""

import json
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from bench.mounts import run, settle

Rows = dict[str, float]

FILES = 10_000
BENCH_ROWS = {
    "Write big file": "big file, write (MiB/s)",
    "Read big file": "big file, read (MiB/s)",
    "Write small file": "128 KiB files, write (files/s)",
    "Read small file": "128 KiB files, read (files/s)",
    "Stat file": "128 KiB files, stat (files/s)",
}


def juicefs_bench(mount: Path) -> Rows:
    """JuiceFS's own benchmark."""
    text = run([str(Path(sys.executable).with_name("juicefs")), "bench", "-p", "2", str(mount)])
    rows = {}
    for item, name in BENCH_ROWS.items():
        found = re.search(rf"{item} \|\s*([\d.]+)", text)
        if found is None:
            raise SystemExit(f"juicefs bench printed no row {item!r}:\n{text}")
        rows[name] = float(found[1])
    return rows


def random_io(mount: Path) -> Rows:
    """fio, one process, 4 KiB at random places of a 128 MiB file."""
    rows = {}
    common = ["fio", "--name=r", f"--filename={mount}/random", "--size=128M", "--bs=4k", "--ioengine=psync"]
    run([*common, "--rw=write", "--bs=1M"])
    for kind, timed in (("write", "--io_size=32M"), ("read", "--io_size=64M")):
        settle()
        out = json.loads(run([*common, f"--rw=rand{kind}", timed, "--randrepeat=1", "--output-format=json"]))
        rows[f"4 KiB random {kind} (ops/s)"] = out["jobs"][0][kind]["iops"]
    return rows


def small_files(mount: Path) -> Rows:
    """Empty files in one directory."""
    folder = mount / "many"
    folder.mkdir()
    names = [f"{folder}/file-{number}" for number in range(FILES)]

    def create() -> None:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))

    def stat() -> None:
        for name in names:
            os.stat(name)

    def listing() -> None:
        if len(os.listdir(folder)) != FILES:
            raise SystemExit("the listing is not complete")

    def remove() -> None:
        for name in names:
            os.unlink(name)

    rows = {}
    for label, work in (("create", create), ("stat", stat), ("list", listing), ("remove", remove)):
        rows[f"{FILES:,} empty files, {label} (files/s)"] = FILES / timed(work)
        time.sleep(1.5)  # the kernel's caches of names and attributes last a second
    return rows


def untar(mount: Path) -> Rows:
    """Python's standard library from an archive."""
    archive = source_archive()
    (mount / "tree").mkdir()
    took = timed(lambda: run(["tar", "-xf", str(archive), "-C", str(mount / "tree")]))
    return {"untar a source tree (per minute)": 60 / took}


def clone(mount: Path) -> Rows:
    """git, from a repository on the local disk."""
    repository = source_repository()
    took = timed(lambda: run(["git", "clone", "-q", "--no-hardlinks", str(repository), str(mount / "clone")]))
    return {"git clone (per minute)": 60 / took}


WORK: dict[str, Callable[[Path], Rows]] = {
    "bench": juicefs_bench,
    "random": random_io,
    "small": small_files,
    "untar": untar,
    "clone": clone,
}


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
