"""Volumes and mounts for tests: format, mount in the foreground, watch the log, and never leave a mount behind."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.deadline import eventually
from tests.tikv.fixtures import LATE

# A hung file system would hang the test beyond the reach of a signal: its mount is killed after so long.
MOUNT_LIFE = 170.0

# The rule of a tenth is for operators' disks: tests cache on whatever is left of a machine's.
ON_ANY_DISK = ("--free-space-ratio", "0.001")

ALARMING = re.compile(r"Traceback \(most recent call last\)|<(?:WARNING|ERROR|FATAL)>")
PEER_ALARMING = re.compile(r"^panic:|<(?:ERROR|FATAL)>")  # its warnings on such a machine are many and mean nothing


@dataclass(frozen=True)
class Client:
    """A program that formats and mounts volumes: jfs, or the JuiceFS that it must agree with."""

    name: str

    @property
    def binary(self) -> str:
        path = Path(sys.executable).parent / self.name
        assert path.exists(), f"{path} is missing: run `make setup`"
        return str(path)

    def run(self, *args: str | Path, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; with `ok` it must exit with 0."""
        done = subprocess.run(
            [self.binary, *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **env},
        )
        assert not ok or done.returncode == 0, f"{self.name} {' '.join(map(str, args))}: {done}"
        assert self is PEER or "Traceback" not in done.stderr, done.stderr
        return done


JFS = Client("jfs")
PEER = Client("juicefs")


@dataclass
class Mount:
    """A volume mounted at `path` by a process in the foreground."""

    path: Path
    client: Client
    process: subprocess.Popen[bytes]
    log: Path
    expected: list[str] = field(default_factory=list)

    def pids(self) -> list[int]:
        """The processes of the mount: the peer has a supervisor and a worker."""
        found = subprocess.run(["pgrep", "-g", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def figure(self, name: str) -> float:
        """One of the figures in its `.stats`."""
        for line in (self.path / ".stats").read_text().splitlines():
            found, value = line.split()
            if found == f"juicefs_{name}":
                return float(value)
        raise AssertionError(f"no {name} in .stats")

    def expect_log(self, *patterns: str) -> None:
        """Lines at WARNING or above that match one of these are part of the test."""
        self.expected += patterns

    def kill(self) -> None:
        """kill -9 of the whole mount; the dead mount point stays."""
        kill_group(self.process)

    def surprises(self, since: int = 0) -> list[str]:
        """Tracebacks, and unexpected lines at WARNING and above, after the first `since` bytes of the log."""
        lines = self.log.read_bytes()[since:].decode(errors="replace").splitlines()
        alarming = PEER_ALARMING if self.client is PEER else ALARMING
        return [line for line in lines if alarming.search(line) and not any(re.search(e, line) for e in self.expected)]

    def check_log(self, since: int = 0) -> int:
        """Fail on surprises; where the log ends now."""
        surprises = self.surprises(since)
        if surprises:
            end = self.log.read_text(errors="replace")[-6000:]
            raise AssertionError("in the mount's log:\n" + "\n".join(surprises) + "\n\nthe log ends:\n" + end)
        return self.log.stat().st_size


@dataclass(frozen=True)
class Volume:
    """A formatted volume: SQLite and a directory of objects, side by side in `folder`; or metadata at another `address`."""

    folder: Path
    name: str
    address: str = ""

    @property
    def database(self) -> Path:
        return self.folder / "meta.db"

    @property
    def url(self) -> str:
        return self.address or f"sqlite3://{self.database}"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def objects(self) -> list[Path]:
        """The files of the data blocks."""
        return sorted(path for path in (self.store / self.name / "chunks").rglob("*") if path.is_file())

    @contextmanager
    def mounted(
        self,
        client: Client,
        *flags: str,
        at: Path | None = None,
        expect_log: Sequence[str] = (),
        life: float = MOUNT_LIFE,
    ) -> Generator[Mount, None, None]:
        """Mount the volume for a while; a clean unmount and a clean log are part of it."""
        path = at or self.folder / f"mp-{client.name}"
        with suppress(FileExistsError):  # a dead mount point may be in its place
            path.mkdir()
        late = [LATE] if self.address.startswith("tikv") else []
        with _mounted(self, client, path, flags, [*expect_log, *late], life) as mount:
            yield mount


def format_volume(client: Client, folder: Path, name: str = "vol", *flags: str, address: str = "") -> Volume:
    """A fresh volume in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = Volume(folder, name, address)
    client.run("format", volume.url, name, "--storage", "file", "--bucket", volume.store, *flags)
    return volume


def require_fuse() -> None:
    """These tests fail where there is no FUSE; they are never skipped."""
    assert os.path.exists("/dev/fuse"), "/dev/fuse is missing: run `make setup` (it loads the module)"
    assert os.geteuid() == 0, "tests with mounts run as root: `make test` uses sudo"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process started in a session of its own, with its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(10)


def mount_command(volume: Volume, client: Client, path: Path, flags: Sequence[str]) -> list[str]:
    """The mount in the foreground, ended by the kernel if the test's process dies."""
    cache = ["--cache-dir", str(volume.folder / "cache")]
    own = ["--no-usage-report", "--no-syslog", "--metrics", "127.0.0.1:0", *cache]
    if client is JFS:
        own = [] if volume.store.exists() else cache  # jfs caches no objects of this machine's
    without = {("--cache-dir", "memory"), ("--cache-size", "0")}
    if "--cache-dir" in (*own, *flags) and without.isdisjoint(itertools.pairwise(flags)):
        own = [*ON_ANY_DISK, *own]
    command = [client.binary, "mount", volume.url, str(path), *own, *flags]
    return ["setpriv", "--pdeathsig", "TERM", *command]


def is_mounted(path: Path) -> bool:
    """Whether the kernel has something mounted at `path`, dead or alive."""
    return f" {path} " in Path("/proc/self/mounts").read_text()


def is_ready(path: Path) -> bool:
    """Whether a volume's root answers at `path`."""
    try:
        os.statvfs(path)  # stat alone may be answered from the kernel's cache, for a mount that died
        return os.stat(path).st_ino == 1
    except OSError:
        return False


@contextmanager
def _mounted(
    volume: Volume, client: Client, path: Path, flags: Sequence[str], expect_log: list[str], life_s: float
) -> Generator[Mount, None, None]:
    require_fuse()
    log = path.parent / f"{path.name}.{len(list(path.parent.glob('*.log')))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            mount_command(volume, client, path, flags),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    mount = Mount(path, client, process, log, expect_log)
    life = threading.Timer(life_s, kill_group, [process])
    life.daemon = True
    life.start()
    try:
        eventually(lambda: is_ready(path) or process.poll() is not None, 60, f"{path} mounted")
        assert process.poll() is None, f"mount ended with {process.returncode}"
        yield mount
        if process.poll() is None:
            _unmount(mount)
        mount.check_log()
    except BaseException as error:
        error.add_note(f"log of {client.name} at {path}:\n{log.read_text(errors='replace')[-1500:]}")
        raise
    finally:
        life.cancel()
        kill_group(process)
        while is_mounted(path):
            subprocess.run(["umount", "-l", path], check=True)


def _unmount(mount: Mount) -> None:
    """As an administrator does it; the process must end by itself, and well."""
    attempts: list[str] = []

    def gone() -> bool:
        done = subprocess.run(["umount", mount.path], capture_output=True, text=True)
        attempts.append(done.stderr)
        return done.returncode == 0

    eventually(gone, 30, f"umount {mount.path}", pause=0.1)
    assert mount.process.wait(60) == 0, f"{mount.client.name} mount ended with {mount.process.returncode}"
