"""Two mounts of jfs do what excludes each other, at the same moment: one of them wins, and the tree stays whole."""

import errno
import os
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from tests.interop.conftest import assert_clean
from tests.interop.several import UNCACHED, several_mounts
from tests.mounts import JFS, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address

ROUNDS = 10

LIFE = 600.0
"""Seconds: the mounts serve all tests of this file."""

Roots = tuple[Path, Path]


@pytest.fixture(scope="module", params=["no trash", "trash"])
def roots(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tikv_cluster: Cluster
) -> Generator[Roots, None, None]:
    days = "0" if request.param == "no trash" else "1"
    folder = tmp_path_factory.mktemp("races")
    volume = format_volume(JFS, folder, "races", "--trash-days", days, address=fresh_address(tikv_cluster))
    with several_mounts(volume, 2, 0, *UNCACHED, life=LIFE) as mounts:
        yield mounts[0].path, mounts[1].path
    assert_clean(volume)


@pytest.fixture
def rooms(roots: Roots, request: pytest.FixtureRequest) -> Roots:
    """One directory, seen on both mounts."""
    name = request.node.name.partition("[")[0]
    (roots[0] / name).mkdir()
    return roots[0] / name, roots[1] / name


def at_once(*calls: Callable[[], object]) -> list[str]:
    """Do them in threads that start together; "" for each that succeeded, else the name of its error."""
    results = [""] * len(calls)
    start = threading.Barrier(len(calls))

    def work(number: int) -> None:
        start.wait()
        try:
            calls[number]()
        except OSError as error:
            results[number] = errno.errorcode[error.errno or 0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def open_or_create(path: Path, found: list[int]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    found.append(os.fstat(descriptor).st_ino)
    os.close(descriptor)


def empty(folder: Path) -> None:
    for name in os.listdir(folder):
        path = folder / name
        if path.is_dir():
            empty(path)
            path.rmdir()
        else:
            path.unlink()


MAKERS: dict[str, Callable[[Path], None]] = {
    "file": create,
    "directory": os.mkdir,
    "symlink": lambda path: os.symlink("x", path),
    "link": lambda path: os.link(path.parent.parent / "source", path),
    "rename": lambda path: os.rename(path.parent.parent / "source", path),
    "rename of a directory": lambda path: os.rename(path.parent.parent / "folder", path),
}
GONE = ("ENOENT", "ESTALE")


@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_is_made_in_a_directory_that_goes(rooms: Roots, maker: str) -> None:
    here, there = rooms
    for number in range(ROUNDS):
        for name in ("d", "folder"):
            (here / name).mkdir()
        create(here / "source")
        made, removed = at_once(lambda: MAKERS[maker](there / "d/x"), (here / "d").rmdir)
        if made:
            assert (made in GONE, removed) == (True, ""), f"round {number}"
            assert not (there / "d").exists()
        else:
            assert removed == "ENOTEMPTY", f"round {number}"
            assert os.listdir(here / "d") == os.listdir(there / "d") == ["x"]
        empty(here)
    here.rmdir()


@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_is_made_in_a_directory_that_is_replaced(rooms: Roots, maker: str) -> None:
    """Made in time, it keeps the directory; made too late, it is in the one that took its place."""
    here, there = rooms
    for number in range(ROUNDS):
        for name in ("d", "other", "folder"):
            (here / name).mkdir()
        create(here / "source")
        made, replaced = at_once(lambda: MAKERS[maker](there / "d/x"), lambda: os.rename(here / "other", here / "d"))
        assert made in ("", *GONE), f"round {number}"
        assert replaced in (("", "ENOTEMPTY") if not made else ("",)), f"round {number}"
        assert os.listdir(here / "d") == os.listdir(there / "d") == ([] if made else ["x"]), f"round {number}"
        empty(here)
    here.rmdir()


@pytest.mark.parametrize("depth", [1, 3])
def test_directories_do_not_move_into_each_other(rooms: Roots, depth: int) -> None:
    here, there = rooms
    inner = "/".join(["in"] * depth)
    for number in range(ROUNDS):
        for name in ("a", "b"):
            (here / name / inner).mkdir(parents=True)
        moved = at_once(
            lambda: os.rename(here / "a", here / "b" / inner / "a"),
            lambda: os.rename(there / "b", there / "a" / inner / "b"),
        )
        assert moved.count("") == 1, f"round {number}: {moved}"
        assert set(moved) - {""} <= {"EINVAL", *GONE}
        seen = [sorted(os.path.relpath(found[0], root) for found in os.walk(root)) for root in rooms]
        assert seen[0] == seen[1]
        assert len(seen[0]) == 1 + 2 * (1 + depth)
        empty(here)
    here.rmdir()


def test_link_against_the_last_unlink(rooms: Roots) -> None:
    here, there = rooms
    for number in range(ROUNDS):
        data = b"%d" % number * 1000
        (here / "old").write_bytes(data)
        linked, removed = at_once(lambda: os.link(there / "old", there / "new"), lambda: os.unlink(here / "old"))
        assert removed == ""
        if linked:
            assert linked in (*GONE, "EPERM"), f"round {number}"  # EPERM: it was in the trash already
            assert os.listdir(there) == []
        else:
            assert (here / "new").read_bytes() == (there / "new").read_bytes() == data
            os.unlink(there / "new")
    here.rmdir()


TAKERS: dict[str, Callable[[Path, int], None]] = {
    "make": lambda room, who: create(room / "x"),
    "make a directory": lambda room, who: os.mkdir(room / "x"),
    "move": lambda room, who: os.rename(room / "x", room / f"moved-{who}"),
    "remove": lambda room, who: os.unlink(room / "x"),
    "remove a directory": lambda room, who: os.rmdir(room / "x"),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_only_one_gets_it(rooms: Roots, taker: str) -> None:
    for number in range(ROUNDS):
        if not taker.startswith("make"):
            (os.mkdir if "directory" in taker else create)(rooms[0] / "x")
        results = at_once(*(lambda who=who: TAKERS[taker](rooms[who], who) for who in range(2)))  # type: ignore[misc]
        assert results.count("") == 1, f"round {number}: {results}"
        assert len(os.listdir(rooms[1])) == (0 if "remove" in taker else 1)
        empty(rooms[0])
    rooms[0].rmdir()


def test_all_get_what_one_of_them_makes(rooms: Roots) -> None:
    """Without O_EXCL."""
    for number in range(10 * ROUNDS):
        paths = [room / f"{number}" for room in rooms]
        found: list[int] = []
        results = at_once(*(partial(open_or_create, path, found) for path in paths * 2))
        assert results == [""] * 4, f"round {number}: {results}"
        assert len(set(found)) == 1, f"round {number}"
    empty(rooms[0])
    rooms[0].rmdir()


def test_two_renames_over_one_file(rooms: Roots) -> None:
    """Both succeed, the later one stays."""
    here, there = rooms
    for number in range(ROUNDS):
        for name in "abc":
            (here / name).write_text(name)
        results = at_once(lambda: os.rename(here / "a", here / "c"), lambda: os.rename(there / "b", there / "c"))
        assert results == ["", ""], f"round {number}"
        assert os.listdir(here) == ["c"]
        assert (here / "c").read_text() == (there / "c").read_text()
        assert (here / "c").read_text() in "ab"
        empty(here)
    here.rmdir()
