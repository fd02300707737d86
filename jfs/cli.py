"""The `jfs` program: global flags, the table of commands, and what every command's end has in common.

A command's module is imported when it is called, so that `jfs status` does not pay for what a mount needs.  Exit codes are
the peer's: 0, 1 after one `<FATAL>` line, 3 for a command that is unknown or not there yet.
"""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from jfs import logs
from jfs.commands import arguments, failures
from jfs.commands.arguments import GLOBAL_OPTIONS, Command
from jfs.errors import UserError

log = logging.getLogger(__name__)

PROGRAM: Final = "jfs"

COMMANDS: Final = {
    "format": ("jfs.commands.format", "Format a volume"),
    "config": ("jfs.commands.config", "Show or change the settings of a volume"),
    "compact": ("jfs.commands.compact", "Rewrite chunks of many slices as one slice"),
    "gc": ("jfs.commands.gc", "Find, and with --delete remove, leaked objects"),
    "fsck": ("jfs.commands.fsck", "Check that the metadata is sound and every block is there"),
    "mount": ("jfs.commands.mount", "Mount a volume"),
    "umount": ("jfs.commands.umount", "Unmount a volume"),
    "status": ("jfs.commands.status", "Show settings, sessions and usage of a volume"),
    "version": ("jfs.commands.version", "Show the version"),
}

OF_THE_PEER: Final = frozenset(
    {"quota", "destroy", "restore", "dump", "load", "tier", "changelog", "stats", "profile", "info", "debug", "summary"}
    | {"gateway", "webdav", "bench", "objbench", "mdtest", "warmup", "rmr", "sync", "clone"}
)
"""Its commands that are not here yet."""

_HELP: Final = """\
NAME:
   jfs - A POSIX file system on metadata engines and object storage, interchangeable with JuiceFS.

USAGE:
   jfs [global options] command [command options] [arguments...]

COMMANDS:
{commands}

GLOBAL OPTIONS:
   --verbose, --debug, -v   debug log
   --quiet, -q              warnings and errors only
   --trace                  trace log
   --log-id ID              put [ID] before every log line; `random` makes one
   --no-agent               accepted: jfs has no profiling port
   --no-color               no colours in logs
   --help, -h               show help
   --version, -V            print the version
"""


def main() -> NoReturn:
    """Entry point of `jfs` and `mount.juicefs`."""
    sys.exit(run(sys.argv))


def run(argv: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    try:
        words = list(argv[1:])
        if argv[0].endswith("mount.juicefs") or os.environ.get("CALL_VIA_MOUNT"):
            from jfs.commands.mount_helper import translate

            logs.set_up()
            words = translate(words)
        return _dispatch(words)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _fatal(failures.line(error))


def _fatal(message: str) -> int:
    if not logging.getLogger().handlers:
        logs.set_up()
    log.critical("%s", message)
    return 1


def _dispatch(words: Sequence[str]) -> int:
    flags, rest = arguments.arrange(words, GLOBAL_OPTIONS, strict=False)
    given = dict(flag[2:].split("=", 1) for flag in flags)
    _set_up_logs(given)
    if given.get("version") == "true":
        rest = ["version"]
    if not rest or rest[0] in ("-h", "--help", "-help", "help"):
        print(_help(), end="")
        return 0
    name = rest[0]
    if name.startswith("-"):
        raise UserError(f'unknown option: "{name}"')
    if name in OF_THE_PEER:
        print(f"command {name} is not supported yet", file=sys.stderr)
        return 3
    if name not in COMMANDS:
        print(f"No help topic for '{name}'", file=sys.stderr)
        return 3
    return _invoke(name, rest[1:])


def _invoke(name: str, words: Sequence[str]) -> int:
    command: Command = importlib.import_module(COMMANDS[name][0]).command
    context = click.Context(command, info_name=f"{PROGRAM} {name}", **command.context_settings)
    options, positionals = arguments.arrange(words, command.get_params(context), strict=True)
    if any(option.startswith("--help=") for option in options):
        print(command.get_help(context))
        return 0
    wrong = command.wrong_count(positionals)
    if wrong is not None:
        print(f"{wrong}\nUSAGE:\n   {PROGRAM} {name} [command options] {command.usage}")
        return 1
    if "" in positionals:  # a variable of a script that is not set; as a path it would be the current directory
        raise UserError(f"an argument is empty; wanted: {PROGRAM} {name} {command.usage}")
    code = command.main([*options, "--", *positionals], prog_name=f"{PROGRAM} {name}", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _set_up_logs(given: dict[str, str]) -> None:
    level = logging.INFO
    if given.get("trace") == "true":
        level = logs.TRACE
    elif given.get("verbose") == "true":
        level = logging.DEBUG
    elif given.get("quiet") == "true":
        level = logging.WARNING
    if "log-level" in given:
        level = logs.LEVELS.get(given["log-level"].lower(), -1)
        if level < 0:
            raise UserError(f'Invalid value "{given["log-level"]}" for "log-level": one of {", ".join(logs.LEVELS)}')
    logs.set_up(
        level=level,
        log_id=given.get("log-id", ""),
        colour=False if given.get("no-color") == "true" else None,
    )
    if "pyroscope" in given:
        raise UserError("option --pyroscope is not supported yet")


def _help() -> str:
    return _HELP.format(commands="\n".join(f"   {name:<9} {text}" for name, (_, text) in COMMANDS.items()))


if __name__ == "__main__":
    main()
