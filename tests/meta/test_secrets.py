"""Secrets in the settings."""

import json
from pathlib import Path

import msgspec
import pytest

from jfs.errors import UserError
from jfs.meta import volume_format
from jfs.meta.engines import open_engine
from jfs.meta.run import read, run_inline
from jfs.meta.secrets import opened, sealed
from jfs.meta.settings import Settings
from tests.mounts import JFS, PEER


def with_secrets() -> Settings:
    settings = Settings.fresh("vol", bucket="b")
    return msgspec.structs.replace(
        settings, access_key="AK", secret_key="S/K+é", session_token="T", encrypt_key="PEM\n"
    )


def test_sealed_then_opened() -> None:
    settings = with_secrets()
    stored = sealed(settings)
    assert stored.key_encrypted
    for secret in ("S/K", "PEM", '"T"'):
        assert secret not in stored.text().decode()
    assert b'"AccessKey": "AK"' in stored.text()
    assert opened(stored) == settings
    assert sealed(stored) == stored
    assert sealed(settings).secret_key != stored.secret_key  # a nonce of its own


def test_without_secrets_nothing_changes() -> None:
    settings = Settings.fresh("vol", bucket="b")
    assert sealed(settings) == settings == opened(settings)


def test_a_secret_that_a_dump_dropped() -> None:
    settings = msgspec.structs.replace(sealed(with_secrets()), secret_key="removed")
    with pytest.raises(UserError, match=r"secret key was removed .* --secret-key"):
        opened(settings)


@pytest.mark.parametrize("text", ["not base64!", "AAAA", "A" * 80])
def test_a_secret_of_another_volume(text: str) -> None:
    settings = msgspec.structs.replace(sealed(with_secrets()), session_token=text)
    with pytest.raises(UserError, match="session token cannot be decrypted"):
        opened(settings)


def stored_settings(url: str) -> Settings:
    engine = open_engine(url)
    try:
        return run_inline(read(engine, volume_format.load_settings))
    finally:
        run_inline(engine.close())


def test_the_peers_secrets_are_read(tmp_path: Path) -> None:
    url = f"sqlite3://{tmp_path}/m.db"
    keys = ("--access-key", "AK", "--secret-key", "S/K", "--session-token", "TOKEN")
    PEER.run("format", url, "vol", "--storage", "file", "--bucket", tmp_path / "store", *keys)
    stored = stored_settings(url)
    assert stored.key_encrypted
    plain = opened(stored)
    assert (plain.access_key, plain.secret_key, plain.session_token) == ("AK", "S/K", "TOKEN")
    assert json.loads(JFS.run("config", url).stdout)["SecretKey"] == "removed"
