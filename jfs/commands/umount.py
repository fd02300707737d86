"""`jfs umount MOUNTPOINT`."""

import os

from jfs.commands import arguments
from jfs.errors import UserError
from jfs.fuse import mounting


@arguments.command("umount", "MOUNTPOINT", (1, 1))
@arguments.switch(
    "--force", "-f", text="unmount a busy mount point: it goes from sight now, and ends with its last user"
)
@arguments.switch("--flush", text="upload staged blocks first (see mount --writeback), and wait for it")
def command(arguments: tuple[str, ...], *, force: bool, flush: bool) -> None:
    """Unmount a volume."""
    path = os.path.abspath(arguments[0])
    if mounting.mount_entry(path) is None:  # not before: a look at a mount that hangs would hang too
        path = os.path.realpath(path)
    if not flush:
        _unmount(path, force=force)
        return
    from jfs.commands.flushing import flushed

    with flushed(path):
        _unmount(path, force=force)


def _unmount(path: str, *, force: bool) -> None:
    refusal = mounting.unmount(path, lazily=force)
    if refusal is not None:
        raise UserError(refusal)
