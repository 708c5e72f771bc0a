"""Which process of how many: what torchrun sets, and every way in which that can be wrong."""

from __future__ import annotations

import pytest

from harness.errors import ConfigError
from harness.world import World, from_environment, lone_tasks

SET = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_is_what_torchrun_says(parallel: str) -> None:
    assert from_environment(parallel, SET) == World(3, 4, 1, 2, 0, is_distributed=True)
    assert from_environment(parallel, {**SET, "TORCHELASTIC_RESTART_COUNT": "2"}).restarts == 2


def test_a_group_of_one_is_a_group() -> None:
    alone = {**SET, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    world = from_environment("ddp", alone)
    assert world.is_distributed
    assert world.is_main


def test_a_single_process_needs_no_variables_and_minds_none() -> None:
    assert from_environment("single", {}) == World()
    # torchrun --nproc-per-node=1 is a way to start one process.
    assert from_environment("single", {"WORLD_SIZE": "1", "RANK": "0"}) == World()
    assert not from_environment("single", {}).is_distributed


@pytest.mark.parametrize(
    ("parallel", "variables", "said"),
    [
        ("single", SET, "parallel: single trains in one process, but WORLD_SIZE is 4"),
        ("single", SET, "without torchrun and with WORLD_SIZE unset"),
        ("ddp", {}, "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        ("ddp", {**SET, "MASTER_PORT": " "}, "MASTER_PORT is not set; launch it with torchrun"),
        ("fsdp", {**SET, "RANK": "four"}, "RANK: found 'four', expected a whole number"),
        ("fsdp", {**SET, "RANK": "4"}, "RANK: found 4, expected less than 4 (WORLD_SIZE is 4)"),
        ("fsdp", {**SET, "RANK": "-1"}, "RANK: found -1, expected at least 0"),
        ("fsdp", {**SET, "WORLD_SIZE": "0"}, "WORLD_SIZE: found 0, expected at least 1"),
        ("fsdp", {**SET, "LOCAL_RANK": "2"}, "LOCAL_RANK: found 2, expected less than 2"),
        ("fsdp", {**SET, "LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE: found 8, expected less than 5"),
        ("fsdp", {**SET, "MASTER_PORT": "http"}, "MASTER_PORT: found 'http', expected a whole number"),
        ("fsdp", {**SET, "MASTER_PORT": "70000"}, "MASTER_PORT: found 70000, expected a port from 1 to 65535"),
    ],
)
def test_refuses_what_cannot_be(parallel: str, variables: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_environment(parallel, variables)
    assert said in str(refused.value)
    assert "torchrun" in str(refused.value) or "free one" in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"SLURM_STEP_NUM_TASKS": "8"},
            "SLURM_STEP_NUM_TASKS is 8, but with parallel=single every task trains the whole",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2"),
        ({"PMI_SIZE": "1"}, None),
        # Of a batch script, in which a single command is no mistake.
        ({"SLURM_NTASKS": "8"}, None),
        ({"PMI_SIZE": "all"}, None),
        ({}, None),
    ],
)
def test_tasks_that_train_by_themselves(variables: dict[str, str], said: str | None) -> None:
    found = lone_tasks(variables)
    assert found is None if said is None else said in str(found)
