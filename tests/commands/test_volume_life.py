"""A volume's life by the commands: format, config, status, mount in the background, signals, umount."""

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.mounts import JFS, PEER, Volume, format_volume, is_mounted


@contextmanager
def background_mount(volume: Volume, *words: str, program: str = "jfs", **env: str) -> Generator[Path, None, None]:
    """`mount -d` (or mount.juicefs); unmounted at the end if that was not done."""
    path = volume.folder / "bg"
    binary = Path(JFS.binary).with_name(program)
    command = ["mount", "-d", "--log", str(volume.folder / "bg.log")] if program == "jfs" else []
    done = subprocess.run(
        [binary, *command, volume.url, path, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    try:
        assert done.returncode == 0, done
        assert re.search(rf'<INFO>: \033\[92mOK\033\[0m, {volume.name} is ready at "{path}"', done.stderr)
        assert os.stat(path).st_ino == 1
        yield path
    finally:
        subprocess.run(["umount", "-l", path], capture_output=True)
        eventually(lambda: sessions(volume) == [], 30, "the session ended")


def sessions(volume: Volume) -> list[int]:
    return [session["Sid"] for session in json.loads(JFS.run("status", volume.url).stdout)["Sessions"]]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return format_volume(JFS, tmp_path)


def test_status_and_config_print_what_the_peer_prints(volume: Volume) -> None:
    assert JFS.run("config", volume.url).stdout == PEER.run("config", volume.url).stdout
    assert JFS.run("status", volume.url).stdout == PEER.run("status", volume.url).stdout


def test_status_is_quick(volume: Volume) -> None:
    """In processor time, which other work on the machine adds little to, and by the best of some."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        JFS.run("status", volume.url)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(once() < 0.25 for _ in range(20))


def test_format_again_changes_what_is_given_and_only_that(volume: Volume) -> None:
    before = json.loads(JFS.run("config", volume.url).stdout)
    JFS.run("format", volume.url, volume.name, "--trash-days", "3", "--capacity", "10")
    JFS.run("format", volume.url, volume.name, "--inodes", "500", "--no-update")
    after = json.loads(JFS.run("config", volume.url).stdout)
    assert after == {**before, "TrashDays": 3, "Capacity": 10 << 30}


def test_format_by_force_keeps_the_uuid_and_changes_the_rest(volume: Volume) -> None:
    before = json.loads(JFS.run("config", volume.url).stdout)
    JFS.run("format", volume.url, volume.name, "--force", "--bucket", volume.store, "--compress", "lz4")
    after = json.loads(JFS.run("config", volume.url).stdout)
    assert (after["UUID"], after["Compression"]) == (before["UUID"], "lz4")


def test_config_says_what_it_changed(volume: Volume) -> None:
    done = JFS.run("config", volume.url, "--capacity", "10", "--inodes", "100", "--trash-days", "2")
    assert done.stdout == "  capacity: 0 B -> 10 GiB\n    inodes: 0 -> 100\ntrash-days: 1 -> 2\n"
    assert JFS.run("config", volume.url, "--inodes", "100").stdout == "Nothing changed.\n"
    done = JFS.run("config", volume.url, "--upload-limit", "100", "--download-limit", "1.5G")
    assert done.stdout == "upload-limit: 0.0 Mbps -> 100.0 Mbps\ndownload-limit: 0.0 Mbps -> 1.5 Gbps\n"


def test_config_asks_before_the_trash_is_off(volume: Volume) -> None:
    done = subprocess.run(
        [JFS.binary, "config", volume.url, "--trash-days", "0"], input="n\n", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "<FATAL>: Aborted." in done.stderr
    assert "Proceed anyway? [y/N]: " in done.stdout
    assert json.loads(JFS.run("config", volume.url).stdout)["TrashDays"] == 1
    JFS.run("config", volume.url, "--trash-days", "0", "--yes")
    assert json.loads(JFS.run("config", volume.url).stdout)["TrashDays"] == 0


def test_a_mount_in_the_background(volume: Volume) -> None:
    with background_mount(volume) as path:
        (path / "f").write_text("hi\n")
        assert (path / "f").read_text() == "hi\n"
        [line] = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {path} " in line]
        assert line.startswith(f"JuiceFS:{volume.name} {path} fuse.juicefs rw,")
        config = json.loads((path / ".config").read_text())
        status = json.loads(JFS.run("status", volume.url).stdout)
        assert [session["ProcessID"] for session in status["Sessions"]] == [config["Pid"]]
        assert status["Sessions"][0]["MountPoint"] == str(path)
        assert json.loads(JFS.run("status", volume.url, "-s", str(status["Sessions"][0]["Sid"])).stdout)["Sid"]
        done = JFS.run("umount", path)
        assert done.stdout == ""
    log = (volume.folder / "bg.log").read_text()
    for words in ("Meta address: ", "Data use file://", "Create session 1 OK", f"Mounting volume {volume.name} at "):
        assert words in log
    assert not re.search("<(WARNING|ERROR|FATAL)>|Traceback", log)


def test_a_busy_mount_is_unmounted_by_force_only(volume: Volume) -> None:
    with background_mount(volume) as path:
        with (path / "open").open("w") as file:
            file.write("kept")
            done = JFS.run("umount", path, ok=False)
            assert done.returncode == 1
            assert re.search("<FATAL>: .*[Bb]usy", done.stderr)
            JFS.run("umount", "--force", path)
            assert not is_mounted(path)
    with background_mount(volume) as path:
        assert (path / "open").read_text() == "kept"


def test_as_mount_juicefs(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    log = volume.folder / "helper.log"
    with background_mount(volume, "-o", f"_netdev,log={log},read-only", program="mount.juicefs") as path:
        with pytest.raises(OSError, match="Read-only file system"):
            (path / "f").write_text("x")


def test_a_relative_database(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(volume.folder)
    path = volume.folder / "bg"
    JFS.run("mount", "-d", "sqlite3://meta.db", "bg", "--log", "bg.log")
    assert os.stat(path).st_ino == 1
    JFS.run("umount", "bg")
    eventually(lambda: sessions(volume) == [], 30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_well(volume: Volume, number: signal.Signals) -> None:
    with volume.mounted(JFS) as mount:
        with (mount.path / "f").open("w") as file:
            file.write("x" * 100_000)
        mount.process.send_signal(number)
        assert mount.process.wait(60) == 0
        assert not is_mounted(mount.path)
    assert sessions(volume) == []
    JFS.run("fsck", volume.url)


def test_a_signal_while_a_file_is_open_stores_what_was_written(volume: Volume) -> None:
    with volume.mounted(JFS) as mount:
        fd = os.open(mount.path / "f", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x" * 100_000)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(60) == 0
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.write(fd, b"y")
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.close(fd)
    with volume.mounted(JFS) as mount:
        assert (mount.path / "f").read_bytes() == b"x" * 100_000


def test_a_mount_that_cannot_store_its_last_writes_says_so(volume: Volume) -> None:
    expected = [
        "flushing 1 objects to disk",
        "sync failed",
        "the mount did not end in order, what was written last may",
    ]
    with volume.mounted(JFS, expect_log=expected) as mount:
        (mount.path / "f").write_bytes(b"x" * 100_000)
        away = volume.store.rename(volume.folder / "away")
        volume.store.write_bytes(b"")
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(60) == 1
        assert not is_mounted(mount.path)
        assert len(re.findall("<FATAL>", mount.log.read_text())) == 1
    volume.store.unlink()
    away.rename(volume.store)
    assert sessions(volume) == []


def test_a_dead_mount_point_is_replaced(volume: Volume) -> None:
    with volume.mounted(JFS) as mount:
        (mount.path / "f").write_text("kept")
        mount.kill()
        with volume.mounted(JFS, at=mount.path, expect_log=["was left by a mount that died", "stale"]) as again:
            assert (again.path / "f").read_text() == "kept"


def test_a_mount_whose_volume_is_formatted_anew_ends_with_an_error(volume: Volume) -> None:
    with volume.mounted(JFS, "--heartbeat", "1", expect_log=["formatted again"]) as mount:
        changed = 'update jfs_setting set value = replace(value, \'"UUID": "\', \'"UUID": "0\')'
        import sqlite3

        with sqlite3.connect(volume.database, timeout=60) as connection:
            connection.execute(changed)
        connection.close()
        assert mount.process.wait(60) != 0


@pytest.mark.parametrize("words", ["version", "--version", "-V"])
def test_version_as_scripts_parse_it(words: str) -> None:
    assert re.fullmatch(r"juicefs version \d+\.\d+\.\d+\+jfs-\d+\.\d+\.\d+\n", JFS.run(words).stdout)
