"""What a mount's kernel knows by a name that another mount has replaced meanwhile: calls reach what is there now.

The kernels keep names for long here, and no attributes: each call goes to the inode that the name led to before.
"""

import errno
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.conftest import assert_clean
from tests.interop.several import several_mounts
from tests.mounts import JFS, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address

KEPT = ("--entry-cache", "300", "--dir-entry-cache", "300", "--attr-cache", "0")
LIFE = 600.0
"""Seconds: the mounts serve all tests of this file."""

LOOP_S = 1.0
SLOW_LOOP_S = 60.0
"""At the most, where there were not yet a few calls."""

Roots = tuple[Path, Path]


@pytest.fixture(scope="module", params=["sqlite", "sqlite, trash", "tikv", "tikv, trash"])
def roots(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tikv_cluster: Cluster
) -> Generator[Roots, None, None]:
    folder = tmp_path_factory.mktemp("replaced")
    address = fresh_address(tikv_cluster) if "tikv" in request.param else ""
    days = "1" if "trash" in request.param else "0"
    volume = format_volume(JFS, folder, "replaced", "--trash-days", days, address=address)
    with several_mounts(volume, 2, 0, *KEPT, life=LIFE) as mounts:
        yield mounts[0].path, mounts[1].path
    assert_clean(volume)


@pytest.fixture
def trash(request: pytest.FixtureRequest) -> bool:
    return "trash" in request.node.callspec.params["roots"]


@pytest.fixture
def rooms(roots: Roots, request: pytest.FixtureRequest) -> Roots:
    """One directory, seen on both mounts."""
    name = request.node.name.replace("/", " ")
    (roots[0] / name).mkdir()
    return roots[0] / name, roots[1] / name


def make_file(path: Path, what: str) -> None:
    path.write_text(what)
    os.setxattr(path, "user.what", what.encode())


def make_symlink(path: Path, what: str) -> None:
    path.symlink_to(what)


def make_directory(path: Path, what: str) -> None:
    """Only an empty one can be replaced."""
    path.mkdir()
    os.setxattr(path, "user.what", what.encode())


def replace(room: Path, make: Callable[[Path, str], None]) -> None:
    make(room / "fresh", "new")
    os.rename(room / "fresh", room / "x")


def create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("er")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


READS: dict[str, tuple[Callable[[Path, str], None], Callable[[Path], object], Callable[[Path], object]]] = {
    "stat": (make_file, lambda path: path.stat().st_ino, lambda path: path.stat().st_ino),
    "read": (make_file, lambda path: path.read_text(), lambda _: "new"),
    "getxattr": (make_file, lambda path: os.getxattr(path, "user.what"), lambda _: b"new"),
    "listxattr": (make_file, os.listxattr, lambda _: ["user.what"]),
    "readlink": (make_symlink, lambda path: path.readlink(), lambda _: Path("new")),
    "stat of a directory": (make_directory, lambda path: path.stat().st_ino, lambda path: path.stat().st_ino),
    "listing": (make_directory, os.listdir, lambda _: []),
    "getxattr of a directory": (make_directory, lambda path: os.getxattr(path, "user.what"), lambda _: b"new"),
}
"""What is replaced by its like, what is asked, and what must be the answer."""


@pytest.mark.parametrize("what", READS)
def test_reads(rooms: Roots, what: str, trash: bool) -> None:
    here, there = rooms
    make, ask, expected = READS[what]
    make(here / "x", "old")
    before = ask(there / "x")
    replace(here, make)
    answer = ask(there / "x")
    if not trash:  # which keeps what was replaced: the kernel may go on believing in it for as long as it keeps names
        assert answer == expected(here / "x")
    else:
        assert answer in (before, expected(here / "x"))


