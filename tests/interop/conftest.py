"""Both programs on one volume."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import pytest

from tests.mounts import JFS, PEER, Client, Mount, Volume


@pytest.fixture(params=["jfs first", "juicefs first"])
def pair(request: pytest.FixtureRequest) -> tuple[Client, Client]:
    """Who formats and writes, and who takes the volume over."""
    return (JFS, PEER) if request.param == "jfs first" else (PEER, JFS)


@contextmanager
def both_mounted(volume: Volume, *flags: str) -> Generator[tuple[Mount, Mount], None, None]:
    """The volume mounted by jfs and by the peer at once."""
    with ExitStack() as stack:
        ours = stack.enter_context(volume.mounted(JFS, "--enable-xattr", *flags))
        theirs = stack.enter_context(volume.mounted(PEER, "--enable-xattr", *flags))
        yield ours, theirs


def assert_clean(volume: Volume) -> None:
    """fsck and gc of both programs find nothing to complain about."""
    for client in (PEER, JFS):
        checked = client.run("fsck", volume.url)
        assert "<ERROR>" not in checked.stderr, checked.stderr
        names = client.run("fsck", volume.url, "--path", "/", "--recursive")
        assert "<ERROR>" not in names.stderr, names.stderr
        swept = client.run("gc", volume.url, JFS_GC_SKIPPEDTIME="0")
        assert " 0 leaked (0 bytes)" in swept.stderr, swept.stderr
        assert " 0 skipped (0 bytes)" in swept.stderr, swept.stderr
