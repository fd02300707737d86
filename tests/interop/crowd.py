"""One of many workers on several mounts of one volume: random work, and a memory of what must have come of it.

    python -m tests.interop.crowd JOB.json

Three kinds of work, each step on any of the worker's mounts:
- in a directory of its own the worker knows what each file holds, and looks;
- in directories shared by all it does what collides with others; only that no call fails in a way that makes no sense counts;
- under a lock on the local disk it adds a line to common logs, and one to common counters, of which none may get lost.
At the end it writes down what its own directory must hold and how often it has added.
"""

import errno
import fcntl
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_FILES = 40
"""A worker's own; looking at all of them takes time at the end."""

COMMON = 2
"""Logs and counters shared by all workers."""

COLLISIONS = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ESTALE,
    errno.EINVAL,  # a directory into its own subtree
    errno.EBADF,  # the file was removed elsewhere while it was written
}


@dataclass
class Job:
    """What the test hands to a worker."""

    who: str
    seed: int
    seconds: float
    mounts: list[str]
    """Where it works; which one is drawn for each step."""
    ours: list[str]
    """The mounts of jfs: only it keeps directories from moving into each other, whatever other mounts do.

    And only its rename looks whether the trash has the replaced hard link already: the peer's puts a second one under
    the same name, or fails with EIO where the metadata are in SQL, and one link is counted too many.
    """
    uncached: bool
    """Nothing is kept by the kernels: what one mount does, the others see at once."""
    trash: bool
    """Hard links that were removed still count: they are in the trash."""
    locks: str
    """A folder on the local disk."""
    report: str


