"""`python -m bench [--rounds N] [--only NAME,NAME] [--no-write]`: measure, print a page, write docs/benchmarks.md."""

import argparse
import os
import shutil
import signal
import tempfile
from pathlib import Path

from bench.limits import measure_limits
from bench.mounts import Mounted, mounted, settle
from bench.page import Figures, page
from bench.servers import Servers
from bench.timing import Rows
from bench.work import COMPARISONS, Comparison

PROGRAMS = ("jfs", "juicefs")
LIMITS = "limits"
NAMES = (*COMPARISONS, LIMITS)
TARGET = Path(__file__).parents[1] / "docs/benchmarks.md"


def measure(rounds: int, only: list[str], folder: Path) -> Figures:
    """One figure of each program and row a round; who goes first changes from round to round."""
    figures = Figures()
    for number in range(rounds):
        for name in only:
            place = folder / f"{number}-{name}"
            with Servers(folder / "s3") as servers:
                if name == LIMITS:
                    figures.add_limits(measure_limits(place, servers))
                    shutil.rmtree(place)
                else:
                    compare(number, name, place, servers, figures)
    return figures


def compare(number: int, name: str, place: Path, servers: Servers, figures: Figures) -> None:
    comparison = COMPARISONS[name]
    programs = [*PROGRAMS, *comparison.others]
    for program in programs if number % 2 == 0 else programs[::-1]:
        with mounted(program, Path(f"{place}-{program}"), comparison.place, servers) as mount:
            rates, costs = observe(mount, name, comparison)
        figures.add(comparison.section, program, rates, costs)
        print(f"round {number + 1} {name} {program}: {rates} {costs}", flush=True)


def observe(mount: Mounted, name: str, comparison: Comparison) -> tuple[Rows, Rows]:
    """Rates, and costs."""
    settle()
    mount.forget_peak()
    before = mount.cpu_seconds()
    rates = comparison.others.get(mount.program, comparison.work)(mount)
    if mount.costs:  # the work measured its parts; it may have mounted anew
        return rates, mount.costs | {"peak memory (MiB)": mount.peak_mib()}
    return rates, {
        f"{name}, CPU (s)": mount.cpu_seconds() - before,
        f"{name}, peak memory (MiB)": mount.peak_mib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--no-write", action="store_true", help="print the page, leave docs/benchmarks.md alone")
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end in order, unmounted
    folder = Path(tempfile.mkdtemp(prefix="jfs-bench-", dir=os.environ.get("JFS_BENCH_DIR")))
    os.environ["JFS_BENCH_FOLDER"] = str(folder)
    try:
        figures = measure(options.rounds, only, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = page(figures)
    print(text)
    if not options.no_write:
        TARGET.write_text(text)


if __name__ == "__main__":
    main()
