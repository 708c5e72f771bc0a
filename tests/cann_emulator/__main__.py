"""Build the emulator if necessary and print its folder: `python -m tests.cann_emulator`."""

import sys

from tests.cann_emulator.build import CannotBuild, build

try:
    print(build())
except CannotBuild as problem:
    print(f"error: the CANN emulator cannot be built: {problem}", file=sys.stderr)
    sys.exit(3)
