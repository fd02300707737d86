"""The C library's memory, told that blocks come and go.

By default each thread has a heap of its own, and a freed block's pages return to the system at once, for the next block to take
them again one by one: a third of what fetching 4 MiB costs.  With one heap that keeps some free memory both the processor time
and the most that is held at once get less.
"""

import ctypes
from typing import Final

KEPT: Final = 64 << 20
"""Free bytes at the end of the heap that are kept until `give_back`."""

MAPPED_FROM: Final = 32 << 20
"""The most that glibc takes: larger pieces are mappings of their own."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_libc = ctypes.CDLL(None)


def keep_freed() -> None:
    """From now on, and best before there are threads; C libraries other than glibc have habits of their own."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
        _libc.mallopt(_M_TRIM_THRESHOLD, KEPT)
        _libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)


def give_back() -> None:
    """All that is free now; takes milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
