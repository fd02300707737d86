"""Encrypted volumes, made and used by both programs."""

import errno
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import PrivateFormat

from jfs.object.encrypt import Sealer
from tests.deadline import eventually
from tests.interop.conftest import assert_clean, both_mounted
from tests.interop.test_takeover import hand_over
from tests.keys import PKCS1, PKCS8, key_file, rsa_key
from tests.mounts import JFS, PEER, Client, Volume, format_volume
from tests.s3server import S3Server

PASSPHRASE = "open sesame"
MIB = 1 << 20

LAYOUTS = {
    "aes": (),
    "chacha and lz4": ("--encrypt-algo", "chacha20-rsa", "--compress", "lz4"),
    "aes, zstd and hash prefix": ("--encrypt-algo", "aes256gcm-rsa", "--compress", "zstd", "--hash-prefix"),
    "chacha, small blocks and no trash": (
        *("--encrypt-algo", "chacha20-rsa", "--block-size", "256K", "--trash-days", "0"),
    ),
}


@pytest.fixture(autouse=True)
def known_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JFS_RSA_PASSPHRASE", PASSPHRASE)


def encrypted_volume(
    client: Client, folder: Path, *flags: str, form: PrivateFormat = PKCS8, passphrase: str = PASSPHRASE
) -> Volume:
    key = key_file(folder, rsa_key(), form, passphrase)
    return format_volume(client, folder / "v", "sealed", "--encrypt-rsa-key", str(key), *flags)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(tmp_path: Path, pair: tuple[Client, Client], layout: str) -> None:
    volume = encrypted_volume(pair[0], tmp_path, *LAYOUTS[layout])
    hand_over(volume, pair, tmp_path, trash="no trash" not in layout)


@pytest.mark.parametrize("form", [PKCS1, PKCS8], ids=["pkcs1", "pkcs8"])
@pytest.mark.parametrize("passphrase", ["", PASSPHRASE], ids=["plain key", "passphrase"])
def test_keys_of_every_form(tmp_path: Path, pair: tuple[Client, Client], form: PrivateFormat, passphrase: str) -> None:
    first, second = pair
    volume = encrypted_volume(first, tmp_path, form=form, passphrase=passphrase)
    sealer = Sealer(rsa_key(), "aes256gcm-rsa")
    uuid = sealer.open((volume.store / "sealed/juicefs_uuid").read_bytes()).decode()
    assert uuid in first.run("config", volume.url).stdout
    for client in pair:
        second.run("format", volume.url, "sealed")  # tries the storage with the key that is stored
        assert "sealed/(encrypted)" in client.run("fsck", volume.url).stderr


def test_side_by_side(tmp_path: Path, pair: tuple[Client, Client]) -> None:
    volume = encrypted_volume(pair[0], tmp_path)
    data = {name: os.urandom(9 * MIB + 123) for name in ("ours", "theirs")}
    with both_mounted(volume) as (ours, theirs):
        (ours.path / "ours").write_bytes(data["ours"])
        (theirs.path / "theirs").write_bytes(data["theirs"])
        for mount in (ours, theirs):
            for name, content in data.items():
                assert (mount.path / name).read_bytes() == content
                with open(mount.path / name, "rb") as file:
                    assert os.pread(file.fileno(), 1000, 5 * MIB) == content[5 * MIB : 5 * MIB + 1000]
    for block in volume.objects:
        sealed = block.read_bytes()
        assert not any(content[:64] in sealed for content in data.values())
    assert_clean(volume)


def test_compaction(tmp_path: Path, pair: tuple[Client, Client]) -> None:
    first, second = pair
    volume = encrypted_volume(first, tmp_path)
    expected = bytearray(300_000)
    with volume.mounted(first) as mount, open(mount.path / "f", "wb", buffering=0) as file:
        for number in range(20):
            part = os.urandom(20_000)
            place = number * 13_000
            os.pwrite(file.fileno(), part, place)
            os.fsync(file.fileno())
            expected[place : place + 20_000] = part
    expected = expected[: 19 * 13_000 + 20_000]
    second.run("gc", volume.url, "--compact")
    for client in pair:
        with volume.mounted(client) as mount:
            assert (mount.path / "f").read_bytes() == expected
    assert_clean(volume)


def test_writeback(tmp_path: Path, pair: tuple[Client, Client]) -> None:
    """What is staged is plain, what is uploaded is not."""
    first, second = pair
    volume = encrypted_volume(first, tmp_path, "--compress", "lz4")
    data = os.urandom(5 * MIB)
    cache = tmp_path / "cache"

    def is_uploaded() -> bool:
        return len(volume.objects) == 2 and not any(path.is_file() for path in cache.glob("*/rawstaging/**/*"))

    with volume.mounted(first, "--writeback", "--cache-dir", str(cache)) as mount:
        (mount.path / "f").write_bytes(data)
        eventually(is_uploaded, 30, "what was staged is uploaded")
    with volume.mounted(second) as mount:
        assert (mount.path / "f").read_bytes() == data
    assert_clean(volume)


def test_in_a_bucket(tmp_path: Path, pair: tuple[Client, Client], s3_server: S3Server) -> None:
    """The private key and the store's keys lie in the same settings."""
    first, second = pair
    volume = Volume(tmp_path, "sealed")
    where = (*s3_server.format_flags, "--bucket", s3_server.bucket_url(f"sealed-by-{first.name}"))
    key = key_file(tmp_path, rsa_key(), PKCS8, PASSPHRASE)
    first.run("format", volume.url, "sealed", *where, "--encrypt-rsa-key", key)
    data = os.urandom(5 * MIB)
    with volume.mounted(first) as mount:
        (mount.path / "f").write_bytes(data)
    second.run("config", volume.url, "--secret-key", s3_server.secret_key)  # all secrets are sealed anew
    for client in (second, first):
        with volume.mounted(client) as mount, open(mount.path / "f", "rb") as file:
            assert os.pread(file.fileno(), 1000, 4 * MIB - 500) == data[4 * MIB - 500 : 4 * MIB + 500]
            assert file.read() == data
    assert_clean(volume)


def damaged(sealed: bytes, how: str) -> bytes:
    place = {"key": 100, "nonce": 265, "bytes": 5000, "tag": len(sealed) - 1}.get(how)
    if place is None:
        return sealed[:-1] if how == "cut" else b""
    return sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]


@pytest.mark.parametrize("how", ["key", "nonce", "bytes", "tag", "cut", "empty"])
def test_a_damaged_object_is_an_error(tmp_path: Path, how: str) -> None:
    volume = encrypted_volume(PEER, tmp_path)
    with volume.mounted(PEER) as mount:
        (mount.path / "f").write_bytes(b"precious" * 10_000)
        (mount.path / "g").write_bytes(b"good")
    block = next(path for path in volume.objects if path.name.endswith("_80000"))
    good = block.read_bytes()
    block.write_bytes(damaged(good, how))
    name = block.relative_to(volume.store / "sealed")
    with volume.mounted(JFS, expect_log=[f"object {name} is bad: ", f"read inode [0-9]+ at 0: {name}: "]) as mount:
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error") as caught:
                (mount.path / "f").read_bytes()
            assert caught.value.errno == errno.EIO
        assert mount.log.read_text().count(f"object {name} is bad: ") >= 2
        assert (mount.path / "g").read_bytes() == b"good"
        block.write_bytes(good)
        assert (mount.path / "f").read_bytes() == b"precious" * 10_000
