"""`python -m bench [--rounds N] [--only NAME,NAME] [--no-write]`: measure, print a table, write docs/benchmarks.md."""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from bench.mounts import mounted, run, settle
from bench.work import WORK

PROGRAMS = ("jfs", "juicefs")
TARGET = Path(__file__).parents[1] / "docs/benchmarks.md"
NOTES = Path(__file__).with_name("notes.md")

Samples = dict[str, dict[str, list[float]]]


def measure(rounds: int, only: list[str], folder: Path) -> tuple[Samples, Samples]:
    """Rates and costs: row -> program -> one figure a round."""
    rates: Samples = {}
    costs: Samples = {}
    for number in range(rounds):
        for name in only:
            order = PROGRAMS if number % 2 == 0 else PROGRAMS[::-1]
            for program in order:
                with mounted(program, folder / f"{number}-{name}-{program}") as mount:
                    settle()
                    mount.forget_peak()
                    before = mount.cpu_seconds()
                    rows = WORK[name](mount.path)
                    cost = {
                        f"{name}, CPU (s)": mount.cpu_seconds() - before,
                        f"{name}, peak memory (MiB)": mount.peak_mib(),
                    }
                for table, figures in ((rates, rows), (costs, cost)):
                    for row, figure in figures.items():
                        table.setdefault(row, {}).setdefault(program, []).append(figure)
                shutil.rmtree(folder / f"{number}-{name}-{program}")
                print(f"round {number + 1} {name} {program}: {rows} {cost}", flush=True)
    return rates, costs


def table(samples: Samples) -> str:
    """Medians of each program, and the ratio of the two with its range over the rounds."""
    lines = ["| row | jfs | JuiceFS | jfs ÷ JuiceFS | range |", "| --- | ---: | ---: | ---: | ---: |"]
    for row, found in samples.items():
        ratios = [ours / theirs for ours, theirs in zip(found["jfs"], found["juicefs"], strict=True) if theirs]
        ours, theirs = (statistics.median(found[program]) for program in PROGRAMS)
        shown = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}" if ratios else "– | –"
        lines.append(f"| {row} | {ours:,.1f} | {theirs:,.1f} | {shown} |")
    return "\n".join(lines)


def report(rates: Samples, costs: Samples, rounds: int) -> str:
    version = run([str(Path(sys.executable).with_name("juicefs")), "version"]).split()[-1].split("+")[0]
    return f"""# Benchmarks

Made by `make bench`: jfs and JuiceFS {version} on the same machine ({os.cpu_count()} cores, Linux {platform.release().split("-")[0]}), metadata in
SQLite, data in a directory, fresh volumes, default options, {rounds} rounds in turn. Figures are medians; a ratio above 1 means that jfs
is faster. Machines differ: trust the ratios.

{table(rates)}

What it cost (a ratio below 1 means that jfs needs less):

{table(costs)}

{NOTES.read_text() if NOTES.exists() else ""}"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(WORK))
    parser.add_argument("--no-write", action="store_true", help="print the page, leave docs/benchmarks.md alone")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jfs-bench-", dir=os.environ.get("JFS_BENCH_DIR")))
    os.environ["JFS_BENCH_FOLDER"] = str(folder)
    try:
        rates, costs = measure(options.rounds, options.only.split(","), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    page = report(rates, costs, options.rounds)
    print(page)
    if not options.no_write:
        TARGET.write_text(page)


if __name__ == "__main__":
    main()
