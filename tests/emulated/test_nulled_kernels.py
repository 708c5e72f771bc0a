"""Negative control: every kernel that does nothing is detected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.emulated.conftest import Emulated
from tests.emulated.training import Setup, train

STEPS = 3
SETUPS = ("gpt2-fp32-foreach", "llama-fp32-for_loop", "gpt2-fp16-foreach", "llama-bf16-foreach", "gpt2-fp32-fused")


@pytest.fixture(scope="module")
def outcomes(emulated_host: Emulated) -> dict[str, dict[str, Any]]:
    reference = {name: train("cpu", Setup(*name.split("-")), STEPS) for name in SETUPS}
    file = emulated_host.folder / "reference.json"
    file.write_text(json.dumps(reference))
    return emulated_host.program("nulled", str(file), str(STEPS), *SETUPS, timeout=600)


def detected(results: dict[str, Any]) -> bool:
    return any(isinstance(value, str) or value > 0.0 for value in results.values())


def test_every_nulled_kernel_is_detected(outcomes: dict[str, dict[str, Any]]) -> None:
    assert len(outcomes) > 50
    assert [kernel for kernel, results in outcomes.items() if not detected(results)] == []
