"""A bit of an object flips: on a volume with fingerprints nobody reads it, and copies mend it."""

import errno
import os
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.mounts import JFS, Volume, format_volume

SIZE = 9 << 20
WRONG = "not those that were written"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def written(volume: Volume, *flags: str) -> bytes:
    """What file `f` holds; the second of its three objects is bad then."""
    data = os.urandom(SIZE)
    with volume.mounted(JFS, *flags) as mount:
        (mount.path / "f").write_bytes(data)
        (mount.path / "small").write_bytes(b"small")
        if "--writeback" in flags:
            eventually(lambda: mount.figure("staging_blocks") == 0, 20, "the uploads")
    flip(next(path for path in volume.objects if "_1_" in path.name))
    return data


def read_error(path: Path, offset: int, size: int) -> int:
    with open(path, "rb", buffering=0) as file:
        try:
            os.pread(file.fileno(), size, offset)
        except OSError as error:
            return error.errno or 0
    return 0


@pytest.mark.parametrize("layout", [(), ("--compress", "lz4"), ("--block-size", "4M", "--hash-prefix")])
def test_a_flipped_bit_is_an_error(tmp_path: Path, layout: tuple[str, ...]) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--fingerprint", *layout)
    data = written(volume)
    with volume.mounted(JFS, expect_log=["is bad: ", "read inode "]) as mount:
        block = 4 << 20
        with open(mount.path / "f", "rb", buffering=0) as file:
            assert os.pread(file.fileno(), block, 0) == data[:block]
        assert read_error(mount.path / "f", block, 4096) == errno.EIO
        assert read_error(mount.path / "f", block + 100, 10) == errno.EIO  # far from the flipped bit
        with open(mount.path / "f", "rb", buffering=0) as file:
            assert os.pread(file.fileno(), SIZE, 2 * block) == data[2 * block :]
        assert (mount.path / "small").read_bytes() == b"small"
        assert "is bad: " in mount.log.read_text()
        if "lz4" not in layout:  # a flipped bit of a compressed block is found by its decoder, or by the fingerprint
            assert WRONG in mount.log.read_text()
            assert mount.figure("fingerprint_mismatches") >= 2
        assert mount.figure("fingerprint_checks") >= 3
    checked = JFS.run("fsck", volume.url, "--verify", ok=False)
    assert checked.returncode == 1
    assert "of file /f cannot be read: " in checked.stderr
    assert "1 objects are bad" in checked.stderr


def test_fsck_mends_from_the_cache(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--fingerprint")
    cache = str(tmp_path / "cache")
    data = written(volume, "--cache-dir", cache, "--cache-large-write")
    fsck = ("fsck", volume.url, "--verify")
    assert JFS.run(*fsck, ok=False).returncode == 1
    told = JFS.run(*fsck, "--cache-dir", cache, ok=False)  # says so, and changes nothing
    assert told.returncode == 1
    assert "stays bad: nothing may be changed; " in told.stderr
    assert "has the right bytes: fsck --verify --repair, or a mount that may write, puts them back" in told.stderr
    mended = JFS.run(*fsck, "--cache-dir", cache, "--repair")
    assert "is mended: " in mended.stderr
    assert "Compared 4 blocks with their fingerprints, 0 have none; 1 differed, 1 were mended" in mended.stderr
    assert "4 blocks with their fingerprints, 0 have none; 0 differed, 0 were" in JFS.run(*fsck).stderr
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == data


def test_a_mount_mends_what_it_reads(tmp_path: Path) -> None:
    """The second mount keeps no cache, and knows the folder."""
    volume = format_volume(JFS, tmp_path, "vol", "--fingerprint")
    cache = ("--cache-dir", str(tmp_path / "cache"))
    data = written(volume, *cache, "--cache-large-write")
    with volume.mounted(JFS, *cache, "--cache-size", "0", expect_log=[WRONG, "is mended: "]) as mount:
        assert (mount.path / "f").read_bytes() == data
        assert mount.figure("fingerprint_mended") == 1
    assert "0 differed" in JFS.run("fsck", volume.url, "--verify").stderr


def test_writeback_stages_with_fingerprints(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "vol", "--fingerprint")
    data = written(volume, "--writeback", "--cache-dir", str(tmp_path / "cache"))
    mended = JFS.run("fsck", volume.url, "--verify", "--cache-dir", str(tmp_path / "cache"), "--repair")
    assert "is mended: " in mended.stderr
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == data


def test_turned_on_later_and_off_again(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path)
    with volume.mounted(JFS) as mount:
        (mount.path / "before").write_bytes(b"before")
    assert "fingerprint: false -> true" in JFS.run("config", volume.url, "--fingerprint").stdout
    assert '"Fingerprint": "xxh3-128"' in JFS.run("config", volume.url).stdout
    with volume.mounted(JFS) as mount:
        (mount.path / "after").write_bytes(b"after")
    verified = JFS.run("fsck", volume.url, "--verify").stderr
    assert "Compared 1 blocks with their fingerprints, 1 have none; 0 differed, 0 were mended" in verified
    JFS.run("format", volume.url, volume.name)  # says nothing of them
    assert '"Fingerprint": "xxh3-128"' in JFS.run("config", volume.url).stdout
    JFS.run("format", volume.url, volume.name, "--fingerprint=false")
    assert "Fingerprint" not in JFS.run("config", volume.url).stdout
    assert "Compared" not in JFS.run("fsck", volume.url, "--verify").stderr
