"""`jfs umount MOUNTPOINT`."""

import os

from jfs.commands import arguments
from jfs.errors import UserError
from jfs.fuse import mounting


@arguments.command("umount", "MOUNTPOINT", (1, 1))
@arguments.switch(
    "--force", "-f", text="unmount a busy mount point: it goes from sight now, and ends with its last user"
)
@arguments.switch("--flush", text="wait for staged blocks first (jfs has none: data is stored before close returns)")
def command(arguments: tuple[str, ...], *, force: bool, flush: bool) -> None:
    """Unmount a volume."""
    path = os.path.abspath(arguments[0])
    refusal = mounting.unmount(path, lazily=force)
    if refusal is not None:
        raise UserError(refusal)
    if flush:
        print("All staging chunks are flushed")