CHANGES: dict[
    str,
    tuple[Callable[[Path, str], None], Callable[[Path], object], Callable[[Path], object], Callable[[Path], object]],
] = {
    "chmod": (make_file, lambda path: path.chmod(0o640), mode, lambda _: 0o640),
    "chown": (make_file, lambda path: os.chown(path, 5, 6), lambda path: path.stat().st_uid, lambda _: 5),
    "truncate": (make_file, lambda path: os.truncate(path, 2), lambda path: path.read_text(), lambda _: "ne"),
    "utime": (make_file, lambda path: os.utime(path, (1, 2)), lambda path: path.stat().st_mtime, lambda _: 2),
    "append": (make_file, append, lambda path: path.read_text(), lambda _: "newer"),
    "overwrite": (make_file, lambda path: path.write_text("w"), lambda path: path.read_text(), lambda _: "w"),
    "setxattr": (
        make_file,
        lambda path: os.setxattr(path, "user.k", b"v"),
        lambda path: os.getxattr(path, "user.k"),
        lambda _: b"v",
    ),
    "removexattr": (
        make_file,
        lambda path: os.removexattr(path, "user.what"),
        os.listxattr,
        lambda _: [],
    ),
    "link": (
        make_file,
        lambda path: os.link(path, path.parent / "hard"),
        lambda path: (path.parent / "hard").read_text(),
        lambda _: "new",
    ),
    "chmod of a directory": (make_directory, lambda path: path.chmod(0o750), mode, lambda _: 0o750),
    "create": (make_directory, lambda path: create(path / "f"), os.listdir, lambda _: ["f"]),
    "mkdir": (make_directory, lambda path: (path / "d").mkdir(), os.listdir, lambda _: ["d"]),
    "mkfifo": (make_directory, lambda path: os.mkfifo(path / "p"), os.listdir, lambda _: ["p"]),
    "symlink": (make_directory, lambda path: (path / "s").symlink_to("t"), os.listdir, lambda _: ["s"]),
    "link into it": (
        make_directory,
        lambda path: os.link(path.parent / "other", path / "h"),
        os.listdir,
        lambda _: ["h"],
    ),
    "rename into it": (
        make_directory,
        lambda path: os.rename(path.parent / "other", path / "r"),
        os.listdir,
        lambda _: ["r"],
    ),
}
"""What is replaced by its like, the change, where it shows, and how."""


@pytest.mark.parametrize("what", CHANGES)
def test_changes(rooms: Roots, what: str) -> None:
    here, there = rooms
    make, change, look, expected = CHANGES[what]
    make(here / "x", "old")
    create(here / "other")
    assert os.listdir(there) != []
    (there / "x").lstat()
    replace(here, make)
    change(there / "x")
    assert look(here / "x") == expected(here / "x")


@pytest.mark.parametrize("what", [*READS, *CHANGES])
def test_what_is_gone_is_missing(rooms: Roots, what: str, trash: bool) -> None:
    """And not stale, whatever the kernel believed."""
    here, there = rooms
    make, call = (READS[what] if what in READS else CHANGES[what])[:2]
    make(here / "x", "old")
    create(here / "other")
    (there / "x").lstat()
    if make is make_directory:
        (here / "x").rmdir()
    else:
        (here / "x").unlink()
    if what in ("append", "overwrite"):
        call(there / "x")  # makes it
        assert (here / "x").exists()
    elif what in READS and trash:
        call(there / "x")  # what the trash keeps, for as long as the kernel keeps names
    else:
        with pytest.raises(FileNotFoundError):
            call(there / "x")


@pytest.mark.parametrize("remover", [0, 1], ids=["elsewhere", "here"])
def test_below_a_directory_that_is_gone(rooms: Roots, remover: int) -> None:
    """It is reached by a handle, not by a name that could be looked up again: missing is what the calls find there."""
    there = rooms[1]
    (there / "x").mkdir()
    create(there / "other")
    fd = os.open(there / "x", os.O_DIRECTORY)
    try:
        (rooms[remover] / "x").rmdir()
        for call in (
            lambda: os.mkdir("d", dir_fd=fd),
            lambda: os.symlink("t", "s", dir_fd=fd),
            lambda: os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)),
            lambda: os.link(there / "other", "h", dst_dir_fd=fd),
            lambda: os.rename(there / "other", "r", dst_dir_fd=fd),
            lambda: os.unlink("none", dir_fd=fd),
            lambda: os.rmdir("none", dir_fd=fd),
            lambda: os.rename("none", there / "some", src_dir_fd=fd),
        ):
            with pytest.raises(FileNotFoundError):
                call()
    finally:
        os.close(fd)


