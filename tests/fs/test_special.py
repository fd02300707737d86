"""What is not a plain file: devices, sockets, attributes, permissions, the volume's own figures and files."""

import errno
import json
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.fs.conftest import CLIENT, Places
from tests.mounts import Mount, Volume, format_volume
from tests.trees import outcome, sh, snapshot

USER = 54321


def test_fifo_carries_bytes(room: Path) -> None:
    os.mkfifo(room / "pipe")
    writer = threading.Thread(target=lambda: (room / "pipe").write_bytes(b"through the pipe"))
    writer.start()
    assert (room / "pipe").read_bytes() == b"through the pipe"
    writer.join()


def test_socket_answers(room: Path) -> None:
    folder = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
    address = f"/proc/self/fd/{folder}/sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(address)
        server.listen()
        client.connect(address)
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
    assert stat.S_ISSOCK(os.stat(room / "sock").st_mode)
    os.close(folder)


def test_devices(places: Places) -> None:
    for place in places:
        os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(place / "loop", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        os.mknod(place / "high", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
        os.mknod(place / "file", stat.S_IFREG | 0o640)
    assert snapshot(places.mounted, times=False) == snapshot(places.local, times=False)


XATTR_CASES: dict[str, Callable[[Path], object]] = {
    "get": lambda f: os.getxattr(f, "user.a"),
    "list": lambda f: sorted(os.listxattr(f)),
    "missing": lambda f: os.getxattr(f, "user.none"),
    "remove": lambda f: (os.removexattr(f, "user.a"), os.listxattr(f)),
    "remove missing": lambda f: os.removexattr(f, "user.none"),
    "create over": lambda f: os.setxattr(f, "user.a", b"2", os.XATTR_CREATE),
    "replace": lambda f: (os.setxattr(f, "user.a", b"2", os.XATTR_REPLACE), os.getxattr(f, "user.a")),
    "replace missing": lambda f: os.setxattr(f, "user.none", b"2", os.XATTR_REPLACE),
    "empty value": lambda f: (os.setxattr(f, "user.e", b""), os.getxattr(f, "user.e")),
    "binary": lambda f: (os.setxattr(f, "user.b", bytes(range(256))), os.getxattr(f, "user.b")),
    "long value": lambda f: (os.setxattr(f, "user.l", b"v" * 3000), len(os.getxattr(f, "user.l"))),
    "long name": lambda f: (os.setxattr(f, "user." + "n" * 250, b"v"), len(os.listxattr(f))),
    "too long a name": lambda f: os.setxattr(f, "user." + "n" * 251, b"v"),
    "trusted": lambda f: (os.setxattr(f, "trusted.t", b"v"), os.getxattr(f, "trusted.t")),
    "on directory": lambda f: (os.setxattr(f.parent, "user.d", b"v"), os.listxattr(f.parent)),
}


@pytest.mark.parametrize("case", XATTR_CASES)
def test_xattrs(places: Places, case: str) -> None:
    results = []
    for place in places:
        (place / "f").write_text("x")
        os.setxattr(place / "f", "user.a", b"1")
        results.append(outcome(lambda place=place: XATTR_CASES[case](place / "f")))
    assert results[0] == results[1]


PERMISSION_CASES = {
    "read a private file": "cat private",
    "write a public file": "echo more >>public",
    "write a readable file": "echo more >>readable",
    "create in a private directory": "touch closed/new",
    "list a private directory": "ls closed",
    "pass through an x-only directory": "cat passage/inner",
    "list an x-only directory": "ls passage",
    "create in an open directory": "touch open/new",
    "remove another's file in a sticky directory": "rm -f sticky/root",
    "remove an own file in a sticky directory": "rm -f sticky/own",
    "rename another's file in a sticky directory": "mv sticky/root sticky/x",
    "chmod of another's file": "chmod 777 public",
    "chown to someone": "chown 1 sticky/own",
    "chgrp to an own group": f"chgrp {USER} sticky/own",
    "touch another's file that may be written": "touch public",
    "set another's times": "touch -d 2001-01-01 public",
    "group may read": "cat group",
    "execute": "./script",
    "execute without the bit": "./public",
    "link another's file": "ln private sticky/hard",
}


def plant_permissions(place: Path) -> None:
    sh(
        "echo x >private; chmod 600 private; echo x >public; chmod 666 public; echo x >readable; chmod 644 readable;"
        f"echo x >group; chmod 640 group; chgrp {USER} group; printf '#!/bin/sh\necho ran\n' >script; chmod 755 script;"
        "mkdir closed passage open sticky; touch passage/inner sticky/root sticky/own;"
        f"chmod 700 closed; chmod 711 passage; chmod 777 open; chmod 1777 sticky; chown {USER}:{USER} sticky/own; chmod 755 .",
        place,
    )


@pytest.mark.parametrize("case", PERMISSION_CASES)
def test_permissions_of_another_user(places: Places, case: str) -> None:
    results = []
    for place in places:
        plant_permissions(place)
        done = subprocess.run(
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "sh", "-c", PERMISSION_CASES[case]],
            cwd=place,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
        results.append((done.returncode, done.stdout, done.stderr))
    assert results[0] == results[1]
    assert snapshot(places.mounted, times=False) == snapshot(places.local, times=False)


@pytest.mark.parametrize("action", ["echo more >>tool", "truncate -s 1 tool", f"chown {USER} tool"])
def test_setuid_goes_when_the_file_changes(places: Places, action: str) -> None:
    modes = []
    for place in places:
        sh(f"echo x >tool; chown {USER}:{USER} tool; chmod 6777 tool; chmod 777 .", place)
        user = 0 if action.startswith("chown") else 4242
        subprocess.run(["setpriv", f"--reuid={user}", "--clear-groups", "sh", "-c", action], cwd=place, check=True)
        modes.append(stat.filemode((place / "tool").stat().st_mode))
    assert modes[0] == modes[1]


def test_statvfs(mount: Mount, room: Path) -> None:
    before = os.statvfs(mount.path)
    assert (before.f_bsize, before.f_frsize, before.f_namemax) == (4096, 4096, 255)
    assert before.f_blocks >= before.f_bfree == before.f_bavail > 0
    (room / "f").write_bytes(bytes(40 << 20))

    def grown() -> bool:
        used = (before.f_bfree - os.statvfs(mount.path).f_bfree) * 4096
        return used >= 40 << 20

    eventually(grown, 30, "statvfs shows 40 MiB more in use")


def test_blocks_and_block_size(room: Path) -> None:
    (room / "f").write_bytes(b"x" * 10_000)
    attr = (room / "f").stat()
    assert attr.st_size == 10_000
    assert attr.st_blocks * 512 >= 10_000
    assert attr.st_blksize == 65536
    assert room.stat().st_size == 4096


def test_kernel_shows_the_volume(mount: Mount) -> None:
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {mount.path} " in line)
    assert line.startswith(f"JuiceFS:fs-tests {mount.path} fuse.juicefs rw,")
    assert "allow_other" in line
    assert "default_permissions" in line
    assert mount.path.stat().st_ino == 1


def test_config_file(mount: Mount, fs_volume: Volume) -> None:
    attr = (mount.path / ".config").stat()
    assert stat.filemode(attr.st_mode) == "-r--------"
    config = json.loads((mount.path / ".config").read_text())
    assert config["Format"]["Name"] == "fs-tests"
    assert config["Pid"] in mount.pids()
    assert config["Meta"]["Sid"] >= 1


def test_stats_file(mount: Mount, room: Path) -> None:
    (room / "f").write_text("count me")
    lines = dict(line.rsplit(" ", 1) for line in (mount.path / ".stats").read_text().splitlines())
    assert float(lines["juicefs_uptime"]) > 0
    assert float(lines["juicefs_fuse_ops_total_create"]) >= 1


def test_access_log(mount: Mount, room: Path) -> None:
    with (mount.path / ".accesslog").open("rb", buffering=0) as log:
        (room / "seen-in-the-log").write_text("x")
        lines: list[bytes] = []

        def seen() -> bool:
            lines.extend(log.read(65536).splitlines())
            return any(b" create (" in line and b"seen-in-the-log" in line and b"- OK <" in line for line in lines)

        eventually(seen, 30, f"the create in the access log: {lines[-5:]}")


def test_control_file_refuses_what_it_does_not_know(mount: Mount) -> None:
    with (mount.path / ".control").open("r+b", buffering=0) as control:
        control.write((4711).to_bytes(4, "big") + (0).to_bytes(4, "big"))
        answer = eventually(lambda: control.read(1), 30, "an answer to the unknown command")
        assert answer == bytes([errno.EINVAL])


def test_own_files_cannot_be_replaced(mount: Mount) -> None:
    for name in (".config", ".stats", ".control", ".accesslog"):
        with pytest.raises(OSError) as caught:
            os.unlink(mount.path / name)
        assert caught.value.errno in (errno.EPERM, errno.EACCES)
    with pytest.raises(OSError) as caught:
        (mount.path / ".trash/x").touch()
    assert caught.value.errno in (errno.EPERM, errno.EACCES)


def test_trash_keeps_what_was_removed(tmp_path: Path) -> None:
    volume = format_volume(CLIENT, tmp_path, "with-trash", "--trash-days", "1")
    with volume.mounted(CLIENT) as mount:
        room = mount.path / "room"
        room.mkdir()
        (room / "precious").write_text("kept")
        inode, parent = (room / "precious").stat().st_ino, room.stat().st_ino
        os.unlink(room / "precious")
        found = [path for path in (mount.path / ".trash").glob("*/*") if path.name == f"{parent}-{inode}-precious"]
        assert len(found) == 1
        assert found[0].read_text() == "kept"
        os.rename(found[0], room / "back")
        assert (room / "back").read_text() == "kept"


def test_two_mounts_close_to_open(mount: Mount, fs_volume: Volume, room: Path) -> None:
    """What one mount closed or fsynced, another sees when it opens; removed names go within a second."""
    with fs_volume.mounted(CLIENT, at=fs_volume.folder / "second") as second:
        there = second.path / room.name
        (room / "f").write_bytes(b"first version")
        assert (there / "f").read_bytes() == b"first version"
        (there / "f").write_bytes(b"second, longer version" * 10_000)
        assert (room / "f").read_bytes() == b"second, longer version" * 10_000
        with (room / "f").open("r+b", buffering=0) as file:
            file.write(b"SYNC")
            os.fsync(file.fileno())
            assert (there / "f").read_bytes()[:6] == b"SYNCnd"
        (there / "sub").mkdir()
        (there / "sub/x").write_text("x")
        eventually((room / "sub/x").exists, 15, "the other mount's directory")
        os.rename(there / "sub/x", room.parent / second.path / room.name / "y")
        os.unlink(there / "f")
        eventually(lambda: sorted(os.listdir(room)) == ["sub", "y"] and not (room / "f").exists(), 15, "removal seen")
        assert (room / "y").read_text() == "x"
        for number in range(20):
            (room / "ping").write_text(f"{number}" * 100)
            assert (there / "ping").read_text() == f"{number}" * 100
            (there / "ping").write_text(f"{number}" * 50)
            assert (room / "ping").read_text() == f"{number}" * 50


def test_two_mounts_append_apart(mount: Mount, fs_volume: Volume, room: Path) -> None:
    """Names made by two mounts at once are all there, and none twice."""
    with fs_volume.mounted(CLIENT, at=fs_volume.folder / "second") as second:
        places = [room, second.path / room.name]
        threads = [
            threading.Thread(
                target=lambda who=who: [(places[who] / f"{who}-{n}").write_text(f"{n}") for n in range(150)]
            )
            for who in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = sorted(f"{who}-{n}" for who in range(2) for n in range(150))
        for place in places:
            eventually(lambda place=place: sorted(os.listdir(place)) == expected, 15, f"all names in {place}")
            assert all((place / name).read_text() == name.partition("-")[2] for name in expected)
        inodes = {(room / name).stat().st_ino for name in expected}
        assert len(inodes) == 300
