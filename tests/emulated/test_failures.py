"""Failures on the emulated device: one line with cause and remedy, status, exit code, and no comparison."""

from __future__ import annotations

import pytest

from harness.commands.compare import main as compare
from tests.emulated.conftest import Emulated
from tests.emulated.failures import CASES, FAILED
from tests.records import make_record, write_runs
from tests.tiny import TINY


@pytest.mark.parametrize("name", CASES)
def test_failure(name: str, emulated: Emulated) -> None:
    case = CASES[name]
    ended = emulated.harness(*case.overrides, "out=run", variables=case.variables)
    assert ended.code == case.exit_code, ended.err
    assert len(ended.errors) == 1, ended.err
    errors = ended.errors
    for part in case.message_parts:
        assert part in errors[0]
    assert "Traceback" not in ended.err
    folder = emulated.folder / "run"
    if case.status is None:
        assert not folder.exists()
        return
    record = emulated.record("run")
    assert record["status"] == case.status
    assert record["error"] in errors[0]
    # It cannot pass for a result.
    write_runs(emulated.folder / "other", [make_record()])
    assert compare([str(emulated.folder / "other"), str(folder)]) == FAILED


FALLING_BACK = """
import sys
import torch
import harness.training.prepare
from harness.__main__ import main

harness.training.prepare.build_optimizer = lambda model, *_: torch.optim.Adam(model.parameters(), fused=True)
sys.exit(main())
"""


def test_work_that_falls_back_to_the_host_makes_the_run_invalid(emulated: Emulated) -> None:
    """Fused Adam is one of the operations that torch-npu runs on the CPU in spite of the variable that forbids it."""
    done = emulated.python("-c", FALLING_BACK, "backend=npu", *TINY, "out=run")
    assert done.returncode == 5, done.stderr
    record = emulated.record("run")
    assert record["status"] == "failed"
    assert "ran on the host instead of the device" in record["error"]
    assert "_fused_adam_" in record["error"]
    assert record["effective_settings"]["cpu_fallback"] is True
