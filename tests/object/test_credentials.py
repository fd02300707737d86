"""Whose keys are used."""

from pathlib import Path

import pytest

from jfs.errors import StoreError, UserError
from jfs.object.credentials import key_source
from jfs.object.sigv4 import Keys
from jfs.object.vendors import VENDORS


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys of the machine's, no servers that hand them out."""
    names = [name for vendor in VENDORS.values() for name in vendor.keys]
    for name in [*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def test_keys_that_are_given() -> None:
    assert key_source("s3", "a", "s", "t")() == Keys("a", "s", "t")
    assert key_source("oss", "a", "s")() == Keys("a", "s")


def test_anonymous() -> None:
    assert key_source("s3", "anonymous")() is None
    assert key_source("cos", "anonymous", "ignored")() is None


@pytest.mark.parametrize("kind", [kind for kind, vendor in VENDORS.items() if vendor.keys])
def test_keys_of_the_vendors_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VENDORS[kind].keys, ("a", "s", "t"), strict=False):
        monkeypatch.setenv(name, value)
    assert key_source(kind)() == Keys("a", "s", "t" if len(VENDORS[kind].keys) == 3 else "")
    assert key_source(kind, "x", "y")() == Keys("x", "y")


@pytest.mark.parametrize("kind", ["s3", "minio", "oss"])
def test_half_a_pair(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VENDORS[kind].keys:
        monkeypatch.setenv(name, "another's")
    with pytest.raises(UserError, match="give --secret-key too"):
        key_source(kind, "a")
    with pytest.raises(UserError, match="give --access-key too"):
        key_source(kind, "", "s")


def test_no_keys() -> None:
    with pytest.raises(UserError, match="or set COS_SECRETID and COS_SECRETKEY"):
        key_source("cos")
    with pytest.raises(StoreError, match="no keys: give --access-key"):
        key_source("s3")()


def test_the_aws_chain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = file\naws_secret_access_key = s\n")
    assert key_source("s3")() == Keys("file", "s")
    assert key_source("minio")() == Keys("file", "s")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    assert key_source("s3")() == Keys("env", "s", "t")


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"AWS keys: .*nobody"):
        key_source("s3")()
