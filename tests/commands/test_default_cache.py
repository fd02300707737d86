"""Blocks staged in the cache folder that a mount has by default, and who finds them there."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.test_store import drop_caches
from tests.faults.test_writeback import STAYS
from tests.mounts import JFS, ON_ANY_DISK, PEER, Client, Volume, format_volume

DEFAULT = Path("/var/jfsCache")
DATA = os.urandom(100_000)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    volume = format_volume(JFS, tmp_path)
    yield volume
    shutil.rmtree(cache_of(volume), ignore_errors=True)


def cache_of(volume: Volume) -> Path:
    return DEFAULT / (volume.store / volume.name / "juicefs_uuid").read_text()


def staged(volume: Volume) -> list[Path]:
    return [path for path in (cache_of(volume) / "rawstaging").rglob("*") if path.is_file()]


def stage(volume: Volume, client: Client = JFS) -> None:
    """A file `f` of one block, which waits in the default folder."""
    flags = ON_ANY_DISK if client is JFS else ("--cache-dir", str(DEFAULT))
    with volume.mounted(client, "--writeback", "--upload-delay", "1h", *flags, expect_log=[STAYS]) as mount:
        with (mount.path / "f").open("wb") as file:
            file.write(DATA)
            file.flush()
            os.fsync(file.fileno())
    assert (len(staged(volume)), volume.objects) == (1, [])
    drop_caches()


@pytest.mark.parametrize("client", [JFS, PEER], ids=["jfs", "juicefs"])
def test_the_next_mount_reads_and_uploads_it_without_writeback(volume: Volume, client: Client) -> None:
    stage(volume, client)
    with volume.mounted(JFS, *ON_ANY_DISK) as mount:
        assert (mount.path / "f").read_bytes() == DATA
        eventually(lambda: not staged(volume), 30, "the upload")
        assert f"staged in {cache_of(volume)}/rawstaging/: this mount caches there" in mount.log.read_text()
    assert len(volume.objects) == 1
    with volume.mounted(JFS) as mount:
        assert "Disk cache (none)" in mount.log.read_text()
        assert (mount.path / "f").read_bytes() == DATA
    JFS.run("fsck", volume.url)


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("--cache-size 0", "mount with --cache-dir /var/jfsCache and without --cache-size 0"),
        ("--cache-dir memory", "mount with --cache-dir /var/jfsCache "),
        ("--cache-dir {tmp}/other", "mount with --cache-dir /var/jfsCache "),
    ],
)
def test_a_mount_that_looks_elsewhere_says_so(volume: Volume, tmp_path: Path, flags: str, advice: str) -> None:
    stage(volume)
    told = f"staged in {cache_of(volume)}/rawstaging/ and not uploaded yet"
    with volume.mounted(JFS, *flags.format(tmp=tmp_path).split(), expect_log=[told]) as mount:
        log = mount.log.read_text()
        assert log.count(told) == 1
        assert advice in log
    assert len(staged(volume)) == 1


def test_fsck_tells_what_is_staged_from_what_is_lost(volume: Volume, tmp_path: Path) -> None:
    stage(volume)
    told = (
        f"<WARNING>: 1 of the blocks that the store lacks are staged in {cache_of(volume)}/rawstaging/ and not uploaded yet: "
        "have a mount with --cache-dir /var/jfsCache upload them first"
    )
    done = JFS.run("fsck", volume.url, ok=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "1 objects are lost (100000 bytes), 1 broken files" in done.stderr
    shutil.move(cache_of(volume), tmp_path / "cache" / cache_of(volume).name)
    done = JFS.run("fsck", volume.url, ok=False)
    assert "rawstaging" not in done.stderr
    done = JFS.run("fsck", volume.url, "--path", "/f", "--cache-dir", tmp_path / "cache", ok=False)
    assert done.returncode == 1
    assert told.replace(str(DEFAULT), f"{tmp_path}/cache") in done.stderr


def test_gc_says_what_it_cannot_compact(volume: Volume) -> None:
    stage(volume)
    done = JFS.run("gc", volume.url, "--compact")
    assert f"<WARNING>: blocks of this volume are staged in {cache_of(volume)}/rawstaging" in done.stderr
    assert "rawstaging" not in JFS.run("gc", volume.url).stderr
