"""Runs the harness with one sabotage: python -m tests.red_team.drive NAME key=value ..."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from tests.red_team.sabotages import COMPUTATION, TIMING, Sabotage


def teams() -> Mapping[str, Mapping[str, Sabotage]]:
    """Return sabotages by name: by those who wrote the gates, by two red teams that had not read them, of clocks, and
    of layouts.
    """
    from tests.red_team.held_out import HELD_OUT
    from tests.red_team.layouts import LAYOUTS

    return {"authors": by_the_authors(), "first": COMPUTATION, "second": HELD_OUT, "clocks": TIMING, "layouts": LAYOUTS}


def by_the_authors() -> dict[str, Sabotage]:
    """Return the sabotages of tests/test_sabotage.py, whose patches last until the end of this process."""
    import pytest

    from tests.test_sabotage import SABOTAGE

    patch = pytest.MonkeyPatch()
    return {
        name: Sabotage(partial(apply, patch), about=name, precisions=precisions, parallel=("single",))
        for name, (precisions, apply, _) in SABOTAGE.items()
    }


def main(arguments: Sequence[str]) -> int:
    name, *overrides = arguments
    # The first team's come before any import of the harness, whose modules may keep what is patched.
    known = {**COMPUTATION, **TIMING}
    if name not in known:
        known = {name: sabotage for team in teams().values() for name, sabotage in team.items()}
    known[name].apply()
    from harness.__main__ import main as harness

    return harness(overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
