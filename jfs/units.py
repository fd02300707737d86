"""Sizes, durations and counts as people write and read them (the conventions of the command line)."""

import re
from decimal import Decimal
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

MOST_RATE: Final = 10**12
"""Mbps.  The peer counts the bytes of a second in 64 bits, with a sign."""
MOST_SECONDS: Final = 9e9
"""285 years.  The peer counts nanoseconds in 64 bits."""

_SUFFIXES: Final = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_RATES: Final = {"M": 1, "G": 10**3, "T": 10**6, "P": 10**9}
_SIZE: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([A-Za-z]?)")
_STEP: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str, unit: int = 1) -> int:
    """Bytes of `64K`, `1.5G`, `10B`; a bare number counts in `unit` bytes.  ValueError says what is wrong."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] and match[2].upper() not in _SUFFIXES):
        raise ValueError(f"malformed size {text!r}; examples: 512, 64K, 1.5G")
    scale = 1 << _SUFFIXES[match[2].upper()] if match[2] else unit
    size = int(float(match[1]) * scale) if "." in match[1] else int(match[1]) * scale
    if size >= 1 << 63:
        raise ValueError(f"size {text!r} is too large: less than 8E is wanted")
    if not size and float(match[1]):
        raise ValueError(f"size {text!r} is less than one byte")
    return size


def parse_rate(text: str) -> int:
    """Mbps of `100`, `100M`, `1.5G` (factor 1000).  ValueError says what is wrong.

    Settings hold whole Mbps: less than one would become 0, which means no limit.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] and match[2].upper() not in _RATES):
        raise ValueError(f"malformed rate {text!r}; examples: 100, 100M, 1G")
    rate = Decimal(match[1]) * _RATES[match[2].upper() or "M"]
    if rate > MOST_RATE:
        raise ValueError(f"rate {text!r} is too large: at most {MOST_RATE} Mbps are possible")
    if rate != int(rate):
        raise ValueError(f"rate {text!r} is no whole number of Mbps")
    return int(rate)


def parse_duration(text: str) -> float:
    """Seconds of `1h30m`, `100ms`, `1d2h`, or of a bare number.  ValueError says what is wrong."""
    stripped = text.strip()
    try:
        seconds = float(stripped)
    except ValueError:
        steps = _STEP.findall(stripped)
        if not steps or "".join(number + unit for number, unit in steps) != stripped:
            raise ValueError(f"malformed duration {text!r}; examples: 30, 1.5s, 100ms, 1h30m, 2d") from None
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in steps)
    if not 0 <= seconds < MOST_SECONDS:
        raise ValueError(f"duration {text!r} is out of range: from 0 to {MOST_SECONDS:.0f} s is possible")
    return seconds


def show_rate(rate: int) -> str:
    """`0.0 Mbps`, `1.5 Gbps`: a rate in Mbps, 1000-based."""
    value, unit = float(rate), "Mbps"
    for larger in ("Gbps", "Tbps", "Pbps"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def show_size(size: int) -> str:
    """`0 B`, `9.0 MiB`, `10 GiB`: 1024-based, one decimal below ten, as the peer rounds."""
    if abs(size) < KIB:
        return f"{size} B"
    number, unit = show_size_parts(size)
    return f"{number:.1f} {unit}" if round(abs(number), 1) < 10 else f"{number:.0f} {unit}"


def show_size_exact(size: int) -> str:
    """`9.00 MiB (9437184 Bytes)`."""
    if size < KIB:
        return f"{size} Bytes"
    number, unit = show_size_parts(size)
    return f"{number:.2f} {unit} ({size} Bytes)"


def show_size_parts(size: int) -> tuple[float, str]:
    """The number and the binary unit of a size."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            return value, unit
        value /= 1024
    return value, "EiB"


def show_count(count: int) -> str:
    """`1,234,567`."""
    return f"{count:,}"
