"""A byte range of a file as memory: private, writable, and holding no file descriptor. Knows nothing of tensors.

Python's `mmap` objects each keep a descriptor of their own (before Python 3.13), so that a model whose tensors are all
mapped would run into the limit of 1,024 open files; mapping through the C library keeps none.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def map_range(descriptor: int, start: int, end: int) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Bytes start..end-1 of the file: a buffer over the pages around them, and where in it they begin.

    Copy-on-write: a write stays in this buffer. The mapping lives as long as the buffer, or any tensor over it, does;
    the descriptor may be closed at once. The range must not be empty and must lie in the file. Raises OSError.
    """
    skipped = start % mmap.ALLOCATIONGRANULARITY
    length = end - start + skipped
    # NORESERVE: a mapping larger than free memory is no claim on memory.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    libc = _libc()
    address = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, start - skipped)
    if address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    buffer = (ctypes.c_char * length).from_address(address)
    weakref.finalize(buffer, libc.munmap, address, length).atexit = False
    return buffer, skipped
