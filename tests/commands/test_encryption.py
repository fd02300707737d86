"""Encrypted volumes at the command line: what is missing is said in one line, and no secret is ever shown."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from jfs.meta.secrets import opened
from jfs.meta.settings import Settings
from tests.commands.test_refusals import refused, snapshot
from tests.keys import PKCS1, key_file, pem, rsa_key
from tests.mounts import JFS, PEER, Client, Volume, format_volume, is_mounted

SECRET = {"JFS_RSA_PASSPHRASE": "open sesame"}
MISSING = "the RSA key has a passphrase: please set it in the environment variable JFS_RSA_PASSPHRASE"
WRONG = "the passphrase in JFS_RSA_PASSPHRASE is not the RSA key's"
UUID_BYTES = 36
OVERHEAD = 3 + 256 + 12 + 16


def encrypted_volume(folder: Path, *flags: str, client: Client = JFS, passphrase: str = "open sesame") -> Volume:
    """A volume that was formatted with a key, which may have a passphrase."""
    volume = Volume(folder, "vol")
    key = key_file(folder, rsa_key(), PKCS1, passphrase)
    words = ("--bucket", str(volume.store), "--encrypt-rsa-key", str(key), *flags)
    client.run("format", volume.url, "vol", *words, **SECRET)
    return volume


def stored(volume: Volume) -> Settings:
    """The settings as they are in the database."""
    connection = sqlite3.connect(volume.database)
    try:
        (text,) = connection.execute("select value from jfs_setting").fetchone()
    finally:
        connection.close()
    return Settings.parse(text.encode())


def replace_settings(volume: Volume, old: str, new: str) -> None:
    connection = sqlite3.connect(volume.database)
    with connection:
        connection.execute("update jfs_setting set value = replace(value, ?, ?)", (old, new))
    connection.close()


def test_what_format_leaves(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path)
    settings = stored(volume)
    assert (settings.encrypt_algo, settings.key_encrypted) == ("aes256gcm-rsa", True)
    assert opened(settings).encrypt_key == (tmp_path / "key.pem").read_text()
    objects = [path for path in volume.store.rglob("*") if path.is_file()]
    assert objects == [volume.store / "vol/juicefs_uuid"]
    assert objects[0].stat().st_size == UUID_BYTES + OVERHEAD


def test_the_same_words_as_the_peer(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path, "--encrypt-algo", "chacha20-rsa")
    shown = JFS.run("config", volume.url).stdout
    assert shown == PEER.run("config", volume.url).stdout
    assert json.loads(shown)["EncryptKey"] == "removed"
    assert JFS.run("status", volume.url).stdout == PEER.run("status", volume.url).stdout


def test_no_output_shows_a_secret(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path, passphrase="")
    body = "".join((tmp_path / "key.pem").read_text().splitlines()[1:3])
    sealed = stored(volume).encrypt_key
    for line in ("format {url} vol", "status {url}", "config {url}", "fsck {url}", "gc {url}"):
        done = JFS.run("--trace", *line.format(url=volume.url).split(), **SECRET)
        for text in (body[:40], sealed[:40], "open sesame"):
            assert text not in done.stdout + done.stderr, line


@pytest.mark.parametrize("command", ["gc {url}", "fsck {url}", "mount {url} {tmp}/m", "mount -d {url} {tmp}/m"])
def test_commands_that_need_the_key(tmp_path: Path, command: str) -> None:
    volume = encrypted_volume(tmp_path)
    words = [word.format(url=volume.url, tmp=tmp_path) for word in command.split()]
    before = snapshot(volume.store)
    assert refused(*words) == f"volume vol is encrypted: {MISSING}"
    assert refused(*words, JFS_RSA_PASSPHRASE="wrong") == f"volume vol is encrypted: {WRONG}"
    assert not is_mounted(tmp_path / "m")
    assert snapshot(volume.store) == before


def test_the_storage_of_an_encrypted_volume_is_tried_with_its_key(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path)
    before = stored(volume)
    assert MISSING in refused("config", volume.url, "--bucket", tmp_path / "elsewhere")
    assert MISSING in refused("format", volume.url, "vol", "--trash-days", "9")
    assert stored(volume) == before


def test_settings_change_without_the_key(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path)
    before = stored(volume)
    assert JFS.run("config", volume.url, "--trash-days", "5").stdout == "trash-days: 1 -> 5\n"
    assert json.loads(JFS.run("status", volume.url).stdout)["Setting"]["TrashDays"] == 5
    assert opened(stored(volume)).encrypt_key == opened(before).encrypt_key


def test_encryption_is_chosen_once(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path)
    key = opened(stored(volume)).encrypt_key
    (tmp_path / "other.pem").write_text(pem(rsa_key(1)))
    other = ("--encrypt-rsa-key", str(tmp_path / "other.pem"), "--encrypt-algo", "chacha20-rsa")
    where = ("--bucket", str(volume.store))
    both = ["--encrypt-rsa-key", "--encrypt-algo"]
    cases: list[tuple[tuple[str, ...], list[str]]] = [
        ((), []),
        (other, both),
        (("--force", *where), []),
        (("--force", *where, *other), both),
        (("--no-update", *other), []),
    ]
    for words, ignored in cases:
        done = JFS.run("format", volume.url, "vol", *words, **SECRET)
        warning = r"<WARNING>: option (\S+) is ignored: a volume's encryption cannot change"
        assert re.findall(warning, done.stderr) == ignored, words
        settings = stored(volume)
        assert opened(settings).encrypt_key == key, words
        assert (settings.encrypt_algo, settings.key_encrypted) == ("aes256gcm-rsa", True)


def test_a_plain_volume_stays_plain(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path)
    key = key_file(tmp_path, rsa_key())
    for words in ((), ("--force", "--bucket", str(volume.store))):
        done = JFS.run("format", volume.url, "vol", *words, "--encrypt-rsa-key", key)
        assert "option --encrypt-rsa-key is ignored" in done.stderr
        assert stored(volume).encrypt_key == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "load RSA key from {key}: No such file or directory"),
        ("", "load RSA key from {key}: the RSA key is not a PEM text (-----BEGIN PRIVATE KEY-----)"),
        ("junk", "load RSA key from {key}: the RSA key is not a PEM text (-----BEGIN PRIVATE KEY-----)"),
        (pem(rsa_key(bits=1024)), "load RSA key from {key}: it has 1024 bits, at least 2048 are wanted"),
        (pem(rsa_key(), passphrase="x"), "load RSA key from {key}: " + MISSING),
    ],
    ids=["missing", "empty", "junk", "short", "passphrase"],
)
def test_format_makes_nothing_of_a_bad_key(tmp_path: Path, content: str | None, message: str) -> None:
    key = tmp_path / "key.pem"
    if content is not None:
        key.write_text(content)
    words = ("vol", "--bucket", tmp_path / "store", "--encrypt-rsa-key", key)
    assert refused("format", f"sqlite3://{tmp_path}/meta.db", *words).startswith(message.format(key=key))
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["key.pem"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--encrypt-algo chacha20-rsa", "--encrypt-algo encrypts nothing without --encrypt-rsa-key"),
        (
            "--encrypt-algo sm4gcm",
            'Invalid value "sm4gcm" for "encrypt-algo": must be one of aes256gcm-rsa, chacha20-rsa',
        ),
    ],
)
def test_format_makes_nothing_of_bad_words(tmp_path: Path, flags: str, message: str) -> None:
    words = ("vol", "--bucket", tmp_path / "store", *flags.split())
    assert refused("format", f"sqlite3://{tmp_path}/meta.db", *words) == message
    assert list(tmp_path.iterdir()) == []


def test_algorithms_that_are_the_peers_alone(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path, "--encrypt-algo", "sm4gcm", client=PEER)
    said = refused("fsck", volume.url, **SECRET)
    assert said == (
        "volume vol is encrypted: algorithm sm4gcm is not supported; supported: aes256gcm-rsa, chacha20-rsa"
    )


def test_a_key_that_a_dump_dropped(tmp_path: Path) -> None:
    volume = encrypted_volume(tmp_path)
    replace_settings(volume, stored(volume).encrypt_key, "removed")
    assert "the volume's encrypt key was removed from its settings" in refused("gc", volume.url, **SECRET)


def test_fsck_measures_encrypted_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JFS_RSA_PASSPHRASE", "open sesame")
    volume = encrypted_volume(tmp_path)
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_bytes(b"x" * 1000)
    (block,) = volume.objects
    assert block.stat().st_size == 1000 + OVERHEAD
    JFS.run("fsck", volume.url)
    block.write_bytes(bytes(1000))  # as large as a plain one
    done = JFS.run("fsck", volume.url, ok=False)
    name = block.relative_to(volume.store / "vol/chunks")
    assert f"block {name} of file /f has 1000 bytes instead of {1000 + OVERHEAD}" in done.stderr
    assert done.returncode == 1


# -- secrets in the settings


def test_secrets_in_plain_text_are_encrypted_on_request(tmp_path: Path) -> None:
    volume = format_volume(PEER, tmp_path)
    PEER.run("config", volume.url, "--access-key", "AK", "--secret-key", "hush")
    assert stored(volume).secret_key == "hush"
    assert JFS.run("config", volume.url, "--encrypt-secret").stdout == "encrypt-secret: false -> true\n"
    settings = stored(volume)
    assert settings.key_encrypted
    assert opened(settings).secret_key == "hush"
    assert JFS.run("config", volume.url, "--encrypt-secret").stdout == "Nothing changed.\n"
    assert stored(volume) == settings
    # the peer opens what jfs sealed, and seals it again
    assert "secret-key: updated" in PEER.run("config", volume.url, "--secret-key", "hush hush").stdout
    assert opened(stored(volume)).secret_key == "hush hush"


def test_there_may_be_no_secrets_to_encrypt(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path)
    assert JFS.run("config", volume.url, "--encrypt-secret").stdout == "Nothing changed.\n"
    assert not stored(volume).key_encrypted
