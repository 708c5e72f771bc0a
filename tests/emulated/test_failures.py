"""Failures as a user meets them: one line with cause and remedy, the right status and exit code, no number to trust."""

from __future__ import annotations

import pytest

from harness.compare import main as compare
from tests.conftest import TINY
from tests.emulated.conftest import Emulated
from tests.emulated.failures import CASES, FAILED
from tests.records import make_record, write_runs


@pytest.mark.parametrize("name", CASES)
def test_failure(name: str, emulated: Emulated) -> None:
    case = CASES[name]
    done = emulated.harness(*case.words, "out=run", variables=case.variables)
    assert done.returncode == case.exit_code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    for word in case.said:
        assert word in errors[0]
    assert "Traceback" not in done.stderr
    folder = emulated.folder / "run"
    if case.status is None:
        assert not folder.exists()
        return
    record = emulated.record("run")
    assert record["status"] == case.status
    assert record["error"] in errors[0]
    # Nobody can take it for a result.
    write_runs(emulated.folder / "other", [make_record()])
    assert compare([str(emulated.folder / "other"), str(folder)]) == FAILED


FALLING_BACK = """
import sys
import torch
import harness.training.session
from harness.__main__ import main

harness.training.session.build_optimizer = lambda model, *_: torch.optim.Adam(model.parameters(), fused=True)
sys.exit(main())
"""


def test_work_that_falls_back_to_the_host_makes_the_run_invalid(emulated: Emulated) -> None:
    """Fused Adam is one of the operations that torch-npu runs on the CPU although it was told not to."""
    done = emulated.python("-c", FALLING_BACK, "backend=npu", *TINY, "out=run", folder=emulated.folder)
    assert done.returncode == 5, done.stderr
    record = emulated.record("run")
    assert record["status"] == "failed"
    assert "ran on the host instead of the device" in record["error"]
    assert "_fused_adam_" in record["error"]
    assert record["effective"]["cpu_fallback"] is True
