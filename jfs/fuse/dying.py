"""Whether a process that waits for the file system is being killed."""

from pathlib import Path
from typing import Final

KILLED: Final = 1 << 8
"""SIGKILL's bit in a set of pending signals; any signal that ends a process sets it for each of its threads."""


def is_dying(pid: int) -> bool:
    """`pid`: a thread's number, as requests have it; 0, or one that is gone: nobody knows, False."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    pending = 0
    for line in status.splitlines():
        if line.startswith(("SigPnd:", "ShdPnd:")):
            pending |= int(line.split()[1], 16)
    return bool(pending & KILLED)
