"""Layouts of several axes: the same work and numbers as one process. scripts/layout_table.py trains in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layouts import compare, difference, file_name, honest, short_work, train, train_alone
from tests.ranks import record


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        # Four ranks share two key/value heads; tied weights are one parameter of two uneven cuts.
        ("llama", "tensor=4"),
        ("gpt2", "shard=2 tensor=2"),
        ("gpt2", "context=2"),
        ("llama", "context=2 tensor=2"),
        ("tied", "pipeline=2"),
        ("mha", "pipeline=2 shard=2"),
    ],
)
def test_the_layout_does_not_change_the_work(model: str, layout: str, layout_runs: Path) -> None:
    alone, found = (honest(layout_runs, model, cut) for cut in ("", layout))
    assert difference(alone, found, "fp32").startswith("ok")
    assert [finding.text for finding in compare(alone, found, "fp32") if finding.passed is False] == []
    sizes = {axis: int(size) for axis, size in (part.split("=") for part in layout.split())}
    parallel = record(found)["parallel"]
    assert {axis: size for axis, size in parallel["layout"].items() if size > 1 or axis in sizes} == sizes
    # Not all collectives are metered.
    assert {rank["exposed_communication_seconds"] for rank in parallel["ranks"]} == {None}


@pytest.mark.parametrize("layout", ["shard=2 tensor=2", "pipeline=2 tensor=2"])
def test_bf16_is_within_the_gate(layout: str, layout_runs: Path) -> None:
    settings = short_work("llama", "precision=bf16")
    alone = train_alone(layout_runs, settings, "llama-bf16")
    found = train(layout_runs, layout, settings, f"llama-bf16-{file_name(layout)}")
    assert isinstance(found, Path), found
    assert difference(alone, found, "bf16").startswith("ok")


def test_fp16_skips_the_same_steps_in_a_pipeline(tmp_path: Path) -> None:
    settings = short_work("mha", "precision=fp16", "model.initializer_range=3.0", "fingerprint=false")
    alone = train_alone(tmp_path, settings, "alone")
    found = train(tmp_path, "pipeline=2", settings, "run")
    assert isinstance(found, Path), found
    expected = record(alone)["losses"]["skipped_steps"]
    assert record(found)["losses"]["skipped_steps"] == expected > 0


def test_uneven_evaluations_pass_through_a_pipeline(tmp_path: Path) -> None:
    """Shares of the held-out sequences have micro-batches of other sizes."""
    more = ["workload.global_batch_size=8", "workload.micro_batch_size=2", "workload.eval_sequences=15"]
    settings = short_work("mha", *more, "workload.eval_every=1", "workload.steps=6", "fingerprint=false")
    alone = train_alone(tmp_path, settings, "alone")
    found = train(tmp_path, "pipeline=2 shard=2", settings, "run")
    assert isinstance(found, Path), found
    assert difference(alone, found, "fp32").startswith("ok")
