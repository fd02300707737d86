"""Changes of settings that hurt are asked about; what changes nothing is told."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.commands.test_refusals import refused
from tests.mounts import JFS, Volume, format_volume

WARNING = re.compile(r"<WARNING>: (.*) \[\w+@\w+\.py:\d+\]$", re.MULTILINE)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return format_volume(JFS, tmp_path, "vol", "--fingerprint")


def answered(volume: Volume, answer: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [JFS.binary, "config", volume.url, *flags]
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=60)


def test_dropping_all_fingerprints_is_asked_about(volume: Volume) -> None:
    assert "Aborted" in refused("config", volume.url, "--fingerprint=false")
    assert answered(volume, "n\n", "--fingerprint=false").returncode == 1
    assert '"Fingerprint"' in JFS.run("config", volume.url).stdout
    done = answered(volume, "y\n", "--fingerprint=false")
    assert done.returncode == 0
    assert "All fingerprints will be dropped" in done.stdout
    assert done.stdout.endswith("fingerprint: true -> false\n")
    JFS.run("config", volume.url, "--fingerprint")
    assert "fingerprint: true -> false" in JFS.run("config", volume.url, "--fingerprint=false", "--yes").stdout
    assert '"Fingerprint"' not in JFS.run("config", volume.url).stdout


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ("--encrypt-secret=false", "option --encrypt-secret=false has no effect: secrets that are encrypted stay so"),
        ("--storage-class COLD", "option --storage-class has no effect on file storage"),
    ],
)
def test_what_does_nothing_is_told(volume: Volume, flags: str, warning: str) -> None:
    assert WARNING.findall(JFS.run("config", volume.url, *flags.split()).stderr) == [warning]


def test_a_storage_class_of_a_folder_is_told(tmp_path: Path) -> None:
    flags = ("--bucket", tmp_path / "store", "--storage-class", "COLD")
    for _ in range(2):  # made, and updated
        done = JFS.run("format", f"sqlite3://{tmp_path}/meta.db", "vol", *flags)
        assert WARNING.findall(done.stderr) == ["option --storage-class has no effect on file storage"]