def test_the_current_directory_is_removed(rooms: Roots, trash: bool) -> None:
    (rooms[1] / "x").mkdir()
    script = 'rmdir "$PWD"; touch f; mkdir d; ln -s t s' + ("" if trash else "; ls .; stat .; chmod 700 .")
    done = subprocess.run(["sh", "-c", script], cwd=rooms[1] / "x", capture_output=True, text=True, env={"LC_ALL": "C"})
    told = done.stderr.splitlines()
    assert len(told) == (3 if trash else 6), done.stderr
    assert all(line.endswith("No such file or directory") for line in told), done.stderr


def test_an_open_file_that_is_replaced_elsewhere(rooms: Roots, trash: bool) -> None:
    """Nobody sustains it but the trash; its handle goes on answering, and the name leads to the other one."""
    here, there = rooms
    make_file(here / "x", "old")
    with (there / "x").open("r+") as file:
        replace(here, make_file)
        status = os.fstat(file.fileno())
        assert (status.st_size, status.st_nlink) == (3, 1 if trash else 0)
        if not trash:
            (there / "x").chmod(0o640)
            assert mode(here / "x") == 0o640
            assert (there / "x").read_text() == "new"


@pytest.mark.parametrize("what", ["stat", "chmod", "utime", "setxattr", "getxattr", "listxattr", "readlink", "mkdir"])
def test_replaced_again_and_again(rooms: Roots, what: str) -> None:
    """A name that is always there is found by every call, unless it is replaced twice while the call is made."""
    here, there = rooms
    make, call = (READS[what] if what in READS else CHANGES[what])[:2]
    make(here / "x", "old")
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            make(here / "fresh", "new")
            while True:
                try:
                    os.rename(here / "fresh", here / "x")
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
                    (here / "x/d").rmdir()
                else:
                    break

    thread = threading.Thread(target=work)
    thread.start()
    calls = 0
    results: dict[str, int] = {}
    began = time.monotonic()
    while (spent_s := time.monotonic() - began) < LOOP_S or (calls <= 10 and spent_s < SLOW_LOOP_S):
        calls += 1
        try:
            call(there / "x")
        except FileExistsError:
            pass
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
            results[name] = results.get(name, 0) + 1
    enough.set()
    thread.join()
    assert calls > 10
    assert results.keys() <= {"ESTALE"}


def test_a_file_made_elsewhere_is_opened_only_by_those_who_may(tmp_path: Path) -> None:
    """The kernel believes that the name is free, so it asks to create it; after that it checks nothing."""
    volume = format_volume(JFS, tmp_path, "made")
    with several_mounts(volume, 2, 0, "--negative-entry-cache", "100") as (here, there):
        room, other = here.path / "d", there.path / "d"
        room.mkdir()
        room.chmod(0o777)
        eventually(other.exists, 30, "the directory to be seen")
        for name in ("private", "shared", "link", "directory"):
            assert not (other / name).exists()
        (room / "private").write_text("private")
        (room / "private").chmod(0o600)
        (room / "shared").write_text("shared")
        (room / "link").symlink_to("shared")
        (room / "directory").mkdir()
        folder = os.open(other, os.O_RDONLY)
        for flags in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
            assert create_as_nobody("private", flags, folder) == errno.EACCES
        assert create_as_nobody("directory", os.O_RDWR, folder) == errno.EISDIR
        assert create_as_nobody("shared", os.O_EXCL, folder) == errno.EEXIST
        assert create_as_nobody("shared", os.O_RDONLY, folder) == 0
        assert create_as_nobody("link", os.O_RDONLY, folder) == 0
        assert create_as_nobody("new", os.O_RDONLY, folder) == 0
        os.close(folder)
        assert (other / "private").read_text() == "private"


def create_as_nobody(name: str, flags: int, folder: int) -> int:
    """0, or the error that open(2) meets in a process of the user nobody."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    number = 255
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.open(name, os.O_CREAT | flags, 0o600, dir_fd=folder)
        number = 0
    except OSError as error:
        number = error.errno or 255
    finally:
        os._exit(number)
