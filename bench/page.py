"""docs/benchmarks.md from the figures of all rounds."""

import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from bench.limits import BOUNDS
from bench.mounts import binary, run
from bench.timing import Rows

NOTES = Path(__file__).with_name("notes.md")
SHOWN = {"jfs": "jfs", "juicefs": "JuiceFS", "rclone": "rclone"}

Samples = dict[str, dict[str, list[float]]]
"""Row -> program -> one figure a round."""


@dataclass
class Figures:
    """By section."""

    rates: dict[str, Samples] = field(default_factory=dict)
    costs: dict[str, Samples] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)

    def add(self, section: str, program: str, rates: Rows, costs: Rows) -> None:
        for tables, figures in ((self.rates, rates), (self.costs, costs)):
            samples = tables.setdefault(section, {})
            for row, figure in figures.items():
                samples.setdefault(row, {}).setdefault(program, []).append(figure)

    def add_limits(self, rates: Rows) -> None:
        for row, figure in rates.items():
            self.limits.setdefault(row, []).append(figure)


def table(samples: Samples) -> str:
    """Medians of each program, and the ratios of jfs to the others with their ranges over the rounds."""
    programs = [name for name in SHOWN if any(name in found for found in samples.values())]
    others = programs[1:]
    heads = [SHOWN[name] for name in programs]
    heads += [head for name in others for head in (f"jfs ÷ {SHOWN[name]}", "range")]
    lines = [f"| row | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for row, found in samples.items():
        cells = [f"{statistics.median(found[name]):,.1f}" if name in found else "" for name in programs]
        for name in others:
            cells += ratio(found["jfs"], found.get(name, []))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(ours: list[float], theirs: list[float]) -> list[str]:
    """The median of the rounds' ratios, and their range."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=bool(theirs)) if other]
    if not ratios:
        return ["", ""]
    return [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


def bounds(figures: Figures) -> str:
    """What the machine can do, and what part of it each row of jfs reaches."""
    lines = ["| the machine alone | median |", "| --- | ---: |"]
    lines += [f"| {row} | {statistics.median(found):,.0f} |" for row, found in figures.limits.items()]
    lines += ["", "| jfs | reaches | of |", "| --- | ---: | --- |"]
    for section, row, limits in BOUNDS:
        found = figures.rates.get(section, {}).get(row, {}).get("jfs")
        for limit in limits:
            if found:
                part = statistics.median(found) / statistics.median(figures.limits[limit])
                lines.append(f"| {section}: {row} | {100 * part:.0f} % | {limit} |")
    return "\n".join(lines)


def rounds(samples: Samples) -> str:
    """How many there were of a section."""
    most = max(len(found["jfs"]) for found in samples.values())
    return "1 round" if most == 1 else f"{most} rounds"


def page(figures: Figures) -> str:
    version = run([binary("juicefs"), "version"]).split()[-1].split("+")[0]
    parts = [
        f"""# Benchmarks

Made by `make bench`: jfs and JuiceFS {version} on the same machine ({os.cpu_count()} cores, Linux {platform.release().split("-")[0]}), on fresh
volumes with default options, in turn. TiKV and S3 are the test servers (`tests/tikv`, SeaweedFS) on the same machine.
Figures are medians; a ratio above 1 means that jfs is faster. Machines differ: trust the ratios."""
    ]
    for section, samples in figures.rates.items():
        parts.append(f"## {section}\n\n{rounds(samples).capitalize()}:\n\n{table(samples)}")
        parts.append(f"What it cost (a ratio below 1 means that jfs needs less):\n\n{table(figures.costs[section])}")
    if figures.limits:
        parts.append(f"## The machine's own limit\n\n{bounds(figures)}")
    if NOTES.exists():
        parts.append(NOTES.read_text())
    return "\n\n".join(parts).rstrip() + "\n"
