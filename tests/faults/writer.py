"""A writer that keeps a log, outside the volume, of what was acknowledged; and the check of what is left of it.

As a program: `python -m tests.faults.writer ROOT LOG [--sync]`: four threads work below ROOT until they are killed or the
file system fails.  With --sync every step is acknowledged by fsync of the file and of its directory, else by close and by
the return of the call.  A log line is written before a step (begin) and after it (done).  Each thread has names of its own,
so that its steps tell exactly what must be there.
"""

import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

THREADS = 4
Step = dict[str, Any]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Disk:
    """Carries steps out on a real directory."""

    def __init__(self, root: Path, *, sync: bool) -> None:
        self.root = root
        self.sync = sync

    def carry_out(self, step: Step) -> None:
        getattr(self, step["op"])(self.root / step["name"], step)

    def _store(self, path: Path, flags: int, position: int, step: Step) -> None:
        descriptor = os.open(path, os.O_WRONLY | flags, 0o644)
        try:
            data = memoryview(content(step["seed"], step["size"]))
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, data[done : done + 300_000], position + done)
            if self.sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _settle(self, *folders: Path) -> None:
        for folder in folders if self.sync else ():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def create(self, path: Path, step: Step) -> None:
        self._store(path, os.O_CREAT | os.O_EXCL, 0, step)
        self._settle(path.parent)

    def append(self, path: Path, step: Step) -> None:
        self._store(path, 0, path.stat().st_size, step)

    def overwrite(self, path: Path, step: Step) -> None:
        self._store(path, 0, step["at"], step)

    def replace(self, path: Path, step: Step) -> None:
        fresh = path.with_name(path.name + ".new")
        self._store(fresh, os.O_CREAT | os.O_TRUNC, 0, step)
        os.replace(fresh, path)
        self._settle(path.parent)

    def truncate(self, path: Path, step: Step) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, step["size"])
            if self.sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path, step: Step) -> None:
        os.unlink(path)
        self._settle(path.parent)

    def mkdir(self, path: Path, step: Step) -> None:
        path.mkdir()
        self._settle(path.parent)


class Expected:
    """What one thread's names hold after its steps."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()

    def apply(self, step: Step) -> None:
        name, op = step["name"], step["op"]
        if op == "mkdir":
            self.folders.add(name)
        elif op == "unlink":
            del self.files[name]
        elif op == "truncate":
            self.files[name] = self.files[name][: step["size"]].ljust(step["size"], b"\0")
        else:
            data = content(step["seed"], step["size"])
            old = self.files.get(name, b"")
            at = {"append": len(old), "overwrite": step.get("at", 0)}.get(op)
            self.files[name] = data if at is None else old[:at].ljust(at, b"\0") + data + old[at + len(data) :]


def next_step(dice: random.Random, who: int, number: int, state: Expected) -> Step:
    """A step that is possible in this state."""
    folder = dice.choice([f"{who}", *sorted(state.folders)])
    step: Step = {"who": who, "number": number, "op": "create", "name": f"{folder}/{number}"}
    if number % 25 == 3:
        return step | {"op": "mkdir", "name": f"{who}/dir-{number}"}
    size = dice.choice((0, 10, 5000, 40_000, 40_000, 300_000, 5_000_000 if number % 10 == 0 else 100_000))
    step |= {"seed": who * 1_000_000 + number, "size": size}
    names = sorted(state.files)
    if not names or dice.random() < 0.4:
        return step
    name = dice.choice(names)
    held = len(state.files[name])
    op = dice.choice(("append", "overwrite", "replace", "truncate", "unlink"))
    if op == "truncate":
        step["size"] = dice.randint(0, held + 50_000)
    if op == "overwrite":
        step["at"] = dice.randint(0, held)
    return step | {"op": op, "name": name}


def work(root: Path, log: Path, who: int, seed: int, *, sync: bool) -> None:
    """One thread's life."""
    dice, state, disk = random.Random(seed * 10 + who), Expected(), Disk(root, sync=sync)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(step: Step, when: str) -> None:
        os.write(output, json.dumps(step | {"when": when, "at_s": time.monotonic()}).encode() + b"\n")

    for number in range(1_000_000):
        step = {"op": "mkdir", "name": f"{who}", "who": who} if number == 0 else next_step(dice, who, number, state)
        note(step, "begin")
        try:
            disk.carry_out(step)
        except OSError as error:
            note(step | {"error": str(error)}, "failed")
            return
        note(step, "done")
        state.apply(step)


