"""Writers that run beside a test, and small file systems of a test's own."""

import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts import is_mounted, require_fuse

PROJECT = Path(__file__).parents[2]


@contextmanager
def writing(root: Path, log: Path, seed: int, *flags: str) -> Generator[subprocess.Popen[bytes], None, None]:
    """A writer process at work below `root`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.writer", str(root), str(log), str(seed), *flags], cwd=PROJECT
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Callable[..., Path], None, None]:
    """Mount a file system of its own: `small_disk("tmpfs", size="40m")`, `small_disk("ext4", ...)` on a loop device."""
    require_fuse()
    made: list[Path] = []

    def make(kind: str, size: str, options: str = "defaults") -> Path:
        path = tmp_path / f"disk-{len(made)}"
        path.mkdir()
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
        else:
            image = tmp_path / f"image-{len(made)}"
            subprocess.run(["truncate", "-s", size, image], check=True)
            subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
            command = ["mount", "-o", f"loop,{options}", image, path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"this test needs to mount a {kind}: {done.stderr}"
        made.append(path)
        return path

    yield make
    for path in made:
        while is_mounted(path):
            subprocess.run(["umount", "-l", path], check=True)
