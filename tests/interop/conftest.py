"""Both programs on one volume."""

import re
from collections.abc import Generator, Sequence
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


COMPACTED = re.compile(r"compact \d+ slices \(\d+ bytes\) to new slice (\d+)")
LEAKED = re.compile(r"find leaked object: (?:\S*/)?(\d+)_\d+_\d+,")
"""What the peer says with --verbose."""


def assert_clean(volume: Volume, mounts: Sequence[Mount] = ()) -> None:
    """fsck and gc of both programs find nothing to complain about.

    A mount of the peer's does not wait at its end for the compactions that its reads have begun: one that was cut off between
    the put of its block and its commit has left the block to gc.  Those of `mounts` (run with --verbose) may have done so.
    """
    cut_off = leaked_slices(volume) if mounts else set()
    if cut_off:
        compacted = {found for mount in mounts for found in COMPACTED.findall(mount.log.read_text(errors="replace"))}
        assert cut_off <= compacted, f"leaked by others than the peer's compactions: {cut_off - compacted}"
        JFS.run("gc", volume.url, "--delete", JFS_GC_SKIPPEDTIME="0")
    for client in (PEER, JFS):
        checked = client.run("fsck", volume.url)
        assert "<ERROR>" not in checked.stderr, checked.stderr
        names = client.run("fsck", volume.url, "--path", "/", "--recursive")
        assert "<ERROR>" not in names.stderr, names.stderr
        swept = client.run("gc", volume.url, JFS_GC_SKIPPEDTIME="0")
        assert " 0 leaked (0 bytes)" in swept.stderr, swept.stderr
        assert " 0 skipped (0 bytes)" in swept.stderr, swept.stderr


def leaked_slices(volume: Volume) -> set[str]:
    """The ids of slices that have objects and no record."""
    swept = PEER.run("gc", volume.url, "--verbose", JFS_GC_SKIPPEDTIME="0")
    found = LEAKED.findall(swept.stderr)
    told = " 0 leaked (0 bytes)" not in swept.stderr
    assert told == bool(found), swept.stderr[-3000:]
    return set(found)
