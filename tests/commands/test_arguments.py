"""The argument rules: options anywhere, one dash or two, what is refused and how."""

import click
import pytest

from jfs.commands import arguments
from jfs.commands.arguments import GLOBAL_OPTIONS, arrange
from jfs.errors import UserError

OPTIONS: list[click.Parameter] = [
    click.Option(["--size", "-s"]),
    click.Option(["-o", "words"], multiple=True),
    click.Option(["--force", "-f"], type=click.BOOL, is_flag=False, flag_value="true"),
]


@pytest.mark.parametrize(
    ("line", "options", "rest"),
    [
        ("URL NAME", [], ["URL", "NAME"]),
        ("URL --size 4M NAME", ["--size=4M"], ["URL", "NAME"]),
        ("-size=4M URL", ["--size=4M"], ["URL"]),
        ("-s 4M URL", ["--size=4M"], ["URL"]),
        ("--force URL", ["--force=true"], ["URL"]),
        ("-f URL", ["--force=true"], ["URL"]),
        ("-force=false URL", ["--force=false"], ["URL"]),
        ("URL -o a,b -o c=d", ["-oa,b", "-oc=d"], ["URL"]),
        ("--size -1 URL", ["--size=-1"], ["URL"]),
        ("-- --size", [], ["--size"]),
        ("- URL", [], ["-", "URL"]),
    ],
)
def test_options_stand_anywhere(line: str, options: list[str], rest: list[str]) -> None:
    assert arrange(line.split(), OPTIONS, strict=True) == (options, rest)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("URL --foo", 'unknown option: "--foo"'),
        ("URL -x=1", 'unknown option: "-x=1"'),
        ("URL --size", "flag needs an argument: --size"),
        ("URL -o", "flag needs an argument: -o$"),
        ("--force=maybe", 'Invalid value "maybe" for "force"'),
    ],
)
def test_refusals_are_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        arrange(line.split(), OPTIONS, strict=True)


def test_global_options_are_found_behind_the_command() -> None:
    line = "status sqlite3://x --quiet -m --log-id=7"
    assert arrange(line.split(), GLOBAL_OPTIONS, strict=False) == (
        ["--quiet=true", "--log-id=7"],
        ["status", "sqlite3://x", "-m"],
    )


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (arguments.Size(1 << 20), "300", 300 << 20),
        (arguments.Size(1 << 20), "1.5G", 3 << 29),
        (arguments.Rate(), "1G", 1000),
        (arguments.Duration(), "1m", 60.0),
        (arguments.Whole(1, 5), "5", 5),
        (arguments.OneOf("none", "lz4"), "lz4", "lz4"),
    ],
)
def test_values(kind: click.ParamType, text: str, value: object) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (arguments.Size(), "4Q"),
        (arguments.Rate(), "fast"),
        (arguments.Whole(1, 5), "0"),
        (arguments.Whole(), "1.5"),
        (arguments.OneOf("none", "lz4"), "gzip"),
    ],
)
def test_malformed_values_are_refused(kind: click.ParamType, text: str) -> None:
    with pytest.raises(UserError, match=f'Invalid value "{text}"'):
        kind.convert(text, None, None)


@pytest.mark.logs("malformed duration")
def test_a_malformed_duration_counts_as_nothing_as_for_the_peer() -> None:
    assert arguments.Duration().convert("soon", None, None) == 0.0
