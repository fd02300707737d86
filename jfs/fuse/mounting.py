"""Mount points: checked before, put right after a crash, tuned once mounted, taken down.

Everything here blocks and runs before the loop starts, after it ended, or in a thread: a `stat` of our own mount point waits
for our own loop.
"""

import errno
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from jfs.errors import UserError

log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 4096

LARGEST_READ: Final = 1 << 20
"""The kernel asks for no more at once anyway."""

LEAST_READ: Final = 512 << 10
"""It shall not have to ask for less, whatever that would save."""

READ_STEP: Final = 64 << 10

_KERNEL_WORDS: Final = frozenset(
    {
        "allow_other",
        "default_permissions",
        "ro",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "sync",
        "async",
        "dirsync",
    }
)
_KERNEL_KEYS: Final = frozenset({"max_read"})
_DROPPED_WORDS: Final = frozenset(
    {
        "",
        "rw",
        "auto",
        "noauto",
        "defaults",
        "nofail",
        "_netdev",
        "user",
        "users",
        "nouser",
        "owner",
        "group",
        "remount",
    }
    | {
        "nonempty",
        "allow_root",
        "atime",
        "diratime",
        "norelatime",
        "strictatime",
        "relatime",
        "debug",
        "silent",
        "loud",
    }
)
_DROPPED_KEYS: Final = frozenset({"user_id", "group_id", "rootmode", "fsname", "subtype", "comment", "uid", "gid"})
_REFUSED: Final = {
    "auto_unmount": "jfs unmounts by itself when it ends",
    "writeback_cache": "the kernel's write-back cache would break close-to-open consistency",
}


def kernel_options(given: list[str], *, name: str, read_only: bool) -> set[str]:
    """What is mounted with: the words of `-o` that mean something to it, and ours."""
    options = {
        "default_permissions",
        f"fsname={os.environ.get('FSTAB_NAME_PREFIX', 'JuiceFS:')}{name}",
        "subtype=juicefs",
    }
    if os.geteuid() == 0:
        options.add("allow_other")
    if read_only:
        options.add("ro")
    for word in given:
        key = word.partition("=")[0]
        if key in _REFUSED:
            raise UserError(f'mount option "{word}" is not supported: {_REFUSED[key]}')
        if not is_known_word(word):
            raise UserError(f'unknown mount option: "{word}"')
        if not _is_dropped(word):
            options.add(word)
    return options


def is_known_word(word: str) -> bool:
    """Whether a word of `-o` means something, be it only to be dropped or refused."""
    key, separator, _ = word.partition("=")
    return _is_dropped(word) or key in _REFUSED or key in (_KERNEL_KEYS if separator else _KERNEL_WORDS)


def reads_up_to(most: int, options: set[str]) -> set[str]:
    """The options with which the kernel asks for no more than `most` bytes at once, LEAST_READ or more of them."""
    if most >= LARGEST_READ or any(word.startswith("max_read=") for word in options):
        return options
    return options | {f"max_read={most // READ_STEP * READ_STEP}"}


def _is_dropped(word: str) -> bool:
    key, separator, _ = word.partition("=")
    return key.startswith("x-") or key in (_DROPPED_KEYS if separator else _DROPPED_WORDS)


def prepare_mount_point(mount_point: str, *, nonempty: bool) -> str:
    """The real path of a directory that is ready to be mounted on.

    A missing one is made, one that a crashed mount left behind is unmounted; one in use or with files in it is refused.
    """
    path = os.path.realpath(mount_point)  # as the kernel shows it
    if path == "/":
        raise UserError("cannot mount on /")
    _replace_dead_mount(path)
    try:
        os.makedirs(path, mode=0o777, exist_ok=True)
        hidden = os.listdir(path)
    except OSError as error:
        raise UserError(f"mount point {path} cannot be used: {error.strerror}") from None
    kind = mounted_as(path)
    if kind is not None and kind.startswith("fuse.juicefs"):
        raise UserError(f"mount point {path} is busy: a volume is mounted there already; unmount it first")
    if hidden and not nonempty:
        raise UserError(f"mount point {path} is not empty; choose an empty directory or mount with -o nonempty")
    return path


def require_fuse() -> None:
    """FUSE is there, and so is what an ordinary user needs to mount with it."""
    if not os.path.exists("/dev/fuse"):
        raise UserError(
            "FUSE is not available: /dev/fuse is missing (load the kernel module fuse, or pass the device on)"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UserError("FUSE is not available: /dev/fuse may not be opened by this user")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UserError("FUSE is not available: fusermount3 is missing (install the package fuse3)")


def _replace_dead_mount(path: str) -> None:
    if not is_dead(path):
        return
    log.warning("mount point %s was left by a mount that died; it is unmounted first", path)
    refusal = unmount(path, lazily=True)
    if refusal is not None:
        raise UserError(f"mount point {path} is dead and cannot be unmounted: {refusal}")


def is_dead(path: str) -> bool:
    """Whether nobody serves what is mounted there."""
    try:
        os.statvfs(path)  # not stat, which the kernel may answer from its cache
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    return False


def mount_entry(path: str) -> tuple[str, str] | None:
    """(device number `0:52`, file system type) of what is mounted last on exactly this real path."""
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        if _unescape(fields[4]) == os.fsencode(path):
            found = (fields[2].decode(), fields[fields.index(b"-") + 1].decode())
    return found


def mounted_as(path: str) -> str | None:
    """The type of the file system mounted on exactly this path."""
    entry = mount_entry(path)
    return entry[1] if entry else None


def _unescape(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field


def tune_kernel(path: str) -> None:
    """Raise the kernel's limit of read-ahead for this mount where we may."""
    entry = mount_entry(path)
    if entry is None or os.geteuid() != 0:
        return
    _write_number(f"/sys/class/bdi/{entry[0]}/read_ahead_kb", READ_AHEAD_KIB)


def _write_number(path: str, number: int) -> None:
    try:
        with open(path, "w") as knob:
            knob.write(str(number))
    except OSError as error:
        log.debug("%s stays as it is: %s", path, error.strerror)


def unmount(path: str, *, lazily: bool = False) -> str | None:
    """Take the mount down; None, or what the system said against it."""
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is not None:
        words = [tool, "-uz" if lazily else "-u", path]
    else:
        words = ["umount", "-l", path] if lazily else ["umount", path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return (done.stderr or done.stdout).strip() or f"{os.path.basename(words[0])} exited with {done.returncode}"
