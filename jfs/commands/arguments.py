"""The peer's argument rules on top of click: options stand anywhere, `-x` is `--x`, `--flag=false` works, and
every refusal is one line.

`arrange` brings a command line into the one form that click understands without guessing; the parameter types and the
option makers below are what the commands declare their flags with.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import click

from jfs import units
from jfs.errors import UserError

log = logging.getLogger(__name__)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

NO_BOUND: Final = (1 << 63) - 1
"""The most that the peer's records hold."""

NEGATIVE: Final = "less than 0"

_TRUTH: Final = {"true": "true", "t": "true", "1": "true", "false": "false", "f": "false", "0": "false"}


GLOBAL_OPTIONS: Final[list[click.Parameter]] = [
    click.Option(["--verbose", "--debug", "-v"], type=click.BOOL, is_flag=False, flag_value="true"),
    click.Option(["--quiet", "-q"], type=click.BOOL, is_flag=False, flag_value="true"),
    click.Option(["--trace"], type=click.BOOL, is_flag=False, flag_value="true"),
    click.Option(["--log-level"]),
    click.Option(["--log-id"]),
    click.Option(["--no-agent"], type=click.BOOL, is_flag=False, flag_value="true"),
    click.Option(["--no-color"], type=click.BOOL, is_flag=False, flag_value="true"),
    click.Option(["--pyroscope"]),
    click.Option(["--version", "-V"], type=click.BOOL, is_flag=False, flag_value="true"),
]
GLOBAL_NAMES: Final = frozenset(
    name.lstrip("-") for option in GLOBAL_OPTIONS for name in option.opts if name.startswith("--")
)


class Command(click.Command):
    """A sub-command: click's, plus how many positional arguments it takes and how its usage line reads."""

    def __init__(self, *args: Any, positionals: tuple[int, int], usage: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positionals = positionals
        self.usage = usage

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"USAGE:\n   {ctx.command_path} [command options] {self.usage}\n")

    def wrong_count(self, given: Sequence[str]) -> str | None:
        """What to print where the number of positional arguments is wrong."""
        least, most = self.positionals
        if len(given) < least:
            return f"ERROR: This command requires at least {least} arguments"
        if len(given) > most:
            return f"ERROR: This command accepts at most {most} arguments but got [{' '.join(given)}]"
        return None


def command(name: str, usage: str, positionals: tuple[int, int]) -> Callable[[Callable[..., Any]], Command]:
    """Declare a sub-command; its function gets the positional arguments as the tuple `arguments`."""

    def declare(function: Callable[..., Any]) -> Command:
        with_arguments = click.argument("arguments", nargs=-1)(function)
        made: Command = click.command(
            name,
            cls=Command,
            usage=usage,
            positionals=positionals,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        )(with_arguments)
        return made

    return declare


def arrange(argv: Sequence[str], options: Iterable[click.Parameter], *, strict: bool) -> tuple[list[str], list[str]]:
    """Split a command line into canonical options (`--name=value`) and the rest, in order.

    Not strict: an option that is none of `options` stays in the rest, for a later, strict, pass.
    """
    known = {name.lstrip("-"): option for option in options for name in option.opts if name.startswith("-")}
    found: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest.extend(words if strict else ["--", *words])
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        name, given, value = word[2 if word.startswith("--") else 1 :].partition("=")
        option = known.get(name)
        if option is not None:
            found.append(_canonical(option, name, value if given else None, words))
        elif strict:
            raise UserError(f'unknown option: "{word}"')
        else:
            rest.append(word)
    return found, rest


def _canonical(option: click.Parameter, name: str, value: str | None, words: Iterable[str]) -> str:
    if is_switch(option):
        truth = _TRUTH.get("true" if value is None else value.lower())
        if truth is None:
            raise UserError(f'Invalid value "{value}" for "{name}": must be true or false')
        value = truth
    elif value is None:
        value = next(iter(words), None)
        if value is None:
            raise UserError(f"flag needs an argument: {'-' if len(name) == 1 else '--'}{name}")
    for spelling in option.opts:
        if spelling.startswith("--"):
            return f"{spelling}={value}"
    return f"{option.opts[0]}{value}"


def is_switch(option: click.Parameter) -> bool:
    """Whether the option takes no value on the command line."""
    return isinstance(option.type, click.types.BoolParamType)


# -- parameter types: a malformed value is a UserError in the peer's words.  Where `instead` is given, one that is well formed and
# makes no sense is a warning, and that is used: the peer makes a mount then, and a machine's boot may depend on it.


class Size(click.ParamType[int]):
    """Bytes, with a suffix or in the flag's own unit."""

    name = "size"

    def __init__(self, unit: int = 1, *, instead: int | None = None) -> None:
        self.unit = unit
        self.instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not isinstance(value, str):
            return int(value)
        if self.instead is not None and _is_negative(value, units.parse_size):
            warn_of_value(value, _name(param), NEGATIVE, f"{units.show_size(self.instead)} is used")
            return self.instead
        return _converted(lambda: units.parse_size(value, self.unit), value, param)


