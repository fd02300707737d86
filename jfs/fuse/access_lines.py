"""What `.accesslog` says of each kind of request: its arguments as the field writes them, and what it gave.

A row takes the handler's arguments, without who asks, and its result; rows not listed show nothing but numbers.
"""

import stat
from collections.abc import Callable, Sequence
from typing import Any, Final

from jfs.meta.inodes import AttrChange
from jfs.meta.types import S_IFMT_OF, Attr, Entry, Ino

Row = tuple[Callable[..., str], Callable[[Any], str]]
NANO: Final = 1_000_000_000


def _name(name: bytes) -> str:
    return name.decode(errors="replace")


def _mode(mode: int) -> str:
    return f"{stat.filemode(mode)}:{mode:07o}"


def _attr(attr: Attr) -> str:
    times = ",".join(str(ns // NANO) for ns in (attr.atime_ns, attr.mtime_ns, attr.ctime_ns))
    return f"[{_mode(S_IFMT_OF[attr.type] | attr.mode)},{attr.nlink},{attr.uid},{attr.gid},{times},{attr.length}]"


def _entry(entry: Entry) -> str:
    return f": ({entry.ino},{_attr(entry.attr)})" if entry.ino else ""


def _created(made: tuple[Entry, Any]) -> str:
    return f"{_entry(made[0])} [fh:{made[1].fh}]"


def _handle(reply: Any) -> str:
    return f" [fh:{reply.fh}]"


def _count(reply: Any) -> str:
    return f": ({reply if isinstance(reply, int) else len(reply)})"


def _nothing(reply: Any) -> str:
    return ""


def _numbers(*args: Any) -> str:
    return ",".join(_name(each) if isinstance(each, bytes) else str(each) for each in args)


def _set(ino: Ino, fh: int | None, change: AttrChange, size: int | None, atime_now: bool, mtime_now: bool) -> str:
    now = "now"
    shown = (
        ("mode", None if change.mode is None else _mode(change.mode)),
        ("uid", change.uid),
        ("gid", change.gid),
        ("size", size),
        ("atime", now if atime_now else None if change.atime_ns is None else change.atime_ns // NANO),
        ("mtime", now if mtime_now else None if change.mtime_ns is None else change.mtime_ns // NANO),
    )
    bits = sum(1 << bit for bit, (_, value) in enumerate(shown) if value is not None)
    changes = " ".join(f"{name}={value}" for name, value in shown if value is not None)
    return f"{ino}{f'[{fh}]' if fh is not None else ''},{bits:#x},[{changes}]"


ROWS: Final[dict[str, Row]] = {
    "lookup": (_numbers, _entry),
    "getattr": (_numbers, lambda reply: f": {_attr(reply[1])}"),
    "setattr": (_set, lambda reply: f": {_attr(reply[1])}"),
    "mknod": (lambda ino, name, mode, rdev: f"{ino},{_name(name)},{_mode(mode)},{rdev:#x}", _entry),
    "mkdir": (lambda ino, name, mode: f"{ino},{_name(name)},{_mode(mode)}", _entry),
    "create": (lambda ino, name, mode, flags: f"{ino},{_name(name)},{_mode(mode)}", _created),
    "symlink": (_numbers, _entry),
    "link": (_numbers, _entry),
    "open": (lambda ino, flags: f"{ino},{flags:#x}", _handle),
    "opendir": (_numbers, lambda reply: f" [fh:{reply[0]}]"),
    "read": (lambda fh, offset, size: f"{size},{offset},{fh}", _count),
    "write": (lambda fh, offset, data, flags: f"{len(data)},{offset},{fh}", _nothing),
    "readlink": (_numbers, lambda reply: f": ({_name(reply)})"),
    "readdir": (lambda fh, offset, size: f"{fh},{offset}", _nothing),
    "setxattr": (lambda ino, name, value, flags: f"{ino},{_name(name)},{len(value)},{flags}", _nothing),
    "getxattr": (_numbers, _count),
    "listxattr": (_numbers, _count),
}


def call_text(name: str, args: Sequence[Any]) -> str:
    """`lookup (1,f1)`."""
    show = ROWS[name][0] if name in ROWS else _numbers
    return f"{name} ({show(*args)})"


def result_text(name: str, reply: Any) -> str:
    """What stands between the arguments and the outcome."""
    return ROWS[name][1](reply) if name in ROWS else ""
