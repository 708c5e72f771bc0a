"""Detection of the CANN emulator of tests/cann_emulator, whose times are no measurement of a device.

The mark is in the library itself, not in the environment, so that no run on the emulator can pass for one on a device.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

LIBRARY = "libascendcl.so"
MARK = "cann_emulator_marker"


def is_emulated() -> bool:
    """Return whether the loaded runtime library, or else the first one on the loader's path, is the emulator."""
    loaded = _loaded_library()
    if loaded is not None:
        return hasattr(loaded, MARK)
    library = _library_on_path()
    try:
        return library is not None and MARK.encode() in library.read_bytes()
    except OSError:
        return False


def _loaded_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _library_on_path() -> Path | None:
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return next((path for folder in folders if (path := Path(folder) / LIBRARY).is_file()), None)
