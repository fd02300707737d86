"""`fsck --verify` reads every block: what listing the store cannot see."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.test_encryption import SECRET, encrypted_volume
from tests.mounts import JFS, PEER, Volume, format_volume

KINDS = ["plain", "lz4", "zstd", "encrypted", "encrypted lz4"]
DATA = os.urandom(300_000) + bytes(100_000)


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    """Files `f` of one block and `g` of three, made by the peer."""
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    words = request.param.split()
    compress = [word for word in words if word in ("lz4", "zstd")]
    flags = ["--block-size", "256K", *(["--compress", *compress] if compress else [])]
    if "encrypted" in words:
        found = encrypted_volume(tmp_path, *flags, client=PEER)
    else:
        found = format_volume(PEER, tmp_path, "vol", *flags)
    with found.mounted(PEER) as mount:
        (mount.path / "f").write_bytes(DATA[:1000])
        (mount.path / "dir").mkdir()
        (mount.path / "dir/g").write_bytes(DATA * 2)
    return found


def said(volume: Volume, *flags: str, code: int = 0) -> str:
    done = JFS.run("fsck", volume.url, *flags, ok=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def is_compressed(volume: Volume) -> bool:
    return '"Compression": "none"' not in JFS.run("config", volume.url).stdout


def is_encrypted(volume: Volume) -> bool:
    return '"EncryptKey"' in JFS.run("config", volume.url).stdout


def test_a_sound_volume(volume: Volume) -> None:
    count = len(volume.objects)
    assert count == 5
    everything = f"Verified {count} blocks ({1000 + 2 * len(DATA)} bytes)"
    assert everything in said(volume, "--verify")
    assert "Verified" not in said(volume)
    assert "Verified 1 blocks (1000 bytes)" in said(volume, "--verify", "--path", "/f")
    assert everything in said(volume, "--verify", "--path", "/", "--recursive")


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_a_damaged_block(volume: Volume) -> None:
    """Of a plain block nothing tells but its length, which needs no --verify."""
    if not (is_encrypted(volume) or is_compressed(volume)):
        damage(volume.objects[0], lambda data: data[:-1])
        assert "bytes instead of" in said(volume, code=1)
        return
    block = next(path for path in volume.objects if not path.name.endswith("_1000"))
    name = block.relative_to(volume.store / volume.name / "chunks")
    damage(block, lambda data: bytes(255 - byte for byte in data[:300]) + data[300:])
    assert "cannot be read" not in said(volume)
    text = said(volume, "--verify", code=1)
    assert re.search(rf"<ERROR>: block {name} of file /dir/g cannot be read: ", text)
    assert re.search(r"<FATAL>: 1 objects are bad \(\d+ bytes\), 1 broken files:\n +INODE: PATH\n +\d+: /dir/g", text)
    assert "Verified 1 blocks" in said(volume, "--verify", "--path", "/f")
    assert "1 objects are bad" in said(volume, "--verify", "--path", "/dir/g", code=1)


def test_a_missing_block_is_lost_and_not_bad(volume: Volume) -> None:
    next(path for path in volume.objects if path.name.endswith("_1000")).unlink()
    text = said(volume, "--verify", code=1)
    assert "1 objects are lost (1000 bytes), 1 broken files:" in text
    assert f"Verified 4 blocks ({2 * len(DATA)} bytes)" in text


def test_every_file_that_needs_a_bad_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    volume = encrypted_volume(tmp_path)
    with volume.mounted(PEER) as mount:
        (mount.path / "one").write_bytes(DATA)
        PEER.run("clone", mount.path / "one", mount.path / "two")
        (mount.path / "three").write_bytes(DATA)
    shared = min(volume.objects, key=lambda path: int(path.name.split("_")[0]))
    damage(shared, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    text = said(volume, "--verify", code=1)
    assert re.search(r"1 objects are bad \(400000 bytes\), 2 broken files:", text)
    assert re.findall(r"^ +\d+: /(\w+)", text, re.MULTILINE) == ["one", "two"]
    shutil.copy(next(path for path in volume.objects if path != shared), shared)  # the same size, the same bytes
    assert "Verified 2 blocks" in said(volume, "--verify")
