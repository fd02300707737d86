"""Builds the test server from the Go sources beside this file, once for each state of them: `python -m tests.tikv.build`."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
CACHE = SOURCES.parents[1] / ".cache"
NAME = "tikv-testserver"

# A first build fetches some modules and compiles them: about 30 s on two cores, more on a slow line.
BUILD_TIME = 600.0


def build() -> Path:
    """The server's binary, built if there is none of these sources and this Go; parallel callers wait for the first."""
    binary = CACHE / f"{NAME}-{_fingerprint()}"
    if binary.exists():
        return binary
    CACHE.mkdir(exist_ok=True)
    with _locked(CACHE / f"{NAME}.lock"):
        if not binary.exists():
            _compile(binary)
    return binary


def _fingerprint() -> str:
    digest = hashlib.sha256(_go("version").encode())
    for path in sorted([*SOURCES.glob("*.go"), SOURCES / "go.mod", SOURCES / "go.sum"]):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _compile(binary: Path) -> None:
    """Leave exactly this build in the cache; a running server keeps the file it was started from."""
    fresh = CACHE / f"{NAME}.new"
    _go("build", "-trimpath", "-o", str(fresh), ".")
    for old in CACHE.glob(f"{NAME}-*"):
        old.unlink()
    fresh.rename(binary)


def _go(*args: str) -> str:
    program = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if program is None:
        raise RuntimeError("the TiKV test server needs Go >= 1.19 to be built: run `tools/system-packages test`")
    done = subprocess.run(
        [program, *args],
        cwd=SOURCES,
        env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIME,
    )
    if done.returncode != 0:
        raise RuntimeError(f"`go {' '.join(args)}` in {SOURCES} failed:\n{done.stderr}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    build()
