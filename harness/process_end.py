"""End of this process. No torch.

PyTorch's threads of collectives outlive `destroy_process_group`: DDP's reducer and FSDP's device mesh hold the group
until the interpreter or the C++ library destroys its objects, one under the feet of the other. A rank whose work is
done can then end with SIGABRT or SIGSEGV, and its launcher calls the run failed.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

_skips_finalization = threading.Event()


def skip_finalization() -> None:
    """Let this process end without the interpreter's finalization: nothing of it may be needed by then."""
    _skips_finalization.set()


def end_process(exit_code: int) -> NoReturn:
    """End this process."""
    if not _skips_finalization.is_set():
        sys.exit(exit_code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
