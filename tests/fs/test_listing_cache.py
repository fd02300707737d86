"""--readdir-cache: the kernel keeps a listing until the directory changes, here or elsewhere."""

import os
from pathlib import Path

from tests.deadline import eventually
from tests.mounts import JFS, format_volume

ASKED = "fuse_ops_total_readdir"
QUICK = ("--attr-cache", "0.1", "--entry-cache", "0.1", "--dir-entry-cache", "0.1")


def test_a_listing_is_kept_until_the_directory_changes(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "listings")
    with (
        volume.mounted(JFS, "--readdir-cache", *QUICK, at=tmp_path / "keeps") as mount,
        volume.mounted(JFS, *QUICK, at=tmp_path / "other") as other,
    ):
        folder = mount.path / "d"
        folder.mkdir()
        for number in range(100):
            (folder / f"f{number}").touch()

        def kept() -> bool:
            """Whether a second listing asks for no rows."""
            names = os.listdir(folder)
            before = mount.figure(ASKED)
            assert os.listdir(folder) == names
            return mount.figure(ASKED) == before

        def kept_while_it_changes() -> bool:
            """Each time: a slow moment may lie between a change and the look."""
            return all([(folder / f"more{number}").touch(), kept()][1] for number in range(10))

        assert not kept_while_it_changes(), "a directory that changed this very second"
        os.utime(folder, (1, 1))
        eventually(kept, 30, "the listing to be kept")
        assert {f"f{number}" for number in range(100)} <= set(os.listdir(folder))

        (folder / "mine").touch()
        assert "mine" in os.listdir(folder)
        os.utime(folder, (1, 1))
        eventually(kept, 30, "the listing to be kept again")
        (other.path / "d" / "theirs").touch()
        eventually(lambda: "theirs" in os.listdir(folder), 30, "the other mount's file to be listed")


def test_without_it_rows_are_asked_for_each_time(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "listings")
    with volume.mounted(JFS, *QUICK) as mount:
        (mount.path / "d").mkdir()
        os.utime(mount.path / "d", (1, 1))
        os.listdir(mount.path / "d")
        before = mount.figure(ASKED)
        os.listdir(mount.path / "d")
        assert mount.figure(ASKED) > before
