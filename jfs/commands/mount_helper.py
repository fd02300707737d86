"""`mount.juicefs META-URL MOUNTPOINT [-o OPTIONS]`, as mount(8), fstab and scripts call it, put as `jfs mount`."""

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Final

from jfs.commands.arguments import GLOBAL_NAMES, is_switch
from jfs.errors import UserError
from jfs.fuse.mounting import is_known_word

_DROPPED: Final = frozenset(
    {"", "background", "_netdev", "nofail", "rw", "defaults", "remount"}
    | {"iversion", "noiversion", "mand", "nomand", "lazytime", "nolazytime", "nostrictatime"}
)
"""Words of mount(8) that are not for us, or change nothing here."""
_RENAMED: Final = {"attrcacheto": "attr-cache", "entrycacheto": "entry-cache", "direntrycacheto": "dir-entry-cache"}


def translate(words: Sequence[str]) -> list[str]:
    """The words of the `jfs mount` that a `mount.juicefs` means."""
    places: list[str] = []
    given: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "-o":
            given.extend(next(waiting, "").split(","))
        elif word.startswith("-o"):
            given.extend(word[2:].split(","))
        elif not word.startswith("-"):
            places.append(word)
    if len(places) < 2:
        return ["mount", "--help"]
    flags, rest = _split_options(given)
    words = ["mount", *flags]
    if not os.environ.get("JFS_FOREGROUND"):
        words.append("--background")
    if rest:
        words += ["-o", ",".join(rest)]
    return [*words, *places[:2]]


def _split_options(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own flags, and what is for FUSE or mount(8)."""
    from jfs.commands.mount import command

    known = {name[2:]: option for option in command.params for name in option.opts if name.startswith("--")}
    flags: list[str] = []
    rest: list[str] = []
    for word in given:
        name, separator, value = word.partition("=")
        if word in _DROPPED or name.startswith(("x-", "X-")):
            continue
        name = _RENAMED.get(name, name)
        option = known.get(name)
        if option is None and name not in GLOBAL_NAMES:
            if not is_known_word(word):
                raise UserError(f'unknown mount option: "{word}"{_meant(name, known)}')
            rest.append(word)
        elif option is not None and not is_switch(option) and not separator:
            raise UserError(f"option {name} requires a value")
        else:
            flags.append(f"--{name}={value}" if separator else f"--{name}")
    return flags, rest


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f'; is "{close[0]}" meant?' if close else ""
