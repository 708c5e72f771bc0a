"""Runs the harness with one sabotage: python -m tests.red_team.drive NAME key=value ..."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import pytest

from tests.red_team.held_out import HELD_OUT
from tests.red_team.sabotages import COMPUTATION, TIMING, Sabotage
from tests.test_sabotage import SABOTAGE


def by_the_authors() -> dict[str, Sabotage]:
    """Return the sabotages of tests/test_sabotage.py, whose patches last until the end of this process."""
    patch = pytest.MonkeyPatch()
    return {
        name: Sabotage(partial(apply, patch), about=name, precisions=precisions, parallel=("single",))
        for name, (precisions, apply, _) in SABOTAGE.items()
    }


TEAMS: Mapping[str, Mapping[str, Sabotage]] = {
    "authors": by_the_authors(),
    "first": COMPUTATION,
    "second": HELD_OUT,
    "clocks": TIMING,
}
"""Sabotages by name: by those who wrote the gates, and by two red teams that had not read them."""


def main(arguments: Sequence[str]) -> int:
    name, *overrides = arguments
    next(team[name] for team in TEAMS.values() if name in team).apply()
    from harness.__main__ import main as harness

    return harness(overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
