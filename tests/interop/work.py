"""Work that leaves something of every kind in a directory: done on both programs' mounts and on the local disk."""

import os
import random
import stat
from pathlib import Path

MIB = 1 << 20
EPOCH = 1_700_000_000 * 10**9


def write_at(path: Path, position: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(descriptor, data, position)
    os.close(descriptor)


def first_hand(root: Path) -> None:
    """A fresh tree."""
    dice = random.Random(5)
    for folder in ("docs/deep/er", "empty", "many"):
        (root / folder).mkdir(parents=True)
    (root / "docs/small").write_bytes(b"a few bytes")
    (root / "docs/none").touch()
    (root / "docs/text").write_bytes(b"the same words again and again. " * 100_000)
    (root / "docs/noise").write_bytes(dice.randbytes(9 * MIB + 4321))
    for number in range(120):
        (root / f"many/{number:03}").write_bytes(dice.randbytes(number * 300))
    write_at(root / "sparse", 70 * MIB, b"behind a hole")
    write_at(root / "patched", 0, bytes(3 * MIB))
    for number in range(12):
        write_at(root / "patched", number * 250_000, b"%d" % number * 100_000)
    os.link(root / "docs/small", root / "docs/deep/linked")
    os.link(root / "docs/small", root / "linked-too")
    (root / "link").symlink_to("docs/text")
    (root / "bytes-\u20ac\u00e9").write_bytes(b"name")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(root / "docs", "user.on-dir", b"\0binary\xff")
    os.setxattr(root / "docs/small", "user.note", b"kept")
    os.chown(root / "docs/text", 1000, 1001)
    os.chmod(root / "docs/text", 0o4711)
    os.chmod(root / "empty", 0o1777)
    os.truncate(root / "docs/noise", 8 * MIB - 77)
    os.truncate(root / "docs/none", 5000)


def second_hand(root: Path) -> None:
    """What another program does to it."""
    with (root / "docs/text").open("ab") as file:
        file.write(b"one more line")
    write_at(root / "docs/noise", 4 * MIB - 100, b"across the border of two blocks" * 10)
    write_at(root / "sparse", 64 * MIB - 5, b"across the border of two chunks")
    write_at(root / "patched", 100, b"again")
    os.truncate(root / "patched", 2 * MIB + 1)
    os.truncate(root / "patched", 3 * MIB)
    os.rename(root / "many", root / "docs/deep/many")
    os.rename(root / "docs/deep/many/007", root / "seven")
    os.rename(root / "docs/deep/many/008", root / "docs/deep/many/009")
    os.unlink(root / "linked-too")
    os.link(root / "seven", root / "empty/siete")
    for number in range(10, 60):
        os.unlink(root / f"docs/deep/many/{number:03}")
    os.setxattr(root / "docs/small", "user.note", b"changed")
    os.setxattr(root / "docs/small", "user.more", b"added")
    os.removexattr(root / "docs", "user.on-dir")
    os.unlink(root / "link")
    (root / "link").symlink_to("docs/deep")
    (root / "new").mkdir(mode=0o750)
    (root / "new/file").write_bytes(b"made second" * 1000)
    os.unlink(root / "pipe")


def settle_times(root: Path) -> None:
    """The same times everywhere, deepest names first; what belongs to the mount itself is left alone."""
    found = []
    for folder, folders, files in os.walk(root):
        if folder == str(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
        names = sorted(folders + files)
        found.append((folder, [name for name in names if folder != str(root) or not name.startswith(".")]))
    for number, (folder, names) in enumerate(sorted(found, reverse=True)):
        for name in names:
            os.utime(os.path.join(folder, name), ns=(EPOCH, EPOCH + number * 1001), follow_symlinks=False)
