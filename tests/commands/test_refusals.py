"""Bad input: one clear line on stderr, the right exit code, nothing changed, no traceback."""

import re
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.mounts import JFS, Volume, format_volume, is_mounted

FATAL = re.compile(r"<FATAL>: (.*) \[\w+@\w+\.py:\d+\]$", re.MULTILINE)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return format_volume(JFS, tmp_path_factory.mktemp("refusals"))


def refused(*args: str | Path, **env: str) -> str:
    """The one FATAL line of a command that must fail with 1 and print nothing else of note."""
    done = JFS.run(*args, ok=False, **env)
    assert done.returncode == 1, done
    assert done.stdout == "" or "Proceed anyway? [y/N]: " in done.stdout
    lines = FATAL.findall(done.stderr)
    assert len(lines) == 1, done.stderr
    assert not re.search("<(WARNING|ERROR)>|unexpected error", done.stderr), done.stderr
    return str(lines[0])


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("status foo://x", "Invalid meta driver: foo"),
        ("status redis://user:secret@host/1", "engine redis is not supported yet; supported: sqlite3, tikv"),
        ("status host/1", "engine redis is not supported yet"),
        ("status {url}?frob=1", "unknown parameter frob"),
        ("status {url} --foo", 'unknown option: "--foo"'),
        ("--foo status {url}", 'unknown option: "--foo"'),
        ("status {url} --session 99", "get session: session not found: 99"),
        ("status {url} --session x", 'Invalid value "x" for "session"'),
        ("--log-level loud status {url}", 'Invalid value "loud" for "log-level"'),
        ("config {url} --capacity 1Q", 'Invalid value "1Q" for "capacity": malformed size'),
        ("config {url} --upload-limit x", 'Invalid value "x" for "upload-limit"'),
        ("config {url} --upload-limit 99999999999999999999999", "at most 1000000000000 Mbps are possible"),
        ("config {url} --download-limit 0.5", "rate '0.5' is no whole number of Mbps"),
        ("config {url} --trash-days 4611686018427387904", "a number from 0 to 100000 is wanted (273 years"),
        ("config {url} --inodes -1", 'Invalid value "-1" for "inodes": a number from 0 on is wanted'),
        ("config {url} --inodes 9223372036854775808", "a number from 0 to 9223372036854775807 is wanted"),
        ("config {url} --capacity 0.0000000001", "size '0.0000000001' is less than one byte"),
        ("mount {url} {tmp}/m --upload-limit 99999999999999999999999", "at most 1000000000000 Mbps are possible"),
        ("mount {url} {tmp}/m --upload-limit 1.5", "rate '1.5' is no whole number of Mbps"),
        ("format {url} vol --block-size 1M", "cannot update volume block size from 4096 to 1024"),
        ("format {url} vol --compress lz4", "cannot update volume compression"),
        ("format {url} other", "cannot update volume name from vol to other"),
        ("gc {url} --threads many", 'Invalid value "many" for "threads"'),
        ("fsck {url} --path relative", "an absolute path in the volume is wanted"),
        ("fsck {url} --path /nothing", "path /nothing: No such file or directory"),
        ("mount {url} {tmp}/m --buffer-size 3Q", 'Invalid value "3Q" for "buffer-size"'),
        ("mount {url} {tmp}/m --free-space-ratio half", 'Invalid value "half" for "free-space-ratio"'),
        ("mount {url} {tmp}/m --buffer-size -5", 'Invalid value "-5" for "buffer-size"'),
        ("mount {url} {tmp}/m --io-retries -1", 'Invalid value "-1" for "io-retries"'),
        ("mount {url} {tmp}/m --max-uploads many", 'Invalid value "many" for "max-uploads": not a whole number'),
        ("config {url} --upload-limit -5", 'Invalid value "-5" for "upload-limit"'),
        ("mount {url} {tmp}/m --writeback --cache-dir {tmp}/none*", "--writeback keeps blocks in a cache folder"),
        ("mount {url} {tmp}/m --writeback --cache-dir memory", "--writeback keeps blocks in a cache folder"),
        ("mount {url} {tmp}/m --writeback --cache-size 0", "--writeback keeps blocks in a cache folder"),
        ("mount {url} {tmp}/m -o frob=1", 'unknown mount option: "frob=1"'),
        ("mount {url} /", "cannot mount on /"),
        ("umount {tmp}", "failed to unmount"),
        ("umount {tmp}/nothing", "No such file or directory"),
        ("umount --flush {tmp}", "is not a JuiceFS mount point: nothing was flushed or unmounted"),
        ("umount --flush {tmp}/nothing", "No such file or directory"),
        ("fsck {url} --verify --cache-dir {tmp}/none", "none does not exist: name one that a mount has cached"),
        ("fsck {url} --verify --cache-dir /etc/passwd", "cache folder /etc/passwd is not a folder"),
        ("fsck {url} --verify --cache-dir memory", "cache folder memory does not exist"),
        ("config {url} --bucket=", 'Invalid value "" for "bucket"'),
        ("config {url} --storage=", 'Invalid value "" for "storage"'),
        ("config {url} --trash-days 0", "Aborted: there is nobody to answer; --yes answers all questions."),
    ],
)
def test_options_and_urls(volume: Volume, tmp_path: Path, line: str, message: str) -> None:
    before = snapshot(volume.store)
    words = [word.format(url=volume.url, tmp=tmp_path) for word in line.split()]
    assert message in refused(*words)
    assert snapshot(volume.store) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["mount {url}", "umount", "compact", "status", "format {url}"])
