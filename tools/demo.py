"""`make demo`: format a volume, mount it, move real files through it, check it, unmount it, leave nothing behind."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

JFS = Path(sys.executable).with_name("jfs")
SKIPPED = shutil.ignore_patterns("site-packages", "__pycache__", "test", "idlelib", "*.a")

console = Console(highlight=False)


def run(*words: str | Path, show: bool = True, lines: int = 40) -> str:
    """Run a command as a user would, show it and what it prints."""
    words = tuple(map(str, words))
    if show:
        console.print(
            f"[bold green]$[/] [bold]{' '.join(Path(words[0]).name if i == 0 else w for i, w in enumerate(words))}[/]"
        )
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout + done.stderr, markup=False)
        raise SystemExit(f"{words[0]} ended with {done.returncode}")
    if show and done.stdout:
        text = done.stdout.splitlines()
        console.print("\n".join(text[:lines]) + ("\n..." if len(text) > lines else ""), markup=False, style="dim")
    return done.stdout + done.stderr


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def step(title: str) -> None:
    console.print()
    console.rule(f"[bold cyan]{title}", align="left", style="cyan")


def move_files(mount: Path) -> None:
    """Copy Python's standard library in, read it back, compare; then write and read one big file."""
    source = Path(sysconfig.get_path("stdlib"))
    target = mount / "python"
    table = Table(box=None, pad_edge=False)
    for title in ("what", "how much", "seconds", "rate"):
        table.add_column(title, justify="left" if title == "what" else "right")

    began = time.perf_counter()
    shutil.copytree(source, target, ignore=SKIPPED, symlinks=True)
    took = time.perf_counter() - began
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    table.add_row(
        "copy the standard library in",
        f"{len(files):,} files, {size / 2**20:.0f} MiB",
        f"{took:.1f}",
        f"{len(files) / took:,.0f} files/s",
    )

    began = time.perf_counter()
    there = digests(target)
    took = time.perf_counter() - began
    table.add_row("read it back", f"{len(there):,} files", f"{took:.1f}", f"{len(there) / took:,.0f} files/s")
    wrong = [
        name for name, digest in there.items() if hashlib.sha256((source / name).read_bytes()).hexdigest() != digest
    ]
    if wrong:
        raise SystemExit(f"these files differ: {wrong[:5]}")

    block = os.urandom(1 << 20)
    began = time.perf_counter()
    with (mount / "big").open("wb", buffering=0) as big:
        for _ in range(256):
            big.write(block)
        os.fsync(big.fileno())
    took = time.perf_counter() - began
    table.add_row("write a file and fsync it", "256 MiB", f"{took:.1f}", f"{256 / took:,.0f} MiB/s")
    began = time.perf_counter()
    with (mount / "big").open("rb", buffering=0) as big:
        same = all(big.read(1 << 20) == block for _ in range(256))
    took = time.perf_counter() - began
    table.add_row("read it", "256 MiB", f"{took:.1f}", f"{256 / took:,.0f} MiB/s")
    if not same:
        raise SystemExit("the big file came back with other bytes")
    console.print(table)
    console.print(f"[bold green]✓[/] all {len(there):,} checksums agree, and so does every byte of the big file")


def demo(folder: Path) -> None:
    url, mount = f"sqlite3://{folder}/meta.db", folder / "mnt"
    step("A volume: metadata in SQLite, data in a directory")
    run(JFS, "format", "--bucket", folder / "objects", url, "demo")
    console.print(
        Syntax("\n".join(run(JFS, "config", url, show=False).splitlines()[:14]), "json", background_color="default")
    )
    step("A mount point like any other")
    run(JFS, "mount", "-d", "--log", folder / "jfs.log", url, mount)
    try:
        run("grep", mount, "/proc/mounts")
        move_files(mount)
        step("What it looks like")
        run("ls", "-la", mount)
        run("df", "-h", mount)
        run(JFS, "status", url, lines=60)
        step("Is everything there?")
        report = run(JFS, "fsck", url)
        console.print(
            "\n".join(line.split(">: ", 1)[-1].rsplit(" [", 1)[0] for line in report.splitlines()[2:]), style="dim"
        )
        report = run(JFS, "gc", url)
        console.print(
            "\n".join(line.split(">: ", 1)[-1].rsplit(" [", 1)[0] for line in report.splitlines()[2:4]), style="dim"
        )
    finally:
        step("Unmount")
        run(JFS, "umount", mount)
    run(JFS, "status", url, show=False)
    console.print("[bold green]✓[/] unmounted; nothing is left behind")


def main() -> None:
    console.print(
        Panel(
            "[bold]jfs[/]: a file system with its metadata in a database and its data in an object store", expand=False
        )
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="jfs-demo-"))
    try:
        demo(folder)
    finally:
        if os.path.ismount(folder / "mnt"):
            subprocess.run(["umount", "-l", folder / "mnt"], check=False)
        shutil.rmtree(folder)
    console.print(f"[dim]{time.perf_counter() - began:.0f} s[/]")


if __name__ == "__main__":
    main()
