"""Write docs/reference.md from the command line's own option tables: `make docs`."""

import importlib
import sys
from pathlib import Path

import click

from jfs.cli import COMMANDS
from jfs.commands.arguments import Command

TARGET = Path(__file__).with_name("reference.md")


def option_row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    default = "" if option.default in (None, False, ()) or not option.show_default else f"`{option.default}`"
    if isinstance(option.show_default, str):
        default = f"`{option.show_default}`"
    return f"| {names} | {default} | {option.help or ''} |"


def section(name: str, command: Command) -> str:
    shown = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    hidden = sorted(
        name for option in command.params if isinstance(option, click.Option) and option.hidden for name in option.opts
    )
    lines = [f"## jfs {name} {command.usage}".rstrip(), "", (command.help or "").strip(), ""]
    if shown:
        lines += ["| option | default | meaning |", "| --- | --- | --- |", *map(option_row, shown), ""]
    if hidden:
        lines += [
            "Known, and refused or without effect (a message says which): "
            + ", ".join(f"`{name}`" for name in hidden)
            + ".",
            "",
        ]
    return "\n".join(lines)


def reference() -> str:
    """The whole page."""
    head = "# Reference\n\nGenerated from the program by `make docs`. Sizes take K, M, G, T; durations take 10s, 5m, 1h, 2d.\n"
    parts = [section(name, importlib.import_module(module).command) for name, (module, _) in COMMANDS.items()]
    return "\n".join([head, *parts])


if __name__ == "__main__":
    text = reference()
    if sys.argv[1:] == ["--check"]:
        sys.exit(text != TARGET.read_text())
    TARGET.write_text(text)