def whole_lines(log: Path) -> list[bytes]:
    """A writer may be killed in the middle of its last one."""
    return log.read_bytes().split(b"\n")[:-1]


def read_log(log: Path) -> tuple[dict[int, Expected], dict[int, Step]]:
    """By thread: what its finished steps add up to, and the step that was under way."""
    states = {who: Expected() for who in range(THREADS)}
    under_way: dict[int, Step] = {}
    for line in whole_lines(log):
        step = json.loads(line)
        if step["when"] == "begin":
            under_way[step["who"]] = step
        elif step["when"] == "done":
            states[step["who"]].apply(step)
            del under_way[step["who"]]
    return states, under_way


def losses(root: Path, log: Path) -> list[str]:
    """What the log says was acknowledged and the directory does not have."""
    states, under_way = read_log(log)
    found: list[str] = []
    for who, state in states.items():
        unsure = {under_way[who]["name"]} if who in under_way else set()
        unsure |= {f"{name}.new" for name in unsure}
        found += _losses_of(root, who, state, unsure)
        if who in under_way:
            found += _unsure_losses(root, under_way[who], state)
    return found


def _losses_of(root: Path, who: int, state: Expected, unsure: set[str]) -> list[str]:
    there = (
        {str(path.relative_to(root)) for path in (root / f"{who}").rglob("*")} if (root / f"{who}").exists() else set()
    )
    expected = set(state.files) | state.folders - {f"{who}"}
    found = [f"{name} is missing" for name in sorted(expected - there - unsure)]
    found += [f"{name} should be gone" for name in sorted(there - expected - unsure)]
    for name in sorted(there & set(state.files) - unsure):
        data, wanted = (root / name).read_bytes(), state.files[name]
        if data != wanted:
            first = next((i for i, pair in enumerate(zip(data, wanted, strict=False)) if pair[0] != pair[1]), -1)
            found.append(f"{name} has {len(data)} bytes instead of {len(wanted)}, first difference at {first}")
    return found


def _unsure_losses(root: Path, step: Step, state: Expected) -> list[str]:
    """A step that was under way may have happened or not; a replaced file is the old one or the new one, whole."""
    name, op = step["name"], step["op"]
    if op not in ("replace", "append", "truncate"):
        return []
    if not (root / name).exists():
        return [f"{name} is missing ({op} was under way)"]
    data, old = (root / name).read_bytes(), state.files[name]
    if op == "replace" and data not in (old, content(step["seed"], step["size"])):
        return [f"{name} is neither the old file nor the new one"]
    if op == "append" and data[: len(old)] != old:
        return [f"{name} lost bytes written before the append under way"]
    return []


def acknowledged(log: Path) -> int:
    """How many steps were done."""
    return sum(b'"when": "done"' in line for line in whole_lines(log)) if log.exists() else 0


def failures(log: Path) -> list[Step]:
    """The steps that the file system refused."""
    steps = (json.loads(line) for line in whole_lines(log) if b'"when": "failed"' in line)
    return [step for step in steps if "not connected" not in step["error"]]


def back_at_work(log: Path, since_s: float) -> dict[int, float]:
    """By thread: when it finished its first step after a moment of this machine's monotonic clock, in seconds since then."""
    found: dict[int, float] = {}
    for line in whole_lines(log):
        step = json.loads(line)
        if step["when"] == "done" and step["at_s"] >= since_s:
            found.setdefault(step["who"], step["at_s"] - since_s)
    return found


def main() -> None:
    root, log, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    sync = "--sync" in sys.argv
    threads = [
        threading.Thread(target=work, args=(root, log, who, seed), kwargs={"sync": sync}) for who in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
