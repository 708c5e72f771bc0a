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
        # Each rank of a tensor axis computes some experts, for the choices of all.
        ("experts", "shard=2 tensor=2"),
        ("turns", "context=2 tensor=2"),
    ],
)
def test_the_layout_does_not_change_the_work(model: str, layout: str, layout_runs: Path) -> None:
    alone, found = (honest(layout_runs, model, cut) for cut in ("", layout))
    assert difference(alone, found, "fp32").startswith("ok")
    assert [finding.text for finding in compare(alone, found, "fp32") if finding.passed is False] == []
    sizes = {axis: int(size) for axis, size in (part.split("=") for part in layout.split())}
    parallel = record(found)["parallel"]
    assert {axis: size for axis, size in parallel["layout"].items() if size > 1 or axis in sizes} == sizes
    # FSDP shards weights over the parts of a sequence too; the global norm is of all ranks.
    expected = {"all", *sizes} | ({"shard"} if "context" in sizes else set())
    for rank in parallel["ranks"]:
        assert set(rank["axes"]) == expected
        assert all(axis["payload_bytes_per_step"] > 0 for axis in rank["axes"].values())
        assert 0 < rank["exposed_communication_seconds"] < rank["step_seconds"]


def test_schedule_and_stages_do_not_change_the_work(layout_runs: Path) -> None:
    layout = "pipeline=2 pipeline_schedule=zero_bubble pipeline_blocks=1-2"
    alone, found = (honest(layout_runs, "mha", cut) for cut in ("", layout))
    assert difference(alone, found, "fp32").startswith("ok")
    bubble = record(found)["parallel"]["bubble"]
    assert bubble["ideal_share"] == 1 / (bubble["micro_batches"] + 1)
    assert 0 < bubble["measured_share"] < 1


def test_a_backward_pass_in_two_parts_runs_on_the_tuned_track(tmp_path: Path) -> None:
    settings = short_work("llama", "workload.steps=6", "workload.eval_every=3", "fingerprint=false")
    alone = train_alone(tmp_path, settings, "alone")
    layout = "pipeline=2 pipeline_schedule=zero_bubble"
    found = train(tmp_path, layout, [*settings, "track=tuned", "track.compile=no"], "run")
    assert isinstance(found, Path), found
    assert difference(alone, found, "fp32").startswith("ok")


@pytest.mark.parametrize("layout", ["shard=2", "tensor=2 pipeline_schedule=zero_bubble", "context=2"])
def test_interleaved_stages_do_not_change_the_work(layout: str, layout_runs: Path) -> None:
    """Each rank has two stages, the tied embedding is on the first and the last.

    Evaluations are single passes.
    """
    settings = short_work("tied", "model.num_hidden_layers=5", "workload.steps=6", "workload.eval_every=3")
    alone = train_alone(layout_runs, settings, "tied-5")
    layout = f"pipeline=2 {layout} pipeline_virtual_stages=2"
    # Most of the time of a layout is its fingerprint: one is enough for interleaved stages.
    more = [] if "shard=2" in layout else ["fingerprint=false"]
    found = train(layout_runs, layout, [*settings, *more], file_name(layout))
    assert isinstance(found, Path), found
    assert difference(alone, found, "fp32").startswith("ok")
    assert [finding.text for finding in compare(alone, found, "fp32") if finding.passed is False] == []
    bubble = record(found)["parallel"]["bubble"]
    assert bubble["ideal_share"] == 1 / (2 * bubble["micro_batches"] + 1)


@pytest.mark.parametrize(("layout", "parts"), [("shard=2 tensor=2", 3), ("pipeline=2 context=2", 2)])
def test_blocks_are_compiled(layout: str, parts: int, tmp_path: Path) -> None:
    """One program for the attention of all blocks, one for their feed-forward, and one for the last norm."""
    more = ["model.num_hidden_layers=2", "workload.steps=6", "workload.eval_every=4", "workload.eval_sequences=4"]
    settings = short_work("llama", *more, "fingerprint=false")
    alone = train_alone(tmp_path, settings, "alone")
    found = train(tmp_path, layout, [*settings, "track=tuned"], "run")
    assert isinstance(found, Path), found
    assert difference(alone, found, "fp32").startswith("ok")
    compilation = record(found)["effective_settings"]["compilation"]
    # Of the first rank, for training and for evaluation.
    assert compilation["graphs"] == 2 * parts
    assert (compilation["graph_breaks"], compilation["graphs_in_window"]) == (0, 0)


@pytest.mark.parametrize(
    ("layout", "precision"),
    [("shard=2 tensor=2", "bf16"), ("pipeline=2 tensor=2", "bf16"), ("pipeline=2 tensor=2", "bf16_weights")],
)
def test_bf16_is_within_the_gate(layout: str, precision: str, layout_runs: Path) -> None:
    # As many steps as the gate's findings about losses need.
    settings = short_work("llama", f"precision={precision}", "workload.steps=12", "workload.eval_every=6")
    alone = train_alone(layout_runs, settings, f"llama-{precision}")
    found = train(layout_runs, layout, settings, f"llama-{precision}-{file_name(layout)}")
    assert isinstance(found, Path), found
    assert difference(alone, found, precision).startswith("ok")


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
