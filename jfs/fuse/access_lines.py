"""What `.accesslog` says of each kind of request: its arguments as the field writes them, and what it gave.

A row takes the handler's arguments without the request's context, and its result; rows not listed show nothing but numbers.
"""

import stat
from collections.abc import Callable
from typing import Any, Final

from pyfuse3 import EntryAttributes, FileInfo

Row = tuple[Callable[..., str], Callable[[Any], str]]


def _name(name: bytes) -> str:
    return name.decode(errors="replace")


def _mode(mode: int) -> str:
    return f"{stat.filemode(mode)}:{mode:07o}"


def _attr(reply: EntryAttributes) -> str:
    times = ",".join(str(ns // 1_000_000_000) for ns in (reply.st_atime_ns, reply.st_mtime_ns, reply.st_ctime_ns))
    return f"[{_mode(reply.st_mode)},{reply.st_nlink},{reply.st_uid},{reply.st_gid},{times},{reply.st_size}]"


def _entry(reply: EntryAttributes) -> str:
    return f": ({reply.st_ino},{_attr(reply)})"


def _created(reply: tuple[FileInfo, EntryAttributes]) -> str:
    return f"{_entry(reply[1])} [fh:{reply[0].fh}]"


def _handle(reply: Any) -> str:
    return f" [fh:{reply if isinstance(reply, int) else reply.fh}]"


def _count(reply: Any) -> str:
    return f": ({reply if isinstance(reply, int) else len(reply)})"


def _nothing(reply: Any) -> str:
    return ""


def _numbers(*args: Any) -> str:
    return ",".join(_name(each) if isinstance(each, bytes) else str(each) for each in args)


def _set(ino: int, attr: EntryAttributes, fields: Any, fh: int | None) -> str:
    shown = (
        ("mode", fields.update_mode, _mode(attr.st_mode)),
        ("uid", fields.update_uid, attr.st_uid),
        ("gid", fields.update_gid, attr.st_gid),
        ("size", fields.update_size, attr.st_size),
        ("atime", fields.update_atime, attr.st_atime_ns // 1_000_000_000),
        ("mtime", fields.update_mtime, attr.st_mtime_ns // 1_000_000_000),
    )
    bits = sum(1 << bit for bit, (_, given, _) in enumerate(shown) if given)
    changes = " ".join(f"{name}={value}" for name, given, value in shown if given)
    return f"{ino}{f'[{fh}]' if fh is not None else ''},{bits:#x},[{changes}]"


ROWS: Final[dict[str, Row]] = {
    "lookup": (_numbers, _entry),
    "getattr": (_numbers, lambda reply: f": {_attr(reply)}"),
    "setattr": (_set, lambda reply: f": {_attr(reply)}"),
    "mknod": (lambda ino, name, mode, rdev: f"{ino},{_name(name)},{_mode(mode)},{rdev:#x}", _entry),
    "mkdir": (lambda ino, name, mode: f"{ino},{_name(name)},{_mode(mode)}", _entry),
    "create": (lambda ino, name, mode, flags: f"{ino},{_name(name)},{_mode(mode)}", _created),
    "symlink": (_numbers, _entry),
    "link": (_numbers, _entry),
    "open": (lambda ino, flags: f"{ino},{flags:#x}", _handle),
    "opendir": (_numbers, _handle),
    "read": (lambda fh, offset, size: f"{size},{offset},{fh}", _count),
    "write": (lambda fh, offset, data: f"{len(data)},{offset},{fh}", _nothing),
    "readlink": (_numbers, lambda reply: f": ({_name(reply)})"),
    "readdir": (lambda fh, offset, token: f"{fh},{offset}", _nothing),
    "setxattr": (lambda ino, name, value: f"{ino},{_name(name)},{len(value)}", _nothing),
    "getxattr": (_numbers, _count),
    "listxattr": (_numbers, _count),
}


def call_text(name: str, args: tuple[Any, ...]) -> str:
    """`lookup (1,f1)`."""
    show = ROWS[name][0] if name in ROWS else _numbers
    return f"{name} ({show(*args)})"


def result_text(name: str, reply: Any) -> str:
    """What stands between the arguments and the outcome."""
    return ROWS[name][1](reply) if name in ROWS else ""
