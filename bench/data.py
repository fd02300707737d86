"""Work on the data path: one big file and many small ones, written, read with empty caches and again with full ones."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.mounts import Mounted, run, settle
from bench.timing import Rows, timed

MIB = 1 << 20
GIB = 1 << 30
BIG = 1 * GIB
PIECE = bytes(range(256)) * 4096
SMALL = bytes(range(256)) * 512
FILES = 600
THREADS = 2


def write_only(mount: Mounted) -> Rows:
    """The rows that another kind of program is compared in."""
    rows = _write_big(mount)
    settle()
    return rows | _write_small(mount)


def data(mount: Mounted) -> Rows:
    rows = write_only(mount)
    mount.drain()
    mount.forget()
    rows["big sequential read, cold (MiB/s)"] = BIG / MIB / timed(lambda: read(mount.path / "big"))
    with mount.costing("big sequential read, warm: CPU (s per GiB)", BIG / GIB):
        rows["big sequential read, warm (MiB/s)"] = BIG / MIB / timed(lambda: read(mount.path / "big"))
    rows |= _random(mount)
    mount.forget()
    names = sorted((mount.path / "small").iterdir())
    rows["128 KiB files, read, cold (files/s)"] = FILES / timed(lambda: each(read, names))
    with mount.costing("128 KiB files, read, warm: CPU (s per 1,000)", FILES / 1000):
        rows["128 KiB files, read, warm (files/s)"] = FILES / timed(lambda: each(read, names))
    return rows


def _write_big(mount: Mounted) -> Rows:
    with mount.costing("big sequential write: CPU (s per GiB)", BIG / GIB):
        took = timed(lambda: write(mount.path / "big", PIECE, BIG // MIB))
    return {"big sequential write (MiB/s)": BIG / MIB / took}


def _write_small(mount: Mounted) -> Rows:
    folder = mount.path / "small"
    folder.mkdir()
    names = [folder / str(number) for number in range(FILES)]
    with mount.costing("128 KiB files, write: CPU (s per 1,000)", FILES / 1000):
        took = timed(lambda: each(lambda name: write(name, SMALL), names))
    return {"128 KiB files, write (files/s)": FILES / took}


def _random(mount: Mounted) -> Rows:
    """What has been read once is in the program's cache; fio lets the kernel's pages go before it begins."""
    rows = {}
    for size, amount in (("4k", "64M"), ("128k", "512M")):
        sizes = [f"--bs={size}", f"--size={BIG}", f"--io_size={amount}", "--randrepeat=1"]
        job = ["fio", "--name=r", f"--filename={mount.path}/big", "--readonly", "--rw=randread", "--ioengine=psync"]
        out = json.loads(run([*job, *sizes, "--output-format=json"]))
        rows[f"{size[:-1]} KiB random read, warm (ops/s)"] = out["jobs"][0]["read"]["iops"]
    return rows


def each(work: Callable[[Path], None], names: list[Path]) -> None:
    """All names, by two threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, names))


def write(name: Path, piece: bytes, count: int = 1) -> None:
    """Until it is closed."""
    descriptor = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for _ in range(count):
        if os.write(descriptor, piece) != len(piece):
            raise SystemExit(f"{name}: a write was cut short")
    os.close(descriptor)


def read(name: Path) -> None:
    """From the file system, not from pages that the kernel kept of it."""
    descriptor = os.open(name, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(MIB)
    while os.readv(descriptor, [buffer]):
        pass
    os.close(descriptor)
