"""The mount itself: /dev/fuse opened, and its file system mounted by mount(2) or, for those who may not, by fusermount3."""

import array
import ctypes
import errno
import os
import select
import shutil
import socket
import subprocess
from typing import Final

from jfs.errors import UserError
from jfs.fuse import mounting

MS: Final = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
}
"""mount(2)'s flags by the words of `-o`."""

ALWAYS: Final = MS["nosuid"] | MS["nodev"]
"""Unless `suid` or `dev` is asked for."""

OPPOSITE: Final = {
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "atime": "noatime",
    "async": "sync",
    "diratime": "nodiratime",
}
DESCRIPTOR_ENV: Final = "_FUSE_COMMFD"


class Device:
    """One mounted /dev/fuse; reads of it do not block."""

    def __init__(self, fd: int, path: str) -> None:
        """The file system was just mounted on the path."""
        self.fd = fd
        self._path = path
        self._entry = mounting.mount_entry(path)

    def unmount(self, *, lazily: bool = False) -> str | None:
        """None once nothing of it is at its path, whoever took it down, or what the system said against it."""
        return mounting.unmount(self._path, lazily=lazily) if self._is_there() else None

    def close(self) -> None:
        """Unmount, unless somebody did; whoever still asks the mount gets ENOTCONN."""
        self.unmount(lazily=True)
        os.close(self.fd)

    def _is_there(self) -> bool:
        """Whether the path shows this mount, and not another's that has taken its place.

        The number of a device that is no more may be the other's: then that one answers, and ours has lost its connection.
        """
        entry = mounting.mount_entry(self._path)
        return entry is not None and entry == self._entry and (self._is_connected() or mounting.is_dead(self._path))

    def _is_connected(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, 0)
        return not poll.poll(0)


def mount(path: str, options: set[str]) -> Device:
    """Mount on a real path with the words of `mounting.kernel_options`.  UserError where the system refuses."""
    try:
        fd = _mount_directly(path, options)
    except PermissionError:
        fd = _mount_by_helper(path, options)
    os.set_blocking(fd, False)
    return Device(fd, path)


def _mount_directly(path: str, options: set[str]) -> int:
    """PermissionError: this user needs help."""
    flags, source, kind, words = split(options)
    try:
        fd = os.open("/dev/fuse", os.O_RDWR)
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"cannot open /dev/fuse: {error.strerror}") from error
    words = [f"fd={fd}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}", *words]
    libc = ctypes.CDLL(None, use_errno=True)
    strings = (source, path, kind)
    done = libc.mount(*(os.fsencode(each) for each in strings), ctypes.c_ulong(flags), os.fsencode(",".join(words)))
    if done == 0:
        return fd
    number = ctypes.get_errno()
    os.close(fd)
    if number == errno.EPERM:
        raise PermissionError(number, os.strerror(number))
    raise UserError(f"cannot mount on {path}: {os.strerror(number)}")


def split(options: set[str]) -> tuple[int, str, str, list[str]]:
    """mount(2)'s flags, its source, the file system's type, and the words that FUSE itself reads."""
    flags, source, kind, words = ALWAYS, "juicefs", "fuse", []
    for word in sorted(options):
        key, _, value = word.partition("=")
        if key in MS:
            flags |= MS[key]
        elif key in OPPOSITE:
            flags &= ~MS[OPPOSITE[key]]
        elif key == "fsname":
            source = value
        elif key == "subtype":
            kind = f"fuse.{value}"
        else:
            words.append(word)
    return flags, source, kind, words


def _mount_by_helper(path: str, options: set[str]) -> int:
    """fusermount3 is set-user-ID root; it sends the opened device back over a socket."""
    helper = shutil.which("fusermount3")
    if helper is None:
        raise UserError(
            f"cannot mount on {path}: this user may not, and fusermount3 is missing (install the package fuse3)"
        )
    words = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in sorted(options))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", words, "--", path],
            env={**os.environ, DESCRIPTOR_ENV: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(
                f"cannot mount on {path}: {done.stderr.strip() or f'fusermount3 exited with {done.returncode}'}"
            )
        received = ours.recvmsg(1, socket.CMSG_SPACE(array.array("i", [0]).itemsize))[1]
    return array.array("i", received[0][2])[0]