class Rate(click.ParamType[int]):
    """Megabits per second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return _converted(lambda: units.parse_rate(value) if isinstance(value, str) else value, value, param)


class MountRate(click.ParamType[int | None]):
    """The same of a mount: None stands for the volume's setting."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if isinstance(value, str) and _is_negative(value, units.parse_rate):
            warn_of_value(value, _name(param), NEGATIVE, "the volume's setting is used")
            return None
        return Rate().convert(value, param, ctx)


class Duration(click.ParamType[float]):
    """Seconds.  As for the peer, a malformed one is a warning and counts as 0; where 0 is no answer, `instead` is used."""

    name = "duration"

    def __init__(self, *, instead: float = 0.0) -> None:
        self.instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return float(value)
        seconds, why = 0.0, "more than 0 s is wanted"
        try:
            seconds = units.parse_duration(value)
        except ValueError as error:
            why = str(error)
            if not self.instead:
                log.warning("option --%s: %s; taken as 0", _name(param), error)
        if not seconds and self.instead:
            warn_of_value(value, _name(param), why, f"{self.instead:g} s is used")
            return self.instead
        return seconds


class Whole(click.ParamType[int]):
    """A whole number within bounds."""

    name = "number"

    def __init__(self, least: int = 0, most: int = NO_BOUND, why: str = "", *, instead: int | None = None) -> None:
        """`why`: what is said of the bounds beside them.  `instead`: for less than the least; for more it is the most."""
        self.least = least
        self.most = most
        self.why = why
        self.instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = _converted(lambda: _whole(value), value, param)
        if self.least <= number <= self.most:
            return number
        bounded = number > self.most or self.most < NO_BOUND
        wanted = f"from {self.least} to {self.most}" if bounded else f"from {self.least} on"
        why = f"a number {wanted} is wanted{self.why}"
        if self.instead is None:
            raise UserError(f'Invalid value "{value}" for "{_name(param)}": {why}')
        used = self.most if number > self.most else self.instead
        warn_of_value(value, _name(param), why, f"{used} is used")
        return used


TRASH_DAYS: Final = Whole(0, 100_000, " (273 years: times are counted in nanoseconds)")
"""Days in the trash, as far as the peer can count."""


class OneOf(click.ParamType[str]):
    """One of a few words."""

    name = "word"

    def __init__(self, *words: str, instead: str | None = None) -> None:
        self.words = words
        self.instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.words:
            return str(value)
        why = f"must be one of {', '.join(self.words)}"
        if self.instead is None:
            raise UserError(f'Invalid value "{value}" for "{_name(param)}": {why}')
        warn_of_value(value, _name(param), why, f"{self.instead} is used")
        return self.instead


def warn_of_value(value: str, name: str, why: str, used: str) -> None:
    """An option's value makes no sense, and something else is done."""
    log.warning('Invalid value "%s" for "%s": %s; %s instead', value, name, why, used)


def _is_negative(text: str, parse: Callable[[str], object]) -> bool:
    """Whether it would be well formed without a minus sign."""
    sign, number = text.strip()[:1], text.strip()[1:]
    try:
        parse(number)
    except ValueError:
        return False
    return sign == "-"


def _whole(value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("not a whole number") from None


def _converted(convert: Callable[[], Any], value: Any, param: click.Parameter | None) -> int:
    try:
        return int(convert())
    except ValueError as error:
        raise UserError(f'Invalid value "{value}" for "{_name(param)}": {error}') from None


def _name(param: click.Parameter | None) -> str:
    return (param.name or "").replace("_", "-") if param else ""


# -- option makers


def value(
    *names: str, kind: click.ParamType[Any] | None = None, default: Any = None, text: str, **more: Any
) -> Decorator:
    """An option that takes a value."""
    shown: bool | str = default is not None
    if isinstance(kind, Size) and default:
        shown = units.show_size(default)
    return click.option(*names, type=kind or click.STRING, default=default, help=text, show_default=shown, **more)


def switch(*names: str, text: str, default: bool | None = False, **more: Any) -> Decorator:
    """An option that is on or off; `--name=false` turns it off.  Default None tells "not given" from "off"."""
    return click.option(
        *names, type=click.BOOL, is_flag=False, flag_value="true", default=default, metavar="", help=text, **more
    )


def not_yet(*names: str, switches: Sequence[str] = ()) -> Decorator:
    """Options of features that jfs does not have: giving one is refused, never ignored."""

    def refuse(ctx: click.Context, param: click.Parameter, given: Any) -> None:
        if given is not None and given is not False:
            raise UserError(f"option --{_name(param)} is not supported yet")

    return _hidden(names, switches, refuse)


def tuning(*names: str, switches: Sequence[str] = ()) -> Decorator:
    """Options that only tune the peer's insides: accepted, and a warning says that they do nothing here."""

    def warn(ctx: click.Context, param: click.Parameter, given: Any) -> None:
        if given is not None and given is not False:
            log.warning("option --%s has no effect in jfs", _name(param))

    return _hidden(names, switches, warn)


def _hidden(names: Sequence[str], switches: Sequence[str], callback: Callable[..., None]) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            function = click.option(name, callback=callback, expose_value=False, hidden=True)(function)
        for name in switches:
            function = switch(name, text="", default=None, callback=callback, expose_value=False, hidden=True)(function)
        return function

    return decorate


def was_given(ctx: click.Context, name: str) -> bool:
    """Whether the option stood on the command line."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
