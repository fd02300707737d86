"""Either program picks up what the other staged, in the same cache folders."""

from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.test_store import drop_caches, noise, write_and_sync
from tests.faults.test_writeback import STAYS, flush, staged
from tests.interop.conftest import assert_clean
from tests.keys import key_file, rsa_key
from tests.mounts import JFS, PEER, Client, Mount, Volume, format_volume

MIB = 1 << 20
SIZES = {"large": 9 * MIB + 77, "page": 4096, "odd": 32 * 1024 * 3 + 1, "tiny": 5}


def options(volume: Volume, folders: int) -> tuple[str, ...]:
    names = ":".join(str(volume.folder / f"cache-{number}") for number in range(folders))
    return ("--writeback", "--cache-dir", names)


def all_staged(volume: Volume) -> list[Path]:
    return [path for folder in volume.folder.glob("cache-*") for path in staged(folder)]


def format_flags(layout: str, folder: Path, environment: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What the objects are like; staged files are plain in each case."""
    if layout != "encrypted":
        return ("--compress", layout.replace("plain", "none"))
    environment.setenv("JFS_RSA_PASSPHRASE", "open sesame")
    key = key_file(folder, rsa_key(), passphrase="open sesame")
    return ("--encrypt-rsa-key", str(key), "--compress", "lz4", "--hash-prefix")


def write_all(mount: Mount) -> None:
    for number, (name, size) in enumerate(SIZES.items()):
        write_and_sync(mount.path / name, noise(number, size))


def check_all(mount: Mount) -> None:
    for number, (name, size) in enumerate(SIZES.items()):
        assert (mount.path / name).read_bytes() == noise(number, size), name


@pytest.mark.parametrize(("folders", "layout"), [(1, "plain"), (3, "plain"), (1, "zstd"), (3, "encrypted")])
def test_one_uploads_what_the_other_staged(
    tmp_path: Path, pair: tuple[Client, Client], folders: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    volume = format_volume(first, tmp_path, "staged", *format_flags(layout, tmp_path, monkeypatch))
    flags = options(volume, folders)
    with volume.mounted(first, *flags, "--upload-delay", "1h", expect_log=[STAYS]) as mount:
        write_all(mount)
    assert len(all_staged(volume)) == 6
    assert volume.objects == []
    drop_caches()
    with volume.mounted(second, *flags) as mount:
        check_all(mount)
        eventually(lambda: not all_staged(volume), 30, "the uploads")
    assert len(volume.objects) == 6
    drop_caches()
    for client in pair:
        with volume.mounted(client) as mount:
            check_all(mount)
    assert_clean(volume)


def test_our_flush_waits_for_a_mount_of_theirs(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path, "waited")
    with volume.mounted(PEER, *options(volume, 1), "--upload-delay", "6s") as mount:
        write_all(mount)
        assert mount.figure("staging_blocks") > 0, "the last one: writing may have taken longer than the delay"
        assert "All staging chunks are flushed" in flush(mount)
    assert all_staged(volume) == []
    assert len(volume.objects) == 6


def test_both_stage_in_one_folder_at_once(tmp_path: Path, pair: tuple[Client, Client]) -> None:
    """Mounts of both programs share cache folders: what one uploads of the other's blocks is uploaded."""
    first, second = pair
    volume = format_volume(JFS, tmp_path, "shared")
    flags = options(volume, 2)
    with volume.mounted(first, *flags, "--upload-delay", "1h", expect_log=[STAYS]) as one:
        write_and_sync(one.path / "f", noise(1, 5 * MIB))
        with volume.mounted(second, *flags) as two:
            write_and_sync(two.path / "g", noise(2, 5 * MIB))
            eventually(lambda: not all_staged(volume), 30, "the uploads of both")
            assert (one.path / "g").read_bytes() == noise(2, 5 * MIB)
            assert (two.path / "f").read_bytes() == noise(1, 5 * MIB)
    assert len(volume.objects) == 4
    assert_clean(volume)
