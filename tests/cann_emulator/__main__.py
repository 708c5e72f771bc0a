"""`python -m tests.cann_emulator` builds the emulator if need be and prints its folder."""

import sys

from tests.cann_emulator.build import CannotBuild, build

try:
    print(build())
except CannotBuild as problem:
    print(f"error: the CANN emulator cannot be built: {problem}", file=sys.stderr)
    sys.exit(3)