def test_an_empty_argument_is_no_path(volume: Volume, command: str) -> None:
    """It is what a script's variable that is not set leaves; the current directory is not meant."""
    assert "an argument is empty; wanted: jfs " in refused(*command.format(url=volume.url).split(), "")


def test_secrets_are_masked(tmp_path: Path) -> None:
    done = JFS.run("status", "redis://user:secret@host/1", ok=False)
    assert "secret" not in done.stderr
    assert "user:****@host" in done.stderr


@pytest.mark.parametrize(
    "line",
    ["status {url}", "config {url}", "gc {url}", "fsck {url}", "mount {url} {tmp}/m", "mount -d {url} {tmp}/m"],
)
def test_unformatted(tmp_path: Path, line: str) -> None:
    words = [word.format(url=f"sqlite3://{tmp_path}/none.db", tmp=tmp_path) for word in line.split()]
    assert "database is not formatted" in refused(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "config", "gc", "fsck"])
def test_a_file_that_is_no_database(tmp_path: Path, command: str) -> None:
    (tmp_path / "junk.db").write_bytes(b"junk" * 5000)
    assert "file is not a database" in refused(command, f"sqlite3://{tmp_path}/junk.db")
    assert snapshot(tmp_path) == {tmp_path / "junk.db": b"junk" * 5000}


def test_a_database_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("create table t (x)")
    connection.commit()
    connection.close()
    before = snapshot(tmp_path)
    url = f"sqlite3://{tmp_path}/other.db"
    assert "a database of another program" in refused("status", url)
    assert "a database of another program" in refused("format", url, "vol", "--bucket", tmp_path / "store")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("AB", "invalid name"),
        ("vol --block-size 4Q", 'Invalid value "4Q" for "block-size"'),
        ("vol --compress gzip", 'Invalid value "gzip" for "compress"'),
        ("vol --storage gluster", "storage gluster is not supported; supported: file, mem, s3, minio"),
        ("vol --storage frob", "invalid storage"),
        ("vol --trash-days -1", 'Invalid value "-1" for "trash-days"'),
        ("vol --encrypt-rsa-key /nothing.pem", "load RSA key from /nothing.pem: No such file or directory"),
        ("vol --bucket /proc/nothing", "cannot find or create the bucket"),
    ],
)
def test_format_makes_nothing_of_bad_input(tmp_path: Path, flags: str, message: str) -> None:
    words = flags.split()
    if "--bucket" not in words:
        words += ["--bucket", f"{tmp_path}/store"]
    assert message in refused("format", f"sqlite3://{tmp_path}/meta.db", *words)
    assert list(tmp_path.iterdir()) == []


def test_format_needs_a_place_for_the_database(tmp_path: Path) -> None:
    said = refused("format", f"sqlite3://{tmp_path}/none/meta.db", "vol", "--bucket", tmp_path / "store")
    assert f"folder {tmp_path}/none does not exist" in said
    assert list(tmp_path.iterdir()) == []


def test_format_wants_an_empty_bucket(tmp_path: Path) -> None:
    (tmp_path / "store/vol").mkdir(parents=True)
    (tmp_path / "store/vol/precious").write_bytes(b"data")
    before = snapshot(tmp_path)
    said = refused("format", f"sqlite3://{tmp_path}/meta.db", "vol", "--bucket", tmp_path / "store")
    assert "is not empty (it holds precious)" in said
    assert snapshot(tmp_path) == before


