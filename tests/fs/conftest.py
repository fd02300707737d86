"""One mount for the whole folder; each test works in a directory of its own on it, and in a twin on the local disk."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mounts import JFS, PEER, Mount, Volume, format_volume
from tests.tikv.fixtures import fresh_address

# JFS_TEST_CLIENT=juicefs runs this folder on the peer, which proves the tests themselves
CLIENT = PEER if os.environ.get("JFS_TEST_CLIENT") == "juicefs" else JFS


LIFE = 900.0
"""Seconds: a mount serves all tests of a file, one after the other."""


class Places(NamedTuple):
    """The same work is done in both."""

    mounted: Path
    local: Path


@pytest.fixture(scope="session", params=["sqlite3", "tikv"])
def fs_volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    address = fresh_address(request.getfixturevalue("tikv_cluster")) if request.param == "tikv" else ""
    folder = tmp_path_factory.mktemp("fs")
    return format_volume(CLIENT, folder, "fs-tests", "--trash-days", "0", address=address)


@pytest.fixture(scope="module")
def mount(fs_volume: Volume) -> Generator[Mount, None, None]:
    with fs_volume.mounted(CLIENT, "--enable-xattr", life=LIFE) as mount:
        yield mount


@pytest.fixture
def places(mount: Mount, request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Places, None, None]:
    """An empty directory on the mount and one on the local disk; the mount's log must stay clean meanwhile."""
    since = mount.check_log()
    mounted = mount.path / f"{request.module.__name__.rpartition('.')[2]}-{request.node.name}"
    local = tmp_path / "local"
    for place in (mounted, local):
        place.mkdir()
    yield Places(mounted, local)
    mount.check_log(since)


@pytest.fixture
def room(places: Places) -> Path:
    """The directory on the mount, for tests with nothing to compare."""
    return places.mounted
