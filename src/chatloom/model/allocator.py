"""Ask the C library to keep freed memory instead of giving every large buffer back to the kernel.

A training step frees and asks for the same megabytes again and again. glibc answers large requests with fresh mappings,
which the kernel fills with zeros page by page (docs/decisions.md has what that costs a small model).
"""

from __future__ import annotations

import ctypes
import os

# Parameter numbers of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Make glibc reuse large buffers; True if it now does.

    Does nothing (False) on another C library, or when a MALLOC_* variable shows that the user tuned it. The process
    keeps its peak memory until it ends, so call it in programs that train or generate, not in libraries at import.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it, and only its parameter numbers are known here
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)
