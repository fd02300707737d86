"""--open-cache: what another mount has made of a file is seen for good, once it is seen."""

import time
from functools import partial
from pathlib import Path

from tests.deadline import eventually
from tests.fs.conftest import CLIENT
from tests.mounts import JFS, format_volume


def is_as_long(file: Path, data: bytes) -> bool:
    return file.stat().st_size == len(data)


def test_a_stat_does_not_go_back_and_reads_belong_to_it(tmp_path: Path) -> None:
    """Whether the kernel asks by name or by inode varies: it keeps names for longer than attributes."""
    volume = format_volume(JFS, tmp_path, "vol", "--trash-days", "0")
    with (
        volume.mounted(CLIENT, "--open-cache", "300", "--attr-cache", "0.1", "--entry-cache", "0.15") as mount,
        volume.mounted(JFS, at=tmp_path / "other") as other,
    ):
        here, there = mount.path / "f", other.path / "f"
        for data in (b"old", b"newer data", b"short"):
            there.write_bytes(data)
            eventually(partial(is_as_long, here, data), 30, "the new length to be seen")
            for _ in range(20):
                assert (here.stat().st_size, here.read_bytes()) == (len(data), data)
                time.sleep(0.03)
