"""A volume's settings: the peer's text byte for byte, unknown fields, secrets, versions and names."""

import json
from pathlib import Path

import pytest

from jfs.errors import CorruptRecord, UserError
from jfs.meta.settings import Settings, check_name

GOLDEN = Path(__file__).parent.parent / "golden"


def golden_texts() -> list[bytes]:
    texts = [
        bytes.fromhex(record["value"])
        for name in ("ops", "notrash", "tikv")
        for record in json.loads((GOLDEN / f"{name}-snapshot.json").read_text())["keys"]
        if record["kind"] == "setting"
    ]
    for volume in json.loads((GOLDEN / "objects.json").read_text())["volumes"]:
        texts += [bytes.fromhex(value) for key, value in volume["keys"] if key.endswith(b"setting".hex())]
    return texts


@pytest.mark.parametrize("text", golden_texts(), ids=lambda text: json.loads(text)["Name"])
def test_golden_texts_are_written_as_they_were_read(text: bytes) -> None:
    settings = Settings.parse(text)
    assert settings.text() == text
    assert settings.fields() == json.loads(text)


def test_fresh_settings_are_those_of_the_peer() -> None:
    golden = Settings.parse(golden_texts()[0])
    fresh = Settings.fresh("g-ops", bucket=golden.bucket)
    fresh.uuid = golden.uuid
    golden.min_client_version = "1.1.0-A"
    golden.user_group_quota = golden.enable_acl = False
    assert fresh.text() == golden.text()
    assert Settings.fresh("g-ops", bucket="/b/").uuid != fresh.uuid


def test_zero_values_are_left_out_but_for_the_few_that_stay() -> None:
    assert list(Settings(tiers={}).fields()) == [
        "Name",
        "UUID",
        "Storage",
        "Tiers",
        "Bucket",
        "BlockSize",
        "TrashDays",
        "EnableACL",
    ]


def test_unknown_fields_survive_a_rewrite() -> None:
    settings = Settings.parse(b'{"Name":"vol","Later":{"a":[1,2]},"MetaVersion":1}')
    settings.trash_days = 7
    again = Settings.parse(settings.text())
    assert again.unknown == {"Later": {"a": [1, 2]}}
    assert again.trash_days == 7


def test_unknown_fields_are_not_shared_between_volumes() -> None:
    Settings().unknown["X"] = 1
    assert Settings().unknown == {}


def test_a_field_of_our_own_bookkeeping_is_unknown_like_any_other() -> None:
    assert Settings.parse(b'{"unknown":{"a":1}}').unknown == {"unknown": {"a": 1}}


def test_text_is_escaped_as_go_does() -> None:
    settings = Settings.fresh("vol", bucket="https://h/?a=1&b=<é>")
    assert b'"Bucket": "https://h/?a=1\\u0026b=\\u003c\xc3\xa9\\u003e"' in settings.text()
    assert Settings.parse(settings.text()).bucket == settings.bucket


def test_a_volume_without_tiers_has_the_one_of_its_storage_class() -> None:
    settings = Settings.parse(b'{"Name":"old","StorageClass":"IA"}')
    assert settings.tiers == {"0": {"ID": 0, "StorageClass": "IA", "Tag": ""}}


def test_secrets_are_not_shown() -> None:
    settings = Settings.fresh("vol", bucket="/b/")
    settings.access_key, settings.secret_key, settings.session_token = "key", "s3cret", "t0ken"
    settings.encrypt_key = "PEM"
    public = settings.public()
    assert public["AccessKey"] == "key"
    assert public["SecretKey"] == public["SessionToken"] == public["EncryptKey"] == "removed"
    assert settings.fields()["SecretKey"] == "s3cret"
    assert "SecretKey" not in Settings.fresh("vol", bucket="/b/").public()


def test_a_newer_metadata_version_is_refused() -> None:
    with pytest.raises(UserError, match="incompatible metadata version 2"):
        Settings.parse(b'{"Name":"vol","MetaVersion":2}')


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"Name":1}', b'{"BlockSize":"big"}', b'{"Tiers":[]}', b"\xff{}"])
def test_broken_text_is_corrupt(text: bytes) -> None:
    with pytest.raises(CorruptRecord):
        Settings.parse(text)


@pytest.mark.parametrize("name", ["abc", "a-1", "0" * 63])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "ab", "Abc", "-ab", "ab-", "a_b", "a.b", "é-a", "0" * 64, "abc\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match="invalid name"):
        Settings.fresh(name, bucket="/b/")


@pytest.mark.parametrize("shards", [-1, 257])
def test_bad_shards(shards: int) -> None:
    with pytest.raises(UserError, match="shards"):
        Settings.fresh("vol", bucket="/b/", shards=shards)
