"""The peer on a volume with fingerprints: it neither sees nor minds them, and what it writes has none."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import assert_clean, both_mounted
from tests.mounts import JFS, PEER, Volume, format_volume

DATA = {name: os.urandom(5 << 20) for name in ("ours", "theirs", "shared")}


@pytest.fixture
def volume(tmp_path: Path, new_address: Callable[[], str]) -> Volume:
    """`ours` written by jfs, `theirs` by the peer."""
    volume = format_volume(JFS, tmp_path, "vol", "--fingerprint", "--trash-days", "0", address=new_address())
    with both_mounted(volume) as (ours, theirs):
        (ours.path / "ours").write_bytes(DATA["ours"])
        (theirs.path / "theirs").write_bytes(DATA["theirs"])
        for mount in (ours, theirs):
            assert (mount.path / "ours").read_bytes() == DATA["ours"]
            assert (mount.path / "theirs").read_bytes() == DATA["theirs"]
    return volume


def compared(volume: Volume) -> str:
    lines = JFS.run("fsck", volume.url, "--verify").stderr.splitlines()
    return next(line for line in lines if "Compared" in line).split(": Compared ")[1].split(" [")[0]


def test_the_peers_checks_and_dumps(volume: Volume, tmp_path: Path) -> None:
    assert_clean(volume)
    assert compared(volume).startswith("2 blocks with their fingerprints, 2 have none; 0 differed")
    for flags in ((), ("--fast",), ("--binary",)):
        dumped = tmp_path / f"dump{''.join(flags)}"
        PEER.run("dump", volume.url, str(dumped), *flags)
        copy = f"sqlite3://{tmp_path}/copy{''.join(flags)}.db"
        PEER.run("load", copy, str(dumped), *flags[:1] if "--binary" in flags else ())
        if "--binary" not in flags:
            tree = json.loads(dumped.read_text())
            assert "ingerprint" not in json.dumps(tree["Setting"])
            assert set(tree["FSTree"]["entries"]) == {"ours", "theirs"}
        assert "<ERROR>" not in PEER.run("fsck", copy).stderr
        assert "Compared" not in JFS.run("fsck", copy, "--verify").stderr  # a copy begins without
    assert compared(volume).startswith("2 blocks with their fingerprints, 2 have none; 0 differed")


def test_the_peer_changes_settings(volume: Volume) -> None:
    PEER.run("config", volume.url, "--capacity", "10", "--yes")
    PEER.run("format", volume.url, volume.name, "--inodes", "100000")
    shown = json.loads(JFS.run("config", volume.url).stdout)
    assert (shown["Capacity"], shown["Inodes"], shown["Fingerprint"]) == (10 << 30, 100000, "xxh3-128")


def test_what_the_peer_removes_leaves_fingerprints_to_gc(volume: Volume) -> None:
    with volume.mounted(PEER) as mount:
        (mount.path / "ours").unlink()
    PEER.run("gc", volume.url, "--delete", JFS_GC_SKIPPEDTIME="0")
    assert not any("5242880" in path.name for path in volume.objects)
    told = "1 fingerprints are of slices that are gone"
    assert told in JFS.run("gc", volume.url).stderr
    assert "Deleted 1 fingerprints of slices that are gone" in JFS.run("gc", volume.url, "--delete").stderr
    assert "fingerprints" not in JFS.run("gc", volume.url).stderr
    assert_clean(volume)


def test_the_peer_compacts_and_appends(volume: Volume) -> None:
    with volume.mounted(JFS) as mount, open(mount.path / "shared", "wb", buffering=0) as file:
        for number in range(8):
            file.write(DATA["shared"][number * 10_000 :][:10_000])
            os.fsync(file.fileno())
    PEER.run("gc", volume.url, "--compact", "--delete", JFS_GC_SKIPPEDTIME="0")
    with volume.mounted(PEER) as mount, open(mount.path / "shared", "ab") as file:
        file.write(b"theirs")
    with volume.mounted(JFS) as mount:
        assert (mount.path / "shared").read_bytes() == DATA["shared"][:80_000] + b"theirs"
    JFS.run("gc", volume.url, "--delete")
    assert compared(volume).startswith("2 blocks with their fingerprints, 4 have none; 0 differed")
    JFS.run("gc", volume.url, "--compact", "--delete")  # what jfs rewrites has one
    assert compared(volume).startswith("3 blocks with their fingerprints, 2 have none; 0 differed")
    assert_clean(volume)


def test_a_volume_of_the_peer_gets_them(tmp_path: Path, new_address: Callable[[], str]) -> None:
    volume = format_volume(PEER, tmp_path, "vol", address=new_address())
    JFS.run("config", volume.url, "--fingerprint")
    with both_mounted(volume) as (ours, theirs):
        (ours.path / "ours").write_bytes(DATA["ours"])
        assert (theirs.path / "ours").read_bytes() == DATA["ours"]
    assert compared(volume).startswith("2 blocks with their fingerprints, 0 have none; 0 differed")
    assert_clean(volume)


def test_destroyed_and_made_again(tmp_path: Path) -> None:
    """The peer's destroy leaves the table, whose rows would then be of other slices."""
    volume = format_volume(JFS, tmp_path, "vol", "--fingerprint")
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_bytes(DATA["ours"])
    uuid = json.loads(JFS.run("config", volume.url).stdout)["UUID"]
    PEER.run("destroy", volume.url, uuid, "--yes", "--force")
    format_volume(JFS, tmp_path, "vol", "--fingerprint")
    with sqlite3.connect(volume.database) as database:
        assert database.execute("SELECT count(*) FROM jfs_fingerprint").fetchall() == [(0,)]
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_bytes(DATA["theirs"])
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == DATA["theirs"]
