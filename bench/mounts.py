"""A mounted volume of one of the programs, and what its processes cost."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.servers import Servers

TICK = os.sysconf("SC_CLK_TCK")
WARM_BLOCKS = 1024
MOUNT_S = 120
DRAIN_S = 300


@dataclass(frozen=True)
class Place:
    """What a volume is made of, and how it is mounted."""

    meta: str = "sqlite3"
    storage: str = "file"
    writeback: bool = False


@dataclass
class Mounted:
    """One program's volume, fresh, in a folder of its own; its costs are collected as the work goes on."""

    program: str
    folder: Path
    place: Place
    servers: Servers
    costs: dict[str, float] = field(default_factory=dict)
    _peak: float = 0.0

    @property
    def path(self) -> Path:
        return self.folder / "mnt"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def format(self) -> None:
        """A fresh volume; rclone has none, its bucket is made by the first write."""
        self.folder.mkdir(parents=True)
        self.path.mkdir()
        if self.program != "rclone":
            run([binary(self.program), "format", *self._bucket(), self._url(), "bench"])

    def mount(self) -> None:
        """Ready for work when it returns."""
        if self.program == "rclone":
            remote = f"bench:{self.folder.name}"
            modes = ["--vfs-cache-mode", "writes", "--cache-dir", str(self.cache), "--log-file", f"{self.folder}/log"]
            command = [binary("rclone"), "mount", remote, str(self.path), "--daemon", *modes]
            run(command, env={**os.environ, **self.servers.rclone_settings()})
        else:
            log = ["-d", "--log", f"{self.folder}/log"]  # early: JuiceFS cuts off what a process list shows of it
            run([binary(self.program), "mount", *log, *self._options(), self._url(), str(self.path)])

    def unmount(self) -> None:
        """Gone when it returns, its processes too; what is staged has been uploaded."""
        self.drain()
        self._peak = self.peak_mib()
        wait(lambda: subprocess.run(["umount", str(self.path)], check=False, capture_output=True).returncode == 0)
        wait(lambda: not self.processes())

    def forget(self) -> None:
        """Mounted anew with empty caches; of objects in a directory the kernel's pages go too."""
        self.unmount()
        shutil.rmtree(self.cache, ignore_errors=True)
        if self.place.storage == "file":
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        self.mount()

    def drain(self) -> None:
        """Wait until nothing is staged."""
        if self.program == "rclone":
            wait(lambda: all(_uploaded(path.read_bytes()) for path in self._files("vfsMeta")), DRAIN_S)
        elif self.place.writeback:
            wait(lambda: not self._files("*/rawstaging"), DRAIN_S)

    def _files(self, folder: str) -> list[Path]:
        """In this folder of the cache; it changes meanwhile."""
        return [path for path in self.cache.glob(f"{folder}/**/*") if path.is_file()]

    def _bucket(self) -> list[str]:
        if self.place.storage == "s3":
            return self.servers.format_flags(self.folder.name)
        return ["--bucket", f"{self.folder}/objects"]

    def _url(self) -> str:
        if self.place.meta == "tikv":
            return self.servers.tikv_url(self.folder.name)
        return f"sqlite3://{self.folder}/meta.db"

    def _options(self) -> list[str]:
        options = ["--no-usage-report"] if self.program == "juicefs" else []
        if self.program == "juicefs" or self.place.storage == "s3" or self.place.writeback:
            options += ["--cache-dir", str(self.cache)]  # jfs has none by default where objects are local files
        return options + (["--writeback"] if self.place.writeback else [])

    def processes(self) -> list[int]:
        """Every process that serves the mount point."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    words = Path("/proc", entry, "cmdline").read_bytes()
                except OSError:  # it has just ended
                    continue
                if b" mount " in words.replace(b"\0", b" ") and os.fsencode(f"{self.folder}/") in words:
                    found.append(int(entry))
        return found

    def cpu_seconds(self) -> float:
        total = 0
        for pid in self.processes():
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    @contextmanager
    def costing(self, name: str, units: float = 1.0) -> Iterator[None]:
        """Note the CPU seconds that the block takes, those of uploads in the background too, for each of its units."""
        before = self.cpu_seconds()
        yield
        self.drain()
        self.costs[name] = (self.cpu_seconds() - before) / units

    def forget_peak(self) -> None:
        self._peak = 0.0
        for pid in self.processes():
            Path("/proc", str(pid), "clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """The most memory that the processes held at once since `forget_peak`, MiB; of all mounts since then."""
        total = 0
        for pid in self.processes():
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1])
        return max(self._peak, total / 1024)


@contextmanager
def mounted(program: str, folder: Path, place: Place, servers: Servers) -> Iterator[Mounted]:
    """A fresh volume with default options, mounted until the end of the block; nothing stays of it."""
    mount = Mounted(program, folder, place, servers)
    mount.format()
    mount.mount()
    try:
        yield mount
    finally:
        time.sleep(0.5)
        mount.unmount()
        shutil.rmtree(folder)


def _uploaded(record: bytes) -> bool:
    """Whether rclone's record of a cached file says that its object is stored; it is marked dirty only after the close."""
    words = record.replace(b" ", b"")
    return b'"Dirty":false' in words and b'"Fingerprint":""' not in words


def binary(program: str) -> str:
    return str(Path(sys.executable).with_name(program))


def run(words: Sequence[str], **more: object) -> str:
    """Run a command that must succeed; what it prints."""
    # a daemon of rclone's keeps its output open, so it goes to a file and not to a pipe
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, **more)  # type: ignore[call-overload]
        output.seek(0)
        printed = output.read()
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{printed}")
    return printed


def wait(done: Callable[[], bool], seconds: float = MOUNT_S) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"a mount did not come to an end within {seconds} s")
        time.sleep(0.05)


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
