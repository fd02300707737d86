"""Several mounts of one volume at once."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from tests.mounts import JFS, MOUNT_LIFE, PEER, Mount, Volume

UNCACHED = ("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0")
"""What one mount does, the others see at once: their kernels keep nothing."""

FOR_THE_PEER = ("--skip-dir-mtime", "0", "--verbose")
"""Within this time it leaves directories' records alone, and so does not see that they are removed.  And it tells which slices
its compactions make: see `assert_clean`."""


@contextmanager
def several_mounts(
    volume: Volume, ours: int, theirs: int, *flags: str, life: float = MOUNT_LIFE
) -> Generator[list[Mount], None, None]:
    """The volume on several mounts, those of jfs first."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                volume.mounted(
                    client,
                    "--enable-xattr",
                    *flags,
                    *(FOR_THE_PEER if client is PEER else ()),
                    at=volume.folder / f"{client.name}-{number}",
                    life=life,
                )
            )
            for client, count in ((JFS, ours), (PEER, theirs))
            for number in range(count)
        ]
