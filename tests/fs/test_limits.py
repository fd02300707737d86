"""Limits on bandwidth, on real mounts: from options, from the settings, and changed under a mount."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.mounts import JFS, Mount, format_volume
from tests.s3server import S3Server

MEGABYTE = 1_000_000
LIMIT_MBPS = 32
# At four megabytes a second each way this takes some seconds.
SIZE = 20 * MEGABYTE


def write_rate(mount: Mount, name: str, data: bytes) -> float:
    """Bytes a second of a write with fsync."""
    start = time.monotonic()
    with (mount.path / name).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data) / (time.monotonic() - start)


def read_rate(mount: Mount, name: str, data: bytes) -> float:
    """Bytes a second of a read, uncached by the kernel."""
    start = time.monotonic()
    with (mount.path / name).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(len(data)) == data
    return len(data) / (time.monotonic() - start)


def exceeds(least: float, rate: Callable[[Mount, str, bytes], float], mount: Mount, name: str, data: bytes) -> bool:
    """A limit holds each time; what is not limited may be slow once in a while, on a machine with other work."""
    return any(rate(mount, name, data) > least for _ in range(10))


@pytest.mark.parametrize("storage", ["file", "s3"])
def test_the_options_of_a_mount(request: pytest.FixtureRequest, tmp_path: Path, storage: str) -> None:
    place: tuple[str, ...] = ()
    if storage == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        place = (*server.format_flags, "--bucket", server.bucket_url("limited"))
    volume = format_volume(JFS, tmp_path, "limited", *place)
    data = os.urandom(SIZE)
    most = 1.3 * LIMIT_MBPS / 8 * MEGABYTE
    cache = ("--cache-dir", "memory") if storage == "s3" else ()
    with volume.mounted(JFS, *cache, "--upload-limit", str(LIMIT_MBPS)) as mount:
        assert write_rate(mount, "f", data) <= most
        assert exceeds(2 * most, read_rate, mount, "f", data)
    with volume.mounted(JFS, *cache, "--download-limit", str(LIMIT_MBPS)) as mount:
        assert read_rate(mount, "f", data) <= most
        assert exceeds(2 * most, write_rate, mount, "g", data)


def test_the_settings_change_under_a_mount(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "live")
    data = os.urandom(SIZE)
    most = 1.3 * LIMIT_MBPS / 8 * MEGABYTE
    with (
        volume.mounted(JFS, "--heartbeat", "1") as mount,
        volume.mounted(JFS, "--heartbeat", "1", "--upload-limit", "0", at=tmp_path / "free") as free,
    ):
        for each in (mount, free):
            each.expect_log("had been ended as stale")  # by the other, while it stood still
        assert exceeds(2 * most, write_rate, mount, "f", data)
        changed = JFS.run("config", volume.url, "--upload-limit", str(LIMIT_MBPS), "--download-limit", "1G")
        assert changed.stdout == "upload-limit: 0.0 Mbps -> 32.0 Mbps\ndownload-limit: 0.0 Mbps -> 1.0 Gbps\n"
        for each in (mount, free):
            eventually(lambda each=each: "found new configuration" in each.log.read_text())  # type: ignore[misc]
        assert write_rate(mount, "g", data) <= most
        assert exceeds(2 * most, write_rate, free, "h", data), "the mount's own option wins"
        JFS.run("config", volume.url, "--upload-limit", "0")
        eventually(lambda: mount.log.read_text().count("found new configuration") == 2)
        assert exceeds(2 * most, write_rate, mount, "i", data)


def test_an_unmount_does_not_wait_for_read_ahead(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "ahead")
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_bytes(os.urandom(40 * MEGABYTE))
    cache = ("--cache-dir", str(tmp_path / "cache"), "--prefetch", "3")
    with volume.mounted(JFS, *cache, "--download-limit", "1") as mount:
        with (mount.path / "f").open("rb", buffering=0) as file:
            assert len(os.pread(file.fileno(), 4096, MEGABYTE)) == 4096
        # The process must end soon; at 1 Mbps the blocks that are being fetched ahead take some minutes.
