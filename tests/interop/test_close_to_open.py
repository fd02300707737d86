"""What one mount has closed, another reads after it has opened: bytes and length, with the caches that are usual."""

import os
import random
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.conftest import assert_clean
from tests.interop.several import several_mounts
from tests.mounts import JFS, Mount, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address

ROUNDS = 60

LIFE = 600.0
"""Seconds: the mounts serve all tests of this file."""


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory, tikv_cluster: Cluster) -> Generator[list[Mount], None, None]:
    folder = tmp_path_factory.mktemp("open")
    volume = format_volume(JFS, folder, "open", "--trash-days", "0", address=fresh_address(tikv_cluster))
    with several_mounts(volume, 2, 1, life=LIFE) as mounts:
        yield mounts
    assert_clean(volume, mounts[2:])


PAIRS = {"jfs_to_jfs": (0, 1), "jfs-to_juicefs": (0, 2), "juicefs_to_jfs": (2, 0)}
KINDS = ("whole", "append", "patch", "cut")
HIDDEN = "patch at the same time"
"""A write after which the old modification time is set again; the peer's readers do not notice it."""


@pytest.fixture(params=PAIRS)
def places(request: pytest.FixtureRequest, mounts: list[Mount]) -> tuple[Path, Path]:
    """Where it is written and where it is read."""
    writer, reader = PAIRS[request.param]
    name = f"room-{request.node.name}"
    (mounts[writer].path / name).mkdir()
    return mounts[writer].path / name, mounts[reader].path / name


def read_whole(path: Path) -> tuple[bytes, int]:
    """What read(2) gives, whatever the length is believed to be, and the length."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = b""
        while part := os.read(descriptor, 1 << 20):
            data += part
        return data, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def assert_reads(path: Path, known: bytes, when: str) -> None:
    """At the first look; the peer at one soon after: its kernel hears of others' changes beside the open, not before its end."""
    wanted = bytes(known), len(known)
    seen = read_whole(path)
    if seen != wanted and is_peers(path):
        eventually(lambda: read_whole(path) == wanted, 20, f"{path} to read as it was closed, {when}")
        return
    assert seen == wanted, when


def is_peers(path: Path) -> bool:
    """Whether the file is reached through a mount of the peer."""
    return "juicefs" in path.parent.parent.name


def write_at(path: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


def change(path: Path, known: bytearray, dice: random.Random, kinds: Sequence[str] = KINDS) -> None:
    """One change of a random kind, closed."""
    kind = dice.choice(kinds)
    data = dice.randbytes(dice.choice((1, 100, 5000, 200_000)))
    if kind == "whole" or not known:
        path.write_bytes(data)
        known[:] = data
    elif kind == "append":
        write_at(path, len(known), data)
        known += data
    elif kind == "cut":
        size = dice.randrange(len(known))
        os.truncate(path, size)
        del known[size:]
    else:
        before = path.stat()
        offset = dice.randrange(len(known))
        data = data[: len(known) - offset]
        write_at(path, offset, data)
        known[offset : offset + len(data)] = data
        if kind == HIDDEN:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("seed", range(2))
def test_each_round_is_read_as_it_was_closed(places: tuple[Path, Path], seed: int) -> None:
    here, there = places
    dice = random.Random(seed)
    known = bytearray()
    kinds = KINDS if is_peers(there / "f") else (*KINDS, HIDDEN)
    for number in range(ROUNDS):
        change(here / "f", known, dice, kinds)
        assert_reads(there / "f", known, f"seed {seed}, round {number}")


def test_a_reader_that_stays_open_does_not_spoil_the_next_open(places: tuple[Path, Path]) -> None:
    here, there = places
    dice = random.Random(3)
    known = bytearray(b"first")
    (here / "f").write_bytes(known)
    with (there / "f").open("rb") as held:
        held.read()
        for number in range(ROUNDS // 2):
            change(here / "f", known, dice)
            assert_reads(there / "f", known, f"round {number}")


def test_turns_are_taken(places: tuple[Path, Path]) -> None:
    """Each reads what the other wrote, and writes the next version over it."""
    known = bytearray(b"first")
    (places[0] / "f").write_bytes(known)
    dice = random.Random(4)
    for number in range(ROUNDS):
        path = places[number % 2] / "f"
        assert_reads(path, known, f"round {number}")
        change(path, known, dice)


def test_appends_go_to_the_end_that_others_made(mounts: list[Mount]) -> None:
    """On mounts of jfs; the peer appends where its kernel believes the end to be."""
    expected = b""
    for number in range(ROUNDS):
        for place, mount in enumerate(mounts[:2]):
            line = b"%d %d\n" % (place, number)
            with (mount.path / "log").open("ab") as file:
                file.write(line)
            expected += line
        if number % 20 == 10:
            os.truncate(mounts[number % 4 // 2].path / "log", 7)
            expected = expected[:7]
    for mount in mounts[:2]:
        assert read_whole(mount.path / "log") == (expected, len(expected))