def test_a_newer_metadata_version(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path)
    connection = sqlite3.connect(volume.database)
    connection.execute("""update jfs_setting set value = replace(value, '"MetaVersion": 1', '"MetaVersion": 2')""")
    connection.commit()
    connection.close()
    for command in ("status", "gc", "fsck"):
        assert "version" in refused(command, volume.url)
    assert "version" in refused("mount", volume.url, tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("update jfs_node set mode = 'x' where inode = 1", "corrupt record node 1"),
        ("update jfs_node set type = 99 where inode = 1", "corrupt record node 1"),
        ("delete from jfs_node where inode = 1", "the root directory of the volume cannot be read"),
        ("update jfs_counter set value = 'abc' where name = 'usedSpace'", "corrupt record counter usedSpace"),
        ("update jfs_setting set value = '{'", "corrupt record setting"),
    ],
)
@pytest.mark.parametrize("mode", [["-f"], ["-d", "--log", "log"]])
def test_a_mount_names_the_record_that_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str, mode: list[str]
) -> None:
    volume = format_volume(JFS, tmp_path)
    monkeypatch.chdir(tmp_path)
    connection = sqlite3.connect(volume.database)
    connection.execute(change)
    connection.commit()
    connection.close()
    assert message in refused("mount", volume.url, tmp_path / "m", *mode)
    assert not is_mounted(tmp_path / "m")


def test_a_mount_in_the_background_says_why_it_failed(volume: Volume, tmp_path: Path) -> None:
    said = refused("mount", "-d", "--log", tmp_path / "log", "--subdir", "n" * 256, volume.url, tmp_path / "m")
    assert re.search(rf'^subdir .*: File name too long; please check the log \("{tmp_path}/log"\)$', said)
    assert "File name too long" in (tmp_path / "log").read_text()


def test_a_malformed_time_limit(volume: Volume, tmp_path: Path) -> None:
    said = refused("mount", "-d", volume.url, tmp_path / "m", JFS_MOUNT_TIMEOUT="soon")
    assert said == 'Invalid value "soon" for JFS_MOUNT_TIMEOUT: seconds are wanted'
    assert not is_mounted(tmp_path / "m")


def test_a_busy_or_full_mount_point(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "is not empty" in refused("mount", volume.url, tmp_path)
    assert "cannot be used: Not a directory" in refused("mount", volume.url, tmp_path / "file/m")
    with volume.mounted(JFS) as mount:
        assert "is busy" in refused("mount", volume.url, mount.path)
        assert "is busy" in refused("mount", "-d", volume.url, mount.path)


def test_unknown_command_and_wrong_count(volume: Volume) -> None:
    done = JFS.run("frob", ok=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "No help topic for 'frob'\n")
    done = JFS.run("format", volume.url, ok=False)
    assert done.returncode == 1
    assert done.stdout.startswith("ERROR: This command requires at least 2 arguments\nUSAGE:\n   jfs format ")
    done = JFS.run("status", volume.url, "x", ok=False)
    assert done.stdout.startswith("ERROR: This command accepts at most 1 arguments but got [")


@pytest.mark.parametrize("name", ["warmup", "info", "destroy", "clone", "quota"])
def test_commands_of_the_peer_that_are_not_there_yet(name: str) -> None:
    done = JFS.run(name, "/mnt/x", "--flag", ok=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"command {name} is not supported yet\n")


def test_flushing_what_is_no_volume_unmounts_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        assert "is not a JuiceFS mount point" in refused("umount", "--flush", tmp_path)
        assert is_mounted(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_mount_that_has_died_is_not_flushed(tmp_path: Path) -> None:
    volume = format_volume(JFS, tmp_path)
    with volume.mounted(JFS) as mount:
        mount.kill()
        assert "the mount does not answer, so nothing can be flushed" in refused("umount", "--flush", mount.path)
        assert is_mounted(mount.path)
        JFS.run("umount", mount.path)
        assert not is_mounted(mount.path)


@pytest.mark.parametrize("line", ["", "-h", "--help", "mount -h", "format --help"])
def test_help_goes_to_stdout(line: str) -> None:
    done = JFS.run(*line.split())
    assert "USAGE" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("true", "/dev/fuse is missing"),
        ("mknod -m 600 /dev/fuse c 10 229", "/dev/fuse may not be opened by this user"),
    ],
)
def test_fuse_missing(volume: Volume, tmp_path: Path, device: str, why: str) -> None:
    """In a mount name space of its own, where /dev has no FUSE or one that root alone, with its powers, may open."""
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", f'mount -t tmpfs none /dev && {device} && chown -f 1 /dev/fuse; "$@"', "sh"),
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
            *(JFS.binary, "mount", volume.url, tmp_path / "m"),
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.PIPE,
    )
    assert done.returncode == 1
    assert f"FUSE is not available: {why}" in done.stderr
    assert list(tmp_path.iterdir()) == []
