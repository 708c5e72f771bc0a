"""Runs the harness with one sabotage of the red team: python tests/red_team/drive.py NAME key=value ..."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> int:
    from tests.red_team.sabotages import COMPUTATION, TIMING

    name, *overrides = sys.argv[1:]
    {**COMPUTATION, **TIMING}[name].apply()
    from harness.__main__ import main as harness

    return harness(overrides)


if __name__ == "__main__":
    sys.exit(main())
