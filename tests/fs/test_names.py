"""Names: directories, links, renames and their errors, each beside the local disk."""

import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.conftest import Places
from tests.mounts import Volume
from tests.trees import outcome, snapshot

AT_FDCWD = -100
NOREPLACE, EXCHANGE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def plant(place: Path) -> None:
    """What the cases below work on."""
    for folder in ("dir", "full", "full/sub"):
        (place / folder).mkdir()
    for name in ("file", "other", "full/inner"):
        (place / name).write_text(name)
    (place / "link").symlink_to("file")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")


CASES: dict[str, Callable[[Path], object]] = {
    "mkdir over file": lambda p: (p / "file").mkdir(),
    "mkdir over dangling": lambda p: (p / "dangling").mkdir(),
    "mkdir below file": lambda p: (p / "file/x").mkdir(),
    "mkdir in nothing": lambda p: (p / "none/x").mkdir(),
    "rmdir full": lambda p: (p / "full").rmdir(),
    "rmdir file": lambda p: (p / "file").rmdir(),
    "rmdir dot": lambda p: os.rmdir(f"{p}/dir/."),
    "rmdir": lambda p: (p / "dir").rmdir(),
    "unlink directory": lambda p: os.unlink(p / "dir"),
    "unlink nothing": lambda p: os.unlink(p / "none"),
    "unlink symlink": lambda p: os.unlink(p / "link"),
    "link": lambda p: (os.link(p / "file", p / "hard"), os.stat(p / "file").st_nlink),
    "link directory": lambda p: os.link(p / "dir", p / "hard"),
    "link over": lambda p: os.link(p / "file", p / "other"),
    "link symlink": lambda p: (os.link(p / "link", p / "hard", follow_symlinks=False), os.readlink(p / "hard")),
    "symlink over": lambda p: os.symlink("x", p / "file"),
    "symlink empty": lambda p: os.symlink("", p / "empty"),
    "symlink long": lambda p: (os.symlink("x" * 4095, p / "long"), os.readlink(p / "long")),
    "symlink loop": lambda p: os.stat(p / "loop"),
    "symlink size": lambda p: os.lstat(p / "link").st_size,
    "readlink of file": lambda p: os.readlink(p / "file"),
    "create through dangling": lambda p: (p / "dangling").write_text("made"),
    "rename": lambda p: os.rename(p / "file", p / "dir/moved"),
    "rename over file": lambda p: os.rename(p / "file", p / "other"),
    "rename to itself": lambda p: os.rename(p / "file", p / "file"),
    "rename file over directory": lambda p: os.rename(p / "file", p / "dir"),
    "rename directory over file": lambda p: os.rename(p / "dir", p / "file"),
    "rename directory over empty": lambda p: os.rename(p / "full", p / "dir"),
    "rename directory over full": lambda p: os.rename(p / "dir", p / "full"),
    "rename into itself": lambda p: os.rename(p / "full", p / "full/sub/x"),
    "rename nothing": lambda p: os.rename(p / "none", p / "x"),
    "rename symlink over file": lambda p: os.rename(p / "link", p / "other"),
    "rename hard links": lambda p: (
        os.link(p / "file", p / "hard"),
        os.rename(p / "file", p / "hard"),
        sorted(os.listdir(p)),
    ),
    "rename directory elsewhere": lambda p: (os.rename(p / "full/sub", p / "dir/sub"), os.stat(p / "dir").st_nlink),
    "noreplace": lambda p: renameat2(p / "file", p / "free", NOREPLACE),
    "noreplace taken": lambda p: renameat2(p / "file", p / "other", NOREPLACE),
    "exchange": lambda p: (renameat2(p / "file", p / "full", EXCHANGE), (p / "full").read_text()),
    "exchange with nothing": lambda p: renameat2(p / "file", p / "none", EXCHANGE),
    "exchange across": lambda p: renameat2(p / "full/sub", p / "file", EXCHANGE),
    "name of 255": lambda p: (p / ("n" * 255)).write_text("x"),
    "name of 256": lambda p: (p / ("n" * 256)).write_text("x"),
    "name of 255 bytes in 85 letters": lambda p: (p / ("\u20ac" * 85)).mkdir(),
    "name of 256 bytes to look up": lambda p: os.stat(p / ("\u20ac" * 85 + "x")),
    "rename to 256": lambda p: os.rename(p / "file", p / ("n" * 256)),
    "any bytes": lambda p: (
        Path(os.fsdecode(os.fsencode(p) + b"/\xff\x01\n \\'\"*")).write_text("x"),
        os.listdir(os.fsencode(p))[0:0],
    ),
    "chmod": lambda p: (os.chmod(p / "file", 0o6751), stat.filemode(os.stat(p / "file").st_mode)),
    "chmod directory": lambda p: (os.chmod(p / "dir", 0o3775), stat.filemode(os.stat(p / "dir").st_mode)),
    "chown": lambda p: (os.chown(p / "file", 1234, 5678), os.chown(p / "link", 5, 6, follow_symlinks=False)),
    "setgid is inherited": lambda p: (
        os.chown(p / "dir", 0, 77),
        os.chmod(p / "dir", 0o2755),
        (p / "dir/sub").mkdir(),
        (p / "dir/file").touch(),
    ),
    "umask": lambda p: (os.close(os.open(p / "new", os.O_CREAT, 0o666)), os.stat(p / "new").st_mode),
    "times": lambda p: (os.utime(p / "file", ns=(1_000_000_007, 2_000_000_009)), os.stat(p / "file").st_mtime_ns),
    "times of a symlink": lambda p: (
        os.utime(p / "link", ns=(5, 6_000_000_001), follow_symlinks=False),
        os.lstat(p / "link").st_mtime_ns,
        os.stat(p / "file").st_mtime_ns > 10**18,
    ),
    "times before 1970": lambda p: (os.utime(p / "file", (-5, -7)), os.stat(p / "file").st_mtime),
    "times of nothing": lambda p: os.utime(p / "none"),
    "fifo": lambda p: (os.mkfifo(p / "pipe", 0o640), stat.filemode(os.stat(p / "pipe").st_mode)),
    "fifo over": lambda p: os.mkfifo(p / "file"),
    "listdir of file": lambda p: os.listdir(p / "file"),
    "stat below file": lambda p: os.stat(p / "file/x"),
    "trailing slash": lambda p: os.stat(f"{p}/file/"),
    "dot dot": lambda p: os.stat(p / "full/sub/../inner").st_size,
    "chdir and make": lambda p: (os.mkdir(os.path.join(os.path.relpath(p), "rel")), (p / "rel").is_dir()),
}


