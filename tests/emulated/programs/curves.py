"""Train the setups named on the command line (shape-precision-adamw) on the NPU, and print their curves.

    python -m tests.emulated.programs.curves STEPS SETUP...

With POISON=1 in the environment fresh device memory is NaN.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import torch  # noqa: F401 (first: the plug-in needs its libraries)
import torch_npu  # type: ignore[import-not-found] # noqa: F401

from tests.cann_emulator import control
from tests.emulated.training import Setup, train


def main(argv: Sequence[str]) -> None:
    steps, *names = argv
    control.poison(os.environ.get("POISON") == "1")
    curves = {name: train("npu", Setup(*name.split("-")), int(steps)) for name in names}
    print(json.dumps({"curves": curves, "launched": control.launched()}))


if __name__ == "__main__":
    main(sys.argv[1:])
