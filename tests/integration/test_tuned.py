"""track=tuned: the same computation as track=portable, and a record of the settings in effect."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.analysis.calibration import load_calibration
from harness.analysis.parity import compare_computation
from harness.records.load import load_runs
from tests.conftest import PROJECT, Harness
from tests.ranks import record, run_harness, run_ranks
from tests.tiny import TINY

WORK = (*TINY, "workload.steps=12", "workload.eval_every=6", "workload.eval_sequences=5")
# More steps than the early ones of the parity gate.
LONGER = ("workload.steps=26", "workload.eval_every=13")
GPT2 = ("model.position_embedding=learned", "model.bias=true")
LLAMA = ("model.norm=rmsnorm", "model.activation=swiglu", "model.num_key_value_heads=1")
LEARNED = (*LLAMA, "model.num_experts=4", "model.intermediate_size=64")
TURNS = (*LEARNED, "model.routing=round_robin")
NAMES = {GPT2: "gpt2", LLAMA: "llama", LEARNED: "learned", TURNS: "turns"}
# Each setting alone, and all of them by default.
KNOBS = {
    "chunked": ("track.compile=no", "track.attention=stock", "track.cross_entropy=chunked"),
    "blocked": ("track.compile=no", "track.attention=blocked", "track.cross_entropy=stock"),
    "model": ("track.compile=model",),
    "own choice": (),
}
# One shape, precision and micro-batch is compiled once: tests share the programs through Inductor's cache on disk.
COMPILED = (*WORK, *GPT2, "track=tuned")
# A last evaluation batch of another size is a program of its own: COMPILED has one, the compiled runs of the gate none.
EVEN_EVALUATION = "workload.eval_sequences=4"


def run(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    ended = run_harness(folder, *overrides, f"out={name}")
    assert ended.code == 0, ended.err
    return record(folder / name)


@pytest.mark.parametrize(
    ("precision", "shape", "knobs"),
    [
        *product(("fp32", "bf16"), (GPT2, LLAMA), ("chunked", "blocked", "own choice")),
        # Half a minute to compile.
        ("bf16", LLAMA, "model"),
        ("bf16_weights", LLAMA, "own choice"),
        # Of learned experts nothing is compiled.
        ("fp32", LEARNED, "own choice"),
        ("bf16", TURNS, "own choice"),
    ],
    ids=lambda value: value if isinstance(value, str) else NAMES[value],
)
def test_passes_the_parity_gate_against_portable(
    precision: str, shape: tuple[str, ...], knobs: str, tmp_path: Path
) -> None:
    overrides = [*WORK, *LONGER, *shape, f"precision={precision}"]
    if "track.compile=no" not in KNOBS[knobs]:
        overrides.append(EVEN_EVALUATION)
    portable = run(tmp_path, "portable", *overrides)
    tuned = run(tmp_path, "tuned", *overrides, "track=tuned", *KNOBS[knobs])
    assert tuned["workload_id"] == portable["workload_id"]
    assert tuned["digests"] == portable["digests"]
    [reference], others = (load_runs(tmp_path / name) for name in ("portable", "tuned"))
    is_fused = precision != "fp32" and knobs != "model"
    assert tuned["effective_settings"]["gradient_accumulation"] == ("fused" if is_fused else "stock")
    findings = compare_computation(reference, list(others), precision, load_calibration())
    assert findings
    assert all(finding.passed is not False for finding in findings), [f.text for f in findings if f.passed is False]
    if (compilation := tuned["effective_settings"].get("compilation")) is not None:
        assert (compilation["graph_breaks"], compilation["graphs_in_window"]) == (0, 0)
    jsonschema.validate(tuned, json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))


def test_records_the_settings_in_effect(tmp_path: Path) -> None:
    found = run(tmp_path, "run", *COMPILED)
    effective = found["effective_settings"]
    assert effective["compile"] == "blocks"
    assert (effective["attention"], effective["cross_entropy"]) == ("blocked", "chunked")
    assert effective["adamw"] == "fused"
    compilation = effective["compilation"]
    assert compilation["graphs"] > 0
    assert compilation["graph_breaks"] == 0
    # Nothing was compiled in the timed window.
    assert compilation["graphs_in_window"] == 0
    assert found["config"]["track"]["compile"] is None


def test_a_missing_compiler_is_an_error(harness: Harness) -> None:
    done = harness(*WORK, "track=tuned", env={"CXX": "no-such-compiler", "PATH": os.environ["PATH"]})
    assert done.returncode == 3
    assert "torch.compile needs a C++ compiler, and no-such-compiler is not on the PATH" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_tracks_are_not_compared(tmp_path: Path) -> None:
    run(tmp_path, "portable", *WORK)
    run(tmp_path, "tuned", *WORK, "track=tuned", "track.compile=no")
    ended = run_harness(tmp_path, "compare", "portable", "tuned")
    assert ended.code == 4
    assert "track: portable against tuned" in ended.out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_do_the_same_work(parallel: str, tmp_path: Path) -> None:
    overrides = [*COMPILED, "workload.global_batch_size=8"]
    expected = run(tmp_path, "alone", *overrides)
    for ended in run_ranks(2, [*overrides, f"parallel={parallel}", "out=run"], tmp_path):
        assert ended.code == 0, ended.err
    found = record(tmp_path / "run")
    assert found["digests"] == expected["digests"]
    for one, other in zip(found["losses"]["train"], expected["losses"]["train"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    """Compiled modules keep the names of their parameters."""
    overrides = [*COMPILED, "checkpoint.every=4", "resume=auto"]
    whole = run(tmp_path, "whole", *overrides)
    folder = tmp_path / "run"
    cut = run(tmp_path, "run", *overrides)
    assert cut["losses"] == whole["losses"]
    (folder / "record.json").unlink()
    resumed = run(tmp_path, "run", *overrides)
    assert resumed["losses"] == whole["losses"]
    assert resumed["weights"] == whole["weights"]
