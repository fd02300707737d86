"""Both programs on volumes whose objects are in S3, and in several buckets."""

import itertools
import json
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from jfs.object.stores import open_store
from tests.deadline import eventually
from tests.interop.conftest import assert_clean, both_mounted
from tests.interop.test_takeover import hand_over
from tests.mounts import JFS, PEER, Client, Volume, format_volume
from tests.s3server import S3Server

LAYOUTS = {
    "plain": (),
    "lz4 and hash prefix": ("--compress", "lz4", "--hash-prefix", "--storage-class", "STANDARD_IA"),
    "shards": ("--shards", "3"),
}
numbers = itertools.count()


@pytest.fixture(autouse=True)
def no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def bucket_for(flags: tuple[str, ...]) -> str:
    return f"interop-{next(numbers)}" + ("-%d" if "--shards" in flags else "")


def format_on_s3(server: S3Server, client: Client, folder: Path, *flags: str) -> Volume:
    bucket = server.bucket_url(bucket_for(flags))
    return format_volume(client, folder, "shared", *server.format_flags, "--bucket", bucket, *flags)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(tmp_path: Path, s3_server: S3Server, pair: tuple[Client, Client], layout: str) -> None:
    volume = format_on_s3(s3_server, pair[0], tmp_path / "v", *LAYOUTS[layout])
    hand_over(volume, pair, tmp_path)
    assert not volume.store.exists()


def test_shards_of_folders(tmp_path: Path, pair: tuple[Client, Client]) -> None:
    """Every object is in the shard where the other program looks for it."""
    first, second = pair
    pattern = str(tmp_path / "shard-%d")
    volume = format_volume(first, tmp_path / "v", "shared", "--bucket", pattern, "--shards", "4", "--block-size", "64K")
    data = os.urandom(1 << 20)
    with volume.mounted(first) as mount:
        (mount.path / "f").write_bytes(data)
    assert all(any((tmp_path / f"shard-{number}/shared/chunks").rglob("*_65536")) for number in range(4))
    with volume.mounted(second) as mount:
        assert (mount.path / "f").read_bytes() == data
        (mount.path / "g").write_bytes(data)
    with volume.mounted(first) as mount:
        assert (mount.path / "g").read_bytes() == data
    assert_clean(volume)


@pytest.fixture
def shared(tmp_path: Path, s3_server: S3Server) -> Volume:
    return format_on_s3(s3_server, JFS, tmp_path / "v")


def test_side_by_side(shared: Volume) -> None:
    with both_mounted(shared, "--cache-dir", "memory") as (ours, theirs):
        for number, (writer, reader) in enumerate([(ours, theirs), (theirs, ours)] * 3):
            data = os.urandom(5_000_000 + number)
            (writer.path / f"f{number}").write_bytes(data)
            eventually(lambda reader=reader, number=number: (reader.path / f"f{number}").exists(), 30)
            assert (reader.path / f"f{number}").read_bytes() == data
    assert_clean(shared)


def stored(volume: Volume) -> dict[str, object]:
    settings: dict[str, object] = json.loads(PEER.run("config", volume.url).stdout)
    return settings


def test_both_write_the_same_settings(tmp_path: Path, s3_server: S3Server) -> None:
    flags = ("--session-token", "t", "--storage-class", "STANDARD", "--shards", "2")
    kept = []
    for client in (JFS, PEER):
        volume = format_volume(
            client,
            tmp_path / client.name,
            "shared",
            *("--storage", "file", "--bucket", str(tmp_path / client.name / "s%d")),
            *("--access-key", "a", "--secret-key", "s"),
            *flags,
        )
        settings = stored(volume)
        assert settings["SecretKey"] == settings["SessionToken"] == "removed"
        kept.append({name: value for name, value in settings.items() if name not in ("UUID", "Bucket")})
        assert JFS.run("config", volume.url).stdout == PEER.run("config", volume.url).stdout
    assert kept[0] == kept[1]


def test_config_tells_what_the_peer_tells(tmp_path: Path, s3_server: S3Server) -> None:
    said = []
    for client in (JFS, PEER):
        volume = format_on_s3(s3_server, client, tmp_path / client.name)
        lines = [
            client.run("config", volume.url, *flags, "--yes").stdout
            for flags in [
                ("--secret-key", s3_server.secret_key),
                ("--storage-class", "STANDARD_IA"),
                ("--access-key", s3_server.access_key),
            ]
        ]
        said.append((lines, stored(volume)["Tiers"]))
    assert said[0] == said[1]


@pytest.fixture
def moved(shared: Volume, s3_server: S3Server) -> str:
    """Another bucket's URL."""
    url = s3_server.bucket_url(f"moved-{next(numbers)}")
    with closing(open_store("s3", url, s3_server.options)) as store:
        store.create()
    return url


@pytest.mark.parametrize("client", [JFS, PEER], ids=lambda client: client.name)
def test_a_mounts_own_bucket(shared: Volume, s3_server: S3Server, moved: str, client: Client) -> None:
    with shared.mounted(client, "--bucket", moved, "--storage-class", "STANDARD_IA") as mount:
        (mount.path / "f").write_bytes(b"x" * 100_000)
    with closing(open_store("s3", moved, s3_server.options)) as store:
        [block] = [info.key for info in store.list("shared/chunks/")]
    assert block.endswith("_100000")


def test_a_volume_that_moves_while_it_is_mounted(shared: Volume, s3_server: S3Server, moved: str) -> None:
    with (
        closing(open_store("s3", moved, s3_server.options)) as store,
        shared.mounted(JFS, "--heartbeat", "1s") as mount,
    ):
        (mount.path / "before").write_bytes(b"x" * 1000)
        PEER.run("config", shared.url, "--bucket", moved, "--yes")
        eventually(lambda: "moved-" in mount.log.read_text(), 60, "the mount has seen the new bucket")
        (mount.path / "after").write_bytes(b"y" * 2000)
        assert [info.key.rpartition("_")[2] for info in store.list("shared/chunks/")] == ["2000"]


def test_secrets_are_in_no_log(shared: Volume, s3_server: S3Server) -> None:
    with shared.mounted(JFS, "--debug") as mount:
        (mount.path / "f").write_bytes(b"x")
        config = (mount.path / ".config").read_text()
    said = mount.log.read_text() + config
    for command in (("config",), ("status",), ("gc",), ("fsck",)):
        done = subprocess.run([JFS.binary, "--debug", *command, shared.url], capture_output=True, text=True)
        said += done.stdout + done.stderr
    assert s3_server.secret_key not in said
    assert s3_server.access_key in said
