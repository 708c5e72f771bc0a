"""Faults of parallel layouts that were reported of other trainers: *same computation* refuses each, and names it.

scripts/bench_sabotage.py --team layouts runs all that are known.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layouts import compare, honest, short_work, train
from tests.ranks import record
from tests.red_team.layouts import LAYOUTS

REPORTED = [name for name, fault in LAYOUTS.items() if fault.caught_by]


def test_there_are_eight() -> None:
    assert len(REPORTED) == 8


@pytest.mark.parametrize("name", REPORTED)
def test_is_refused_by_name(name: str, layout_runs: Path) -> None:
    fault = LAYOUTS[name]
    alone = honest(layout_runs, fault.model, "")
    found = train(layout_runs, fault.layout, short_work(fault.model), name, fault=name)
    assert isinstance(found, Path), found
    refused = {finding.key: finding.where for finding in compare(alone, found, "fp32") if finding.passed is False}
    assert fault.caught_by is not None
    key, where = fault.caught_by
    assert key in refused
    assert where in refused[key]


def test_copies_that_drift_apart_are_named(layout_runs: Path) -> None:
    """No rank exchanges weights after the start, and the record has the values of one copy."""
    fault = LAYOUTS["replica_learns_slower"]
    found = train(layout_runs, fault.layout, short_work(fault.model), "drift", fault="replica_learns_slower")
    assert isinstance(found, str)
    kept = record(layout_runs / "drift")
    assert kept["status"] == "rank_mismatch"
    assert kept["error"].startswith("copies of blocks.")
    assert " on ranks of data differ by " in kept["error"]
