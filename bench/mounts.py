"""A mounted volume of one of the two programs, and what its processes cost."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
WARM_BLOCKS = 1024


class Mounted:
    """One program's mount."""

    def __init__(self, program: str, path: Path) -> None:
        self.program = program
        self.path = path

    def processes(self) -> list[int]:
        """Every process that serves the mount point."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    words = Path(
                        "/proc", entry, "cmdline"
                    ).read_bytes()  # JuiceFS joins its own with spaces and cuts it off
                except OSError:  # it has just ended
                    continue
                if b" mount " in words.replace(b"\0", b" ") and os.fsencode(f"{self.path.parent}/meta.db") in words:
                    found.append(int(entry))
        return found

    def cpu_seconds(self) -> float:
        total = 0
        for pid in self.processes():
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def forget_peak(self) -> None:
        for pid in self.processes():
            Path("/proc", str(pid), "clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """The most memory that the processes held at once since `forget_peak`, MiB."""
        total = 0
        for pid in self.processes():
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1])
        return total / 1024


@contextmanager
def mounted(program: str, folder: Path) -> Iterator[Mounted]:
    """A fresh volume with default options, mounted until the end of the block."""
    binary = str(Path(sys.executable).with_name(program))
    url, path = f"sqlite3://{folder}/meta.db", folder / "mnt"
    folder.mkdir(parents=True)
    run([binary, "format", "--bucket", f"{folder}/objects", url, "bench"])
    extra = ["--no-usage-report", "--cache-dir", f"{folder}/cache"] if program == "juicefs" else []
    run([binary, "mount", "-d", "--log", f"{folder}/log", *extra, url, str(path)])
    try:
        yield Mounted(program, path)
    finally:
        time.sleep(0.5)
        run(["umount", str(path)])
        deadline = time.monotonic() + 30
        while Mounted(program, path).processes() and time.monotonic() < deadline:
            time.sleep(0.1)


def run(words: list[str], **more: object) -> str:
    """Run a command that must succeed; what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def settle(seconds: float = 1.0) -> None:
    """Let disks and mounts come to rest, and take back memory that the machine's host has reclaimed.

    Such memory is slow on its first use, and file data lands in it: so it is the page cache that is filled, and let go.
    """
    os.sync()
    warm = Path(os.environ["JFS_BENCH_FOLDER"], "warm")
    block = bytes(4 << 20)
    with warm.open("wb", buffering=0) as file:
        for _ in range(WARM_BLOCKS):
            file.write(block)
    warm.unlink()
    time.sleep(seconds)
