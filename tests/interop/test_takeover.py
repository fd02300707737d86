"""A volume that one program formats and fills is taken over by the other, and given back."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import assert_clean
from tests.interop.work import first_hand, second_hand, settle_times
from tests.mounts import JFS, PEER, Client, Volume, format_volume
from tests.trees import Node, snapshot

LAYOUTS = {
    "plain": (),
    "lz4": ("--compress", "lz4"),
    "zstd and hash prefix": ("--compress", "zstd", "--hash-prefix"),
    "small blocks and no trash": ("--block-size", "256K", "--trash-days", "0"),
}


def fill(volume: Volume, client: Client, work: Callable[[Path], None]) -> dict[str, Node]:
    """Do some work on a mount; what the program itself shows then."""
    with volume.mounted(client, "--enable-xattr") as mount:
        room = mount.path / "room"
        room.mkdir(exist_ok=True)
        work(room)
        settle_times(room)
        return snapshot(room)


def hand_over(volume: Volume, pair: tuple[Client, Client], folder: Path, *, trash: bool = True) -> None:
    """The first program works on the volume, the second goes on, the first sees it all; so does a directory in `folder`."""
    first, second = pair
    local = folder / "local"
    local.mkdir()
    first_hand(local)
    settle_times(local)
    expected = snapshot(local)
    assert fill(volume, first, first_hand) == expected
    with volume.mounted(second, "--enable-xattr") as mount:
        assert snapshot(mount.path / "room") == expected
    assert_clean(volume)

    second_hand(local)
    if trash:
        os.link(local / "docs/small", folder / "in the trash")  # a removed hard link still counts there
    settle_times(local)
    expected = snapshot(local)
    assert fill(volume, second, second_hand) == expected
    with volume.mounted(first, "--enable-xattr") as mount:
        assert snapshot(mount.path / "room") == expected
    assert_clean(volume)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(
    tmp_path: Path, pair: tuple[Client, Client], layout: str, new_address: Callable[[], str]
) -> None:
    volume = format_volume(pair[0], tmp_path / "v", "shared", *LAYOUTS[layout])
    hand_over(volume, pair, tmp_path, trash="no trash" not in layout)


def dumped_nodes(tree: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """The dump's tree by path."""
    nodes = {prefix or ".": {key: value for key, value in tree.items() if key != "entries"}}
    for name, entry in tree.get("entries", {}).items():
        nodes |= dumped_nodes(entry, f"{prefix}/{name}" if prefix else name)
    return nodes


def dump(volume: Volume) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(PEER.run("dump", volume.url).stdout)
    return parsed


KINDS = {"regular": "-", "directory": "d", "symlink": "l", "fifo": "p", "chardev": "c", "blockdev": "b", "socket": "s"}


def test_dump_tells_what_the_mount_shows(tmp_path: Path, new_address: Callable[[], str]) -> None:
    volume = format_volume(JFS, tmp_path, "dumped", address=new_address())
    with volume.mounted(JFS, "--enable-xattr") as mount:
        room = mount.path / "room"
        room.mkdir()
        first_hand(room)
        second_hand(room)
        seen = snapshot(room)
        shown = {name: os.lstat(room / name) for name in seen}
    nodes = dumped_nodes(dump(volume)["FSTree"]["entries"]["room"])
    assert set(nodes) - {"."} == set(shown)
    for name, attr in shown.items():
        told = nodes[name]["attr"]
        assert told["inode"] == attr.st_ino, name
        assert (KINDS[told["type"]], told["mode"]) == (seen[name].kind, stat.S_IMODE(attr.st_mode)), name
        assert (told["uid"], told["gid"], told["nlink"]) == (attr.st_uid, attr.st_gid, attr.st_nlink), name
        assert told["length"] == (0 if seen[name].kind in "dpcl" else attr.st_size) or seen[name].kind == "d", name
        for which in ("atime", "mtime", "ctime"):
            assert told[which] * 10**9 + told.get(f"{which}nsec", 0) == getattr(attr, f"st_{which}_ns"), (name, which)
        assert nodes[name].get("symlink", "") == (seen[name].content if seen[name].kind == "l" else ""), name
        assert {x["name"] for x in nodes[name].get("xattrs", [])} == {key for key, _ in seen[name].xattrs}, name


def facts(volume: Volume) -> dict[str, Any]:
    """What must not depend on who did the work."""
    full = dump(volume)
    nodes = dumped_nodes(full["FSTree"])
    plain = {
        name: (
            *(node["attr"].get(key) for key in ("type", "mode", "uid", "gid", "nlink", "length", "rdev")),
            node.get("symlink"),
            node.get("xattrs"),
            [(chunk["index"]) for chunk in node.get("chunks", [])],
        )
        for name, node in nodes.items()
    }
    trashed = sorted(
        name.rpartition("/")[2].split("-")[2] for name in dumped_nodes(full["Trash"]) if name.count("/") == 1
    )
    counters = {key: full["Counters"][key] for key in ("usedSpace", "usedInodes")}
    return {"nodes": plain, "trash": trashed, "counters": counters, "left": (full["Sustained"], full["DelFiles"])}


def test_both_leave_the_same_records(tmp_path: Path, new_address: Callable[[], str]) -> None:
    volumes = []
    for client in (JFS, PEER):
        volume = format_volume(client, tmp_path / client.name, "same", address=new_address())
        fill(volume, client, first_hand)
        fill(volume, client, second_hand)
        volumes.append(volume)
    ours, theirs = (facts(volume) for volume in volumes)
    assert ours == theirs


def test_settings_are_told_alike(tmp_path: Path, pair: tuple[Client, Client], new_address: Callable[[], str]) -> None:
    first, second = pair
    flags = ("--capacity", "3", "--inodes", "1000", "--trash-days", "7", "--compress", "lz4", "--hash-prefix")
    volume = format_volume(first, tmp_path, "settings", *flags, address=new_address())
    tell = [(client.run("config", volume.url).stdout, client.run("status", volume.url).stdout) for client in pair]
    assert tell[0] == tell[1]
    changed = second.run("config", volume.url, "--capacity", "5", "--trash-days", "2")
    assert changed.stdout.split() == ["capacity:", "3.0", "GiB", "->", "5.0", "GiB", "trash-days:", "7", "->", "2"]
    tell = [(client.run("config", volume.url).stdout, client.run("status", volume.url).stdout) for client in pair]
    assert tell[0] == tell[1]
    setting = json.loads(tell[0][0])
    assert (setting["Capacity"], setting["TrashDays"]) == (5 << 30, 2)


def test_limits_of_the_other_hold(tmp_path: Path, new_address: Callable[[], str]) -> None:
    volume = format_volume(PEER, tmp_path, "limits", "--inodes", "40", address=new_address())
    with volume.mounted(JFS) as mount:
        made = 0
        with pytest.raises(OSError, match="No space left on device"):
            for made in range(100):
                (mount.path / f"{made}").touch()
        assert made == 40
    assert_clean(volume)
