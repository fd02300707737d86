"""The checker sees what it has to see: faults are planted in what a writer left on the local disk."""

import os
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.conftest import writing
from tests.faults.writer import acknowledged, losses, read_log


@pytest.fixture
def left(tmp_path: Path) -> tuple[Path, Path]:
    """A directory and the log of the writer that was killed in it."""
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    with writing(root, log, 1):
        eventually(lambda: acknowledged(log) > 150, 30, "150 steps")
    assert losses(root, log) == []
    return root, log


def some_file(left: tuple[Path, Path]) -> Path:
    """A file with bytes in it that no step was changing."""
    states, under_way = read_log(left[1])
    unsure = {step["name"] for step in under_way.values()}
    sizes = {name: len(data) for state in states.values() for name, data in state.files.items() if name not in unsure}
    return left[0] / max(sizes, key=lambda name: sizes[name])


def test_a_missing_file_is_seen(left: tuple[Path, Path]) -> None:
    victim = some_file(left)
    victim.unlink()
    assert losses(*left) == [f"{victim.relative_to(left[0])} is missing"]


def test_a_changed_byte_is_seen(left: tuple[Path, Path]) -> None:
    victim = some_file(left)
    with victim.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    size = victim.stat().st_size
    assert losses(*left) == [f"{victim.relative_to(left[0])} has {size} bytes instead of {size}, first difference at 0"]


def test_a_lost_tail_is_seen(left: tuple[Path, Path]) -> None:
    victim = some_file(left)
    size = victim.stat().st_size
    os.truncate(victim, size - 1)
    assert losses(*left) == [
        f"{victim.relative_to(left[0])} has {size - 1} bytes instead of {size}, first difference at -1"
    ]


def test_a_line_that_was_cut_off_is_none(left: tuple[Path, Path]) -> None:
    """The kernel may end a write(2) of a process that is being killed between two pages."""
    with left[1].open("ab") as log:
        log.write(b'{"who": 0, "number": 10000, "op": "unlink", "na')
    assert losses(*left) == []


def test_a_file_come_back_is_seen(left: tuple[Path, Path]) -> None:
    (left[0] / "0/ghost").touch()
    assert losses(*left) == ["0/ghost should be gone"]
