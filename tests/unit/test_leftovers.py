"""What a failed test leaves open is no other test's failure; what a test leaves that passed is."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TESTS = """
import gc


def test_leaves_a_file() -> None:
    held = [open(__file__)]
    held.append(held)
    assert {passes}


def test_is_innocent() -> None:
    gc.collect()
"""


@pytest.mark.parametrize(("passes", "blamed"), [(False, "test_leaves_a_file"), (True, "test_is_innocent")])
def test_one_fails(tmp_path: Path, *, passes: bool, blamed: str) -> None:
    (tmp_path / "test_two.py").write_text(TESTS.format(passes=passes))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-W", "error", "-p", "tests.leftovers", "-p", "no:cacheprovider", "-rf"]
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    failed = [line.split()[1].rpartition(":")[2] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed == [blamed], done.stdout
