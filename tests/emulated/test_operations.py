"""The emulator's kernels, each compared with the CPU to the bit."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from tests.emulated.conftest import Emulated
from tests.emulated.programs.operations import OPERATIONS
from tests.emulated.test_tuned import FUSED

# The release whose calls the emulator's kernels answer. Older ones make some through an older interface of CANN; what a
# training needs is tested with them too.
TORCH_NPU = "2.13"


@pytest.fixture(scope="module")
def found(emulated_host: Emulated) -> dict[str, Any]:
    release = metadata.version("torch-npu")
    if not release.startswith(TORCH_NPU):
        pytest.skip(f"the emulator has every single operation only for torch-npu {TORCH_NPU}, found {release}")
    return emulated_host.program("operations")


@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_the_cpu(name: str, found: dict[str, Any]) -> None:
    assert found["results"][name] is None


# Kernels that training alone launches (compared in test_training.py), or tests of their own.
ELSEWHERE = {
    "aclnnApplyAdamWV2",
    "aclnnForeachNonFiniteCheckAndUnscale",
    "aclnnAmpUpdateScale",
    "aclnnFlashAttentionScore",
    "aclnnFlashAttentionScoreGrad",
    # Of track=tuned (test_tuned.py).
    *FUSED,
}


def test_every_kernel_is_launched_by_some_test(found: dict[str, Any]) -> None:
    """A kernel that nothing launches is dead code, and one that nothing compares may be wrong."""
    assert set(found["kernels"]) - set(found["launched"]) == ELSEWHERE
