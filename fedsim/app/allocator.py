"""Memory: the C library's allocator, set for large tensors, and Python's collector.

This module imports nothing heavy, because the command line calls it first.
"""

import ctypes
import gc
from contextlib import suppress

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""The numbers of these options in glibc's mallopt."""


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, so that large tensors need no fresh pages.

    This makes training on a CPU about a quarter faster. It does nothing without glibc.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def collect_rarely() -> None:
    """Look for cycles of objects after 50,000 new ones instead of 700.

    Imports make many objects and free few of them, so that looking costs a tenth of a start.
    """
    gc.set_threshold(50_000)