class Worker:
    """Its dice, its knowledge."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dice = random.Random(job.seed)
        self.files: dict[str, bytearray] = {}
        """What the own directory holds; hard links share their bytes."""
        self.folders = [f"own-{job.who}", f"own-{job.who}/deep/er"]
        self.added = Counter[str]()
        self.steps = Counter[str]()
        self.names = 0
        self.uncached = job.uncached
        self.mount = Path(job.mounts[0])
        """The one that was drawn last."""

    def root(self) -> Path:
        self.mount = Path(self.dice.choice(self.job.mounts))
        return self.mount

    def replacing_root(self) -> None:
        """Draw a mount whose rename may replace a file."""
        self.mount = Path(self.dice.choice(self.job.ours if self.job.trash else self.job.mounts))

    def run(self) -> None:
        for folder in self.folders:
            (self.root() / folder).mkdir(parents=True)
        work: list[tuple[Callable[[], None], int]] = [
            (self.private, 10),
            (self.collide, 14),
            (self.add_line, 2),
            (self.count, 2),
        ]
        kinds, weights = zip(*work, strict=True)
        end = time.monotonic() + self.job.seconds
        while time.monotonic() < end:
            self.dice.choices(kinds, weights)[0]()
        for name in self.files:
            self.look(name)
        held = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        report = {"files": held, "added": self.added, "steps": self.steps}
        Path(self.job.report).write_text(json.dumps(report))

    # -- the own directory

    def private(self) -> None:
        if len(self.files) < 5:
            self.make()
            return
        actions = [self.make, self.rewrite, self.extend, self.cut, self.move, self.link, self.drop]
        action = self.drop if len(self.files) > MOST_FILES else self.dice.choice(actions)
        self.steps[action.__name__] += 1
        action()
        if self.files and self.dice.random() < 0.5:
            self.look(self.mine())

    def mine(self) -> str:
        return self.dice.choice(list(self.files))

    def fresh(self) -> str:
        self.names += 1
        return f"{self.dice.choice(self.folders)}/{self.names}"

    def some_bytes(self) -> bytes:
        return self.dice.randbytes(self.dice.choice((0, 1, 100, 4096, 30_000, 300_000)))

    def make(self) -> None:
        name, data = self.fresh(), self.some_bytes()
        (self.root() / name).write_bytes(data)
        self.files[name] = bytearray(data)

    def rewrite(self) -> None:
        name, data = self.mine(), self.some_bytes()
        (self.root() / name).write_bytes(data)
        self.files[name][:] = data

    def extend(self) -> None:
        name, data = self.mine(), self.some_bytes()
        with (self.root() / name).open("ab") as file:
            file.write(data)
        self.files[name] += data

    def cut(self) -> None:
        name = self.mine()
        data = self.files[name]
        size = self.dice.randrange(len(data) + 5000)
        os.truncate(self.root() / name, size)
        data[size:] = bytes(max(0, size - len(data)))

    def move(self) -> None:
        name, target = self.mine(), self.dice.choice([self.fresh(), self.mine()])
        self.replacing_root()
        os.rename(self.mount / name, self.mount / target)
        if self.files[name] is not self.files.get(target):
            self.files[target] = self.files.pop(name)

    def link(self) -> None:
        name, target = self.mine(), self.fresh()
        os.link(self.root() / name, self.mount / target)
        self.files[target] = self.files[name]

    def drop(self) -> None:
        name = self.mine()
        os.unlink(self.root() / name)
        del self.files[name]

    def look(self, name: str) -> None:
        path = self.root() / name
        seen = path.read_bytes()
        assert seen == self.files[name], f"{path}: {difference(seen, self.files[name])}"
        links = sum(data is self.files[name] for data in self.files.values())
        if self.uncached and not self.job.trash:
            assert path.stat().st_nlink == links, f"{path}: nlink {path.stat().st_nlink}, but {links} names"

    # -- collisions

    def collide(self) -> None:
        actions: list[Callable[[Path], object]] = [
            self.write_there,
            self.write_there,
            self.append_there,
            lambda path: os.truncate(path, self.dice.randrange(50_000)),
            os.unlink,
            lambda path: os.link(path, self.place()),
            self.move_file,
            lambda path: path.read_bytes(),
            lambda path: [os.lstat(path.parent / name) for name in os.listdir(path.parent)],
            lambda path: os.mkdir(path.parent / self.folder()),
            lambda path: os.rmdir(path.parent / self.folder()),
            self.move_folder,
        ]
        number = self.dice.randrange(len(actions))
        self.root()
        try:
            actions[number](self.place())
            self.steps[f"shared {number}"] += 1
        except OSError as error:
            if error.errno not in COLLISIONS and not self.refused_in_the_trash(error):
                raise
            self.steps[f"shared {number} {errno.errorcode[error.errno]}"] += 1

    def refused_in_the_trash(self, error: OSError) -> bool:
        """Another mount has moved the file to the trash between the look at its name and the open or the truncate.

        A mount of jfs has the kernel look again; the peer's refuses to change what is in the trash.
        """
        return error.errno == errno.EPERM and self.job.trash and str(self.mount) not in self.job.ours

    def folder(self) -> str:
        return f"d{self.dice.randrange(3)}"

    def place(self) -> Path:
        """A path in the shared directories, of a file if there is one, on the mount that was drawn last."""
        folders = [self.folder() for _ in range(self.dice.choice((0, 0, 1, 1, 2)))]
        return self.mount.joinpath("shared", f"{self.dice.randrange(3)}", *folders, f"f{self.dice.randrange(5)}")

    def write_there(self, path: Path) -> None:
        path.write_bytes(self.some_bytes())

    def append_there(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, self.some_bytes())
        finally:
            os.close(descriptor)

    def move_file(self, path: Path) -> None:
        self.replacing_root()
        os.rename(self.place(), self.place())

    def move_folder(self, path: Path) -> None:
        self.mount = Path(self.dice.choice(self.job.ours))
        os.rename(self.place().parent / self.folder(), self.place().parent / self.folder())

    # -- under a lock

    @contextmanager
    def locked(self, name: str) -> Generator[None, None, None]:
        with open(os.path.join(self.job.locks, name), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def add_line(self) -> None:
        name = f"log-{self.dice.randrange(COMMON)}"
        with self.locked(name):
            # The peer appends where its kernel believes the end to be; with caches that may be an old one.
            root = self.root() if self.uncached else Path(self.dice.choice(self.job.ours))
            descriptor = os.open(root / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(descriptor, f"{self.job.who} {self.added[name]}\n".encode())
            os.close(descriptor)
        self.added[name] += 1

    def count(self) -> None:
        """In place, or by renaming a new file over the old one where no cache may still know the old."""
        name = f"count-{self.dice.randrange(COMMON)}"
        with self.locked(name):
            path = self.root() / name
            if self.uncached and self.dice.random() < 0.5:
                number = int(path.read_text())
                path.with_suffix(".new").write_text(f"{number + 1:020}")
                os.rename(path.with_suffix(".new"), path)
            else:
                with path.open("r+") as file:
                    number = int(file.read())
                    file.seek(0)
                    file.write(f"{number + 1:020}")
        self.added[name] += 1


def difference(seen: bytes, expected: bytes | bytearray) -> str:
    """Where two contents part."""
    at = next(
        (i for i, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b), min(len(seen), len(expected))
    )
    return f"{len(seen)} bytes, expected {len(expected)}; they differ at {at}: {seen[at : at + 20]!r}"


def main() -> None:
    described: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    Worker(Job(**described)).run()


if __name__ == "__main__":
    main()
