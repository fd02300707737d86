"""Sizes, rates and durations: what is understood, what is refused, how they are printed."""

import pytest

from jfs import units


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("4096", 1, 4096),
        ("4M", units.KIB, 4 << 20),
        ("4096", units.KIB, 4 << 20),
        ("1.5g", units.MIB, 3 << 29),
        ("10B", units.GIB, 10),
        ("0", units.GIB, 0),
        (".5K", 1, 512),
        ("1E", 1, 1 << 60),
    ],
)
def test_sizes_that_are_understood(text: str, unit: int, expected: int) -> None:
    assert units.parse_size(text, unit) == expected


@pytest.mark.parametrize("text", ["", "x", "4MB", "-1", "1 0", "4Q", "1e3", "nan", "inf", "9E", "M", "0.1"])
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30.0), ("1.5", 1.5), ("100ms", 0.1), ("1h30m", 5400.0), ("1d2h", 93600.0), ("0s", 0.0), ("1.0s", 1.0)],
)
def test_durations_that_are_understood(text: str, expected: float) -> None:
    assert units.parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "x", "1x", "1h x", "1h30"])
def test_durations_that_are_malformed(text: str) -> None:
    with pytest.raises(ValueError, match="malformed duration"):
        units.parse_duration(text)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e15", "9999999999h"])
def test_durations_that_are_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match=f"^duration '{text}' is out of range: from 0 to 9000000000 s is possible$"):
        units.parse_duration(text)


def test_rates_are_decimal() -> None:
    assert units.parse_rate("100") == 100
    assert units.parse_rate("1.5G") == 1500
    assert units.parse_rate("0.001G") == 1
    assert units.parse_rate("1000P") == units.MOST_RATE


@pytest.mark.parametrize("text", ["1K", "0.5", "1.5M", "0.0001G", "1001P", "9" * 5000, "-1"])
def test_rates_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        units.parse_rate(text)


def test_sizes_are_printed_for_people() -> None:
    assert [units.show_size(n) for n in (0, 1023, 9 << 20, 10 << 20, 1 << 30, 1500 << 30, 1 << 60)] == [
        "0 B",
        "1023 B",
        "9.0 MiB",
        "10 MiB",
        "1.0 GiB",
        "1.5 TiB",
        "1.0 EiB",
    ]
    assert units.show_size_exact(9437184) == "9.00 MiB (9437184 Bytes)"
    assert units.show_size_exact(6) == "6 Bytes"
    assert units.show_count(1234567) == "1,234,567"
