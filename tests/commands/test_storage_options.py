"""The options of the object storage: format, config and mount on a real S3 server."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jfs.meta import volume_format
from jfs.meta.run import read
from jfs.meta.secrets import opened
from jfs.meta.settings import Settings
from jfs.object.stores import open_store
from jfs.volume import with_engine
from tests.deadline import eventually
from tests.mounts import JFS, PEER, Volume
from tests.s3server import S3Server

numbers = itertools.count()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """The URL of a bucket that is not there yet."""
    return s3_server.bucket_url(f"options-{next(numbers)}")


@pytest.fixture
def volume(tmp_path: Path, s3_server: S3Server, bucket: str) -> Volume:
    made = Volume(tmp_path, "vol")
    JFS.run("format", made.url, "vol", *s3_server.format_flags, "--bucket", bucket)
    return made


def stored(volume: Volume) -> Settings:
    return with_engine(volume.url, lambda engine: read(engine, volume_format.load_settings))


def fatal(*words: str | Path, **env: str) -> str:
    """The one line that a command which is refused says."""
    done = JFS.run(*words, ok=False, **env)
    assert done.returncode == 1, done
    [line] = [line for line in done.stderr.splitlines() if "<FATAL>" in line]
    return line


# -- format


def test_format_makes_the_bucket(volume: Volume, s3_server: S3Server, bucket: str) -> None:
    store = open_store("s3", bucket, s3_server.options)
    assert store.get("vol/juicefs_uuid").decode() == stored(volume).uuid
    assert [info.key for info in store.list()] == ["vol/juicefs_uuid"]
    store.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--secret-key", "no-such-secret"), "ListObjects: 403 SignatureDoesNotMatch: "),
        (("--access-key", "nobody"), "ListObjects: 403 InvalidAccessKeyId: "),
        (("--bucket", "http://127.0.0.1:1/b"), "ListObjects: 127.0.0.1:1: connection refused"),
        (("--bucket", "http://no-such-host.invalid/b"), "ListObjects: no-such-host.invalid: "),
        (("--bucket", "{endpoint}/ab"), "CreateBucket: 400 InvalidBucketName: "),
    ],
)
def test_the_self_test_says_which_call_failed_and_how(
    tmp_path: Path, s3_server: S3Server, bucket: str, wrong: tuple[str, str], said: str
) -> None:
    flags = [*s3_server.format_flags, "--bucket", bucket, wrong[0], wrong[1].format(endpoint=s3_server.endpoint)]
    line = fatal("format", f"sqlite3://{tmp_path}/m.db", "vol", *flags)
    assert "cannot find or create the bucket of storage s3://" in line
    assert said in line
    assert "no-such-secret" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_empty(tmp_path: Path, volume: Volume, s3_server: S3Server, bucket: str) -> None:
    line = fatal("format", f"sqlite3://{tmp_path}/m2.db", "vol", *s3_server.format_flags, "--bucket", bucket)
    assert "is not empty (it holds juicefs_uuid)" in line


def test_keys_from_the_environment(tmp_path: Path, s3_server: S3Server, bucket: str) -> None:
    volume = Volume(tmp_path, "vol")
    keys = {"ACCESS_KEY": s3_server.access_key, "SECRET_KEY": s3_server.secret_key}
    JFS.run("format", volume.url, "vol", "--storage", "s3", "--bucket", bucket, **keys)
    plain = opened(stored(volume))
    assert (plain.access_key, plain.secret_key) == (s3_server.access_key, s3_server.secret_key)


def test_keys_of_the_aws_chain_are_not_stored(tmp_path: Path, s3_server: S3Server, bucket: str) -> None:
    volume = Volume(tmp_path, "vol")
    keys = {"AWS_ACCESS_KEY_ID": s3_server.access_key, "AWS_SECRET_ACCESS_KEY": s3_server.secret_key}
    JFS.run("format", volume.url, "vol", "--storage", "s3", "--bucket", bucket, **keys)
    settings = stored(volume)
    assert (settings.access_key, settings.secret_key, settings.key_encrypted) == ("", "", False)
    JFS.run("fsck", volume.url, **keys)
    PEER.run("fsck", volume.url, **keys)


def test_format_again_with_other_keys(volume: Volume, s3_server: S3Server) -> None:
    before = stored(volume)
    line = fatal("format", volume.url, "vol", "--secret-key", "no-such-secret")
    assert "SignatureDoesNotMatch" in line
    assert stored(volume) == before
    JFS.run("format", volume.url, "vol", "--secret-key", s3_server.secret_key)
    after = stored(volume)
    assert after.secret_key != before.secret_key
    assert opened(after) == opened(before)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--shards", "300"), 'Invalid value "300" for "shards": a number from 0 to 256 is wanted'),
        (("--shards", "3"), "the bucket must contain one %d"),
        (("--storage", "cos", "--bucket", "b"), "invalid cos bucket 'b': https://BUCKET-APPID.cos.REGION"),
        (("--storage", "obs", "--bucket", "https://b.obs.x.myhuaweicloud.com"), "or set HWCLOUD_ACCESS_KEY and"),
        (("--storage", "s3", "--bucket", "http://127.0.0.1:1/b", "--access-key", "a"), "give --secret-key too"),
    ],
)
def test_bad_options(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    line = fatal("format", f"sqlite3://{tmp_path}/m.db", "vol", "--bucket", f"{tmp_path}/store", *flags)
    assert said in line
    assert list(tmp_path.iterdir()) == []


# -- config


def test_config_tries_new_keys_first(volume: Volume, s3_server: S3Server) -> None:
    before = stored(volume)
    assert "InvalidAccessKeyId" in fatal("config", volume.url, "--access-key", "nobody")
    assert stored(volume) == before
    done = JFS.run("config", volume.url, "--access-key", "nobody", "--force")
    assert done.stdout == f"access-key: {s3_server.access_key} -> nobody\n"
    done = JFS.run("config", volume.url, "--access-key", s3_server.access_key, "--secret-key", s3_server.secret_key)
    assert done.stdout.splitlines() == [f"access-key: nobody -> {s3_server.access_key}", "secret-key: updated"]
    assert opened(stored(volume)) == opened(before)


def test_a_secret_that_a_dump_dropped_is_set_again(volume: Volume, s3_server: S3Server) -> None:
    dumped = json.loads(PEER.run("dump", volume.url).stdout)
    assert dumped["Setting"]["SecretKey"] == "removed"
    fresh = Volume(volume.folder / "loaded", "vol")
    fresh.folder.mkdir()
    (fresh.folder / "dump").write_text(json.dumps(dumped))
    PEER.run("load", fresh.url, fresh.folder / "dump")
    assert "secret key was removed" in fatal("fsck", fresh.url)
    JFS.run("config", fresh.url, "--secret-key", s3_server.secret_key)
    assert opened(stored(fresh)).secret_key == s3_server.secret_key
    JFS.run("fsck", fresh.url)


# -- mount


def test_check_storage(volume: Volume) -> None:
    with volume.mounted(JFS, "--check-storage") as mount:
        (mount.path / "f").write_text("x")
    JFS.run("config", volume.url, "--secret-key", "no-such-secret", "--force")
    line = fatal("mount", "--check-storage", volume.url, volume.folder / "mp")
    assert "ListObjects: 403 SignatureDoesNotMatch" in line
    assert not (volume.folder / "mp").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bucket", "http://127.0.0.1:1"), "invalid s3 bucket"),
        (("--storage", "file", "--bucket", "relative"), "file storage needs an absolute path, not 'relative/'"),
        (("--storage", "floppy"), "invalid storage 'floppy'"),
    ],
)
def test_bad_mounts(volume: Volume, flags: tuple[str, ...], said: str) -> None:
    assert said in fatal("mount", "-d", *flags, volume.url, volume.folder / "mp")


def test_new_keys_reach_a_mount(volume: Volume, s3_server: S3Server) -> None:
    """A mount whose keys are refused goes on once they are mended: nothing is lost."""
    with volume.mounted(JFS, "--heartbeat", "1s", expect_log=["trying again", "cannot be read"]) as mount:
        (mount.path / "before").write_bytes(b"b" * 100_000)
        JFS.run("config", volume.url, "--secret-key", "no-such-secret", "--force")
        eventually(lambda: mount.log.read_text().count("Data use") > 1, 60, "the wrong key has reached the mount")
        writer = subprocess.Popen(
            [sys.executable, "-c", f"open({str(mount.path / 'after')!r}, 'wb').write(b'a' * 100_000)"]
        )
        eventually(lambda: "SignatureDoesNotMatch" in mount.log.read_text(), 60, "a put was refused")
        assert writer.poll() is None
        JFS.run("config", volume.url, "--secret-key", s3_server.secret_key)
        assert writer.wait(60) == 0
        assert "no-such-secret" not in mount.log.read_text()
    with volume.mounted(JFS, "--cache-dir", "memory") as mount:
        assert (mount.path / "after").read_bytes() == b"a" * 100_000
        assert (mount.path / "before").read_bytes() == b"b" * 100_000


# -- start-up


def test_what_s3_needs_is_loaded_for_s3_only(tmp_path: Path) -> None:
    code = f"""
import sys, jfs.cli
sys.argv = ["jfs", "format", "sqlite3://{tmp_path}/m.db", "vol", "--bucket", "{tmp_path}/store"]
try:
    jfs.cli.main()
finally:
    print([name for name in ("botocore", "http.client", "xml.etree", "jfs.object.s3") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done
