"""Control of the emulator in this process, once torch_npu has loaded it."""

from __future__ import annotations

import ctypes
from functools import lru_cache


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    # By its soname: the loaded library, not another copy.
    library = ctypes.CDLL("libascendcl.so")
    library.cann_emulator_launched.restype = ctypes.c_size_t
    library.cann_emulator_kernels.restype = ctypes.c_size_t
    return library


def null(kernel: str) -> None:
    """Make a kernel do nothing from now on; an empty name ends that."""
    _library().cann_emulator_null(kernel.encode())


def poison(on: bool) -> None:
    """Fill device memory that is allocated from now on with NaN."""
    _library().cann_emulator_poison(int(on))


def launched() -> list[str]:
    """Return the kernels and collectives that were launched so far, sorted."""
    return _names(_library().cann_emulator_launched)


def kernels() -> list[str]:
    """Return every kernel that the emulator implements, sorted."""
    return _names(_library().cann_emulator_kernels)


def _names(function: ctypes._NamedFuncPointer) -> list[str]:
    buffer = ctypes.create_string_buffer(function(None, ctypes.c_size_t(0)))
    function(buffer, ctypes.c_size_t(len(buffer)))
    return buffer.value.decode().split()
