"""Every fault of tests/faults.py ends with its expected outcome, and leaves no process behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.commands.compare import main as compare
from tests.cann_emulator.build import Missing
from tests.faults import FAILED, FAULTS, REFUSED
from tests.ranks import record
from tests.records import make_record, write_runs

LIMIT_SECONDS = 60


@pytest.mark.parametrize("name", FAULTS)
def test_outcome(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    began = time.monotonic()
    try:
        ended = fault.run(tmp_path)
    except Missing as missing:
        pytest.skip(f"no device can be emulated: {missing}")
    assert time.monotonic() - began < LIMIT_SECONDS

    for rank, one in enumerate(ended):
        if rank not in fault.silent:
            assert one.code == fault.exit_code, one.err
            assert "Traceback" not in one.err
    errors = [line for rank, one in enumerate(ended) for line in one.errors if rank not in fault.silent]
    if fault.exit_code in (FAILED, REFUSED):
        assert errors, "no error message"
        assert any(fault.message in line for line in errors), errors
        if fault.exit_code == FAILED:
            # One message: rank 0's.
            assert len(errors) == len(ended[0].errors) == 1
    else:
        assert not errors
        assert fault.message in ended[0].out + ended[0].err

    folder = tmp_path / "run"
    if fault.status is None:
        assert not (folder / "record.json").exists()
        return
    found = record(folder)
    assert found["status"] == fault.status
    if fault.status == "ok":
        return
    if fault.status == "hung":
        assert "in hang" in (folder / "hung.txt").read_text().split("rank 1")[1]
    if fault.exit_code == FAILED:
        assert found["error"] in ended[0].errors[0]
    # compare does not accept it as a result.
    write_runs(tmp_path / "other", [make_record()])
    assert compare([str(tmp_path / "other"), str(folder)]) == FAILED
