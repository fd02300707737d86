"""The special files of a mount, of jfs or of the peer, as a command finds them."""

import contextlib
import os

from jfs.vfs.special_files import NAMES


def special_file(folder: str, name: str) -> str | None:
    """The path of the mount's `control`, `stats`... in a directory of it; None where there is none, as outside of a mount."""
    for file in (f"{folder}/.{name}", f"{folder}/.jfs.{name}"):
        with contextlib.suppress(OSError):
            if os.stat(file).st_ino == NAMES[name]:
                return file
    return None