@pytest.mark.parametrize("case", CASES)
def test_as_on_the_local_disk(places: Places, case: str) -> None:
    results, trees = [], []
    for place in places:
        plant(place)
        results.append(outcome(lambda place=place: CASES[case](place)))
        trees.append(snapshot(place, times=False))
    assert results[0] == results[1]
    assert trees[0] == trees[1]


def test_times_move_as_posix_says(room: Path) -> None:
    """Which of the parent's and the file's times each call moves."""
    (room / "d").mkdir()
    path = room / "d/f"

    def moves(action: Callable[[], object], watched: Path) -> str:
        before = os.stat(watched)
        os.stat(room / "d")
        action()
        after = os.stat(watched)
        moved = ("m" if after.st_mtime_ns > before.st_mtime_ns else "") + (
            "c" if after.st_ctime_ns > before.st_ctime_ns else ""
        )
        assert after.st_ctime_ns >= before.st_ctime_ns
        return moved

    assert moves(path.touch, room / "d") == "mc"
    assert moves(lambda: path.write_bytes(b"x"), path) == "mc"
    assert moves(lambda: path.write_bytes(b"y"), room / "d") == ""
    assert moves(lambda: os.chmod(path, 0o600), path) == "c"
    assert moves(lambda: os.link(path, room / "d/g"), path) == "c"
    assert moves(lambda: os.truncate(path, 100), path) == "mc"
    assert moves(lambda: os.setxattr(path, "user.a", b"1"), path) == "c"
    assert moves(lambda: os.unlink(room / "d/g"), path) == "c"
    assert moves(lambda: os.rename(path, room / "d/h"), room / "d") == "mc"
    assert moves(lambda: os.unlink(room / "d/h"), room / "d") == "mc"


def test_deep_tree(places: Places) -> None:
    """200 directories below each other, longer than any one path may be."""
    for place in places:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        for depth in range(200):
            name = f"directory-number-{depth:04}"
            os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        assert os.listdir(descriptor) == ["bottom"]
        os.close(descriptor)
    counts = [sum(1 for _ in os.fwalk(place)) for place in places]
    assert counts == [201, 201]


def test_directory_of_20_000_entries(room: Path, fs_volume: Volume) -> None:
    count = 2_000 if fs_volume.address else 20_000  # each takes milliseconds in a cluster
    for number in range(count):
        os.close(os.open(room / f"{number:05}-file", os.O_CREAT | os.O_WRONLY, 0o644))
    names = [f"{number:05}-file" for number in range(count)]
    assert sorted(os.listdir(room)) == names
    with os.scandir(room) as entries:
        found = {entry.name: entry.stat().st_mode for entry in entries}
    assert len(found) == count
    assert set(found.values()) == {stat.S_IFREG | 0o644}
    seen: list[str] = []
    with os.scandir(room) as entries:  # names go while the directory is read
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == names
    assert os.listdir(room) == []


def test_entries_stay_while_others_come_and_go(room: Path) -> None:
    """readdir gives every name that was there all the time, once."""
    stable = {f"stable-{number}" for number in range(700)}
    for name in stable:
        (room / name).touch()
    with os.scandir(room) as entries:
        seen = [next(entries).name]
        for number in range(200):
            (room / f"new-{number}").touch()
            (room / f"new-{number}").rename(room / f"a-{number}")
        seen += [entry.name for entry in entries]
    assert stable <= set(seen)
    assert len(seen) == len(set(seen))


def test_hard_links_share_everything(room: Path) -> None:
    (room / "a").write_bytes(b"one")
    os.link(room / "a", room / "b")
    (room / "sub").mkdir()
    os.link(room / "b", room / "sub/c")
    with (room / "sub/c").open("ab") as file:
        file.write(b" two")
    assert (room / "a").read_bytes() == b"one two"
    assert len({os.stat(room / name).st_ino for name in ("a", "b", "sub/c")}) == 1
    os.unlink(room / "a")
    os.chmod(room / "b", 0o601)
    assert stat.S_IMODE(os.stat(room / "sub/c").st_mode) == 0o601
    assert os.stat(room / "b").st_nlink == 2
    os.rename(room / "sub/c", room / "d")
    os.unlink(room / "b")
    assert os.stat(room / "d").st_nlink == 1
    assert (room / "d").read_bytes() == b"one two"
