"""The mount itself: /dev/fuse opened, and its file system mounted by mount(2) or, for those who may not, by fusermount3."""

import array
import ctypes
import errno
import os
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
        self.fd = fd
        self._path = path

    def close(self) -> None:
        """Unmount, unless somebody did; whoever still asks the mount gets ENOTCONN."""
        if mounting.mounted_as(self._path) is not None:
            mounting.unmount(self._path, lazily=True)
        os.close(self.fd)


def mount(path: str, options: set[str]) -> Device:
    """Mount on an absolute path with the words of `mounting.kernel_options`.  UserError where the system refuses."""
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
