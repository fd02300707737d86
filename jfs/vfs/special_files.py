"""The files that are not in the volume: `.accesslog`, `.control`, `.stats` and `.config`.

They live in the root directory; `.control` resolves in every directory and is listed in none.  With `prefixed` they are
called `.jfs.control` and so on; with `hidden` they are not listed, and still resolve.
"""

import errno
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from jfs.errors import FsError
from jfs.meta.access import folder_attr
from jfs.meta.types import ROOT_INO, TRASH_INO, TYPE_FILE, Attr, Cred, Entry, Ino
from jfs.vfs.access_log import AccessLogReader
from jfs.vfs.control import ControlHandle
from jfs.vfs.stats import stats_text

if TYPE_CHECKING:
    from jfs.vfs.handles import SpecialHandle
    from jfs.vfs.vfs import Vfs

ACCESS_LOG_INO: Final = 0x7FFFFFFF00000001
CONTROL_INO: Final = 0x7FFFFFFF00000002
STATS_INO: Final = 0x7FFFFFFF00000003
CONFIG_INO: Final = 0x7FFFFFFF00000004

NAMES: Final = {"accesslog": ACCESS_LOG_INO, "control": CONTROL_INO, "stats": STATS_INO, "config": CONFIG_INO}
MODES: Final = {ACCESS_LOG_INO: 0o400, CONTROL_INO: 0o666, STATS_INO: 0o444, CONFIG_INO: 0o400}


def is_special(ino: Ino) -> bool:
    """Whether the inode is one of this file's."""
    return ACCESS_LOG_INO <= ino <= CONFIG_INO


class SpecialFiles:
    """One mount's special files."""

    def __init__(self, vfs: "Vfs", *, hidden: bool, prefixed: bool, config: dict[str, object]) -> None:
        self._vfs = vfs
        self._hidden = hidden
        self._config = config
        prefix = ".jfs." if prefixed else "."
        self._inos = {f"{prefix}{name}".encode(): ino for name, ino in NAMES.items()}
        self._control = f"{prefix}control".encode()
        self.trash_name = f"{prefix}trash".encode()
        self._reserved = {*self._inos, self.trash_name}
        now = time.time_ns()
        self._attrs = {
            ino: Attr(
                TYPE_FILE,
                mode=mode,
                uid=os.getuid(),
                gid=os.getgid(),
                atime_ns=now,
                mtime_ns=now,
                ctime_ns=now,
                parent=ROOT_INO,
            )
            for ino, mode in MODES.items()
        }

    def lookup(self, parent: Ino, name: bytes) -> Entry | None:
        """The special file of that name there, if it is one."""
        if not name.startswith(b".") or (parent != ROOT_INO and name != self._control):
            return None
        ino = self._inos.get(name)
        return None if ino is None else Entry(ino, self.attr(ino))

    def attr(self, ino: Ino) -> Attr:
        """Raises ENOENT."""
        attr = self._attrs.get(ino)
        if attr is None:
            raise FsError(errno.ENOENT)
        if ino == CONFIG_INO:
            attr.length = len(self.config_text())
        return attr

    def is_trash_name(self, name: bytes) -> bool:
        """In the root directory.  `.trash` is understood under its plain name too."""
        return name in (self.trash_name, b".trash")

    def trash_attr(self) -> Attr:
        """What `.trash` looks like on a volume that has kept no trash yet."""
        return folder_attr(0o555, ROOT_INO, self._attrs[CONFIG_INO].ctime_ns)

    def listed(self, ino: Ino) -> list[tuple[bytes, Ino, Attr]]:
        """What a listing of this directory shows besides its own names."""
        if ino != ROOT_INO or self._hidden:
            return []
        return [(name, number, self.attr(number)) for name, number in self._inos.items() if name != self._control]

    def refuse_creation(self, parent: Ino, name: bytes) -> None:
        """EEXIST where the name is taken by a special file, EPERM in the trash."""
        if parent >= TRASH_INO:
            raise FsError(errno.EPERM)
        if parent == ROOT_INO and name in self._reserved:
            raise FsError(errno.EEXIST)

    def refuse_removal(self, parent: Ino, name: bytes) -> None:
        """EPERM where the name is a special file's."""
        if parent == ROOT_INO and name in self._reserved:
            raise FsError(errno.EPERM)

    def config_text(self) -> bytes:
        """What `.config` holds: the mount's options and the volume's settings, without secrets."""
        client = self._vfs.meta
        config = {**self._config, "Format": client.settings.public()}
        about = config.get("Meta")
        config["Meta"] = {**(about if isinstance(about, dict) else {}), "Sid": client.sid}
        return msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n"

    def open(self, cred: Cred, ino: Ino, flags: int) -> "SpecialHandle":
        """Raises EACCES for writing to what is only read."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing and ino != CONTROL_INO:
            raise FsError(errno.EACCES)
        if ino == CONTROL_INO:
            return ControlHandle(self._vfs, privileged=cred.uid in (0, os.getuid()))
        if ino == ACCESS_LOG_INO:
            return AccessLogReader(self._vfs.access_log)
        return TextHandle(self.config_text() if ino == CONFIG_INO else stats_text(self._vfs))


class TextHandle:
    """A text made when the file was opened."""

    writable = False

    def __init__(self, text: bytes) -> None:
        self._text = text

    async def read(self, offset: int, size: int) -> bytes:
        return self._text[offset : offset + size]

    async def write(self, offset: int, data: bytes | memoryview) -> int:
        raise FsError(errno.EBADF)

    def close(self) -> None:
        self._text = b""
