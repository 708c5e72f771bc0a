"""Settings that the scripts give to runs are accepted: most scripts need hardware or hours, and run in no test."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.composition import load
from harness.text import layered_settings
from tests.conftest import PROJECT, load_script


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield a name and the settings of each kind of run that a script makes."""
    verify = load_script("verify_on_device.py")
    for name in ("PARITY_SETTINGS", "QUICK_SETTINGS", "TIMING_SETTINGS"):
        yield f"verify_on_device {name}", ["backend=npu", "precision=bf16", *getattr(verify, name)]
    measure = load_script("measure_on_device.py")
    for model, work in measure.MODELS.items():
        overrides = ["backend=cuda", *work, *measure.STEPS]
        yield f"measure_on_device {model} search", [*overrides, "experiment=autotune", "track=portable"]
        for variant, settings in measure.VARIANTS.items():
            yield f"measure_on_device {model} {variant}", [*overrides, *settings, *measure.SAFE_SIZE]
        yield f"measure_on_device {model} quick", layered_settings(overrides, measure.QUICK, measure.SAFE_SIZE)
    growth = load_script("bench_growth.py")
    for name, settings in growth.runs(4096):
        yield f"bench_growth {name}", [*growth.COMMON, *settings]
    parallel = load_script("bench_parallel.py")
    for case, variants in parallel.CASES.items():
        for name, (_, settings) in variants.items():
            yield f"bench_parallel {case} {name}", layered_settings(parallel.DEFAULTS, settings)
    parity = load_script("bench_parity.py")
    for name, shape in parity.SHAPES.items():
        yield f"bench_parity {name}", [*parity.WORK, *shape, "workload.steps=60"]
    yield "bench_kills", [*load_script("bench_kills.py").OVERRIDES, "out=x"]
    yield "bench_operations", [*load_script("bench_operations.py").WORK]
    overhead = load_script("bench_overhead.py")
    yield "bench_overhead", [*overhead.DEFAULTS]
    yield "bench_overhead on a GPU", [*overhead.DEFAULTS, "backend=cuda", "model=gpt2-124m", "workload=gpt2"]
    peers = load_script("bench_peers.py")
    for shape, settings in peers.SHAPES.items():
        yield f"bench_peers {shape}", layered_settings(peers.WORK, settings)
    yield "bench_startup", [*load_script("bench_startup.py").WORK]
    yield "bench_track", [*load_script("bench_track.py").WORK]
    yield "bench_verdict", [*load_script("bench_verdict.py").SMOKE]
    for name, settings in load_script("same_bits.py").CASES.items():
        yield f"same_bits {name}", [word for word in settings if "=" in word and not word.startswith("-")]


COMMANDS = dict(commands())


@pytest.mark.parametrize("settings", COMMANDS.values(), ids=COMMANDS.keys())
def test_settings_of_a_script_are_accepted(settings: list[str]) -> None:
    load(settings)


def test_the_check_of_an_owners_device_needs_nothing_of_the_tests() -> None:
    """It runs where only the harness is installed."""
    program = (
        "import sys; sys.path.insert(0, 'scripts'); import verify_on_device; "
        "print([name for name in ('pytest', 'tests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("settings", "expected"), [([], True), (["backend=cpu"], True), (["seed=1", "backend=npu"], False)]
)
def test_honest_runs_of_another_device_start_afresh(settings: list[str], expected: bool) -> None:
    assert load_script("bench_parity.py").is_on_cpu(settings) is expected


@pytest.mark.parametrize(("busy", "waits"), [([0.0], 1), ([0.9, 0.4, 0.01], 3), ([None], 1)])
def test_a_run_waits_for_an_idle_machine(
    busy: list[float | None], waits: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert waiting(busy, monkeypatch) == waits
    assert capsys.readouterr().err == ""


def test_a_run_beside_others_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert waiting([0.5] * 400, monkeypatch) == 300
    assert "other processes use 50% of the cores" in capsys.readouterr().err


def waiting(busy: list[float | None], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many seconds a benchmark waits where others use these shares of the cores, a second each."""
    runs, seconds = load_script("harness_runs.py"), itertools.count()
    clock = SimpleNamespace(now=0.0)

    def sleep(duration: float) -> None:
        clock.now += duration

    monkeypatch.setattr(runs.time, "sleep", sleep)
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(runs, "CpuContention", lambda: SimpleNamespace(other_fraction=lambda: busy[next(seconds)]))
    runs.wait_until_idle()
    return int(clock.now)


PeersTable = Callable[..., tuple[str, int]]


@pytest.fixture
def peers_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PeersTable:
    """Return a function that runs bench_peers.py on runs of known speed, and returns its text and how many it made."""
    peers, made = load_script("bench_peers.py"), []
    speeds = {"harness": 300.0, "hf_trainer.py": 200.0, "accelerate_loop.py": 100.0}
    fastest = {("harness", 4), ("hf_trainer.py", 8)}

    def run(name: str, choice: dict[str, Any]) -> dict[str, Any]:
        size = choice["micro_batch_size"]
        made.append(size)
        factor = (2 if (name, size) in fastest else 1) * (1.5 if choice["attention"] == "eager" else 1)
        return {"tokens_per_second": speeds[name] * factor, "mfu": 0.5,
                "peak_memory_bytes": 2**30, "start_up_seconds": 5.0, "loss": 3.0}  # fmt: skip

    monkeypatch.setattr(peers, "environment", lambda _: Path("python"))
    monkeypatch.setattr(peers, "touch_memory", lambda: None)
    monkeypatch.setattr(peers, "wait_until_idle", lambda: None)
    monkeypatch.setattr(peers, "write_tokens", lambda *_: Path("tokens.bin"))
    monkeypatch.setattr(peers, "harness", lambda _, choice: run("harness", choice))
    monkeypatch.setattr(peers, "peer", lambda _, program, choice: run(program, choice))

    def table(*options: str) -> tuple[str, int]:
        made.clear()
        only = ["--only", "HF Trainer", "--only", "accelerate"]
        monkeypatch.setattr(sys, "argv", ["bench_peers.py", *only, *options])
        assert peers.main() == 0
        return capsys.readouterr().out, len(made)

    return table


WORKS = ("--shape", "stranger", "--shape", "long", "--micro-batch", "1", "--micro-batch", "fastest", "--rounds", "2")


def test_the_table_of_peers_has_each_one_at_its_best(peers_table: PeersTable) -> None:
    out, _ = peers_table(*WORKS)
    assert "| HF Trainer | eager, micro-batch 8 | 600 | 1.000 [1.000, 1.000] | 1,024 | 5.0 | 3.000 |" in out
    assert out.split("| work |")[1].splitlines() == [
        " harness, tokens/s | MFU | over HF Trainer | over accelerate |",
        "|---|---|---|---|---|",
        "| stranger, micro-batch 1 | 300 | 0.500 | 1.000 [1.000, 1.000] | 2.000 [2.000, 2.000] |",
        "| stranger, micro-batch fastest | 600 | 0.500 | 1.000 [1.000, 1.000] | 4.000 [4.000, 4.000] |",
        # One sequence a step: there is one size.
        "| long, micro-batch 1 | 300 | 0.500 | 1.000 [1.000, 1.000] | 2.000 [2.000, 2.000] |",
        "| geometric mean | | | 1.000 | 2.520 |",
    ]


def test_the_table_of_peers_goes_on_where_it_was(peers_table: PeersTable, tmp_path: Path) -> None:
    options = (*WORKS, "--out", str(tmp_path / "runs.jsonl"))
    first, made = peers_table(*options)
    assert made > 0
    again, made = peers_table(*options)
    assert made == 0
    assert again.split("| work |")[1] == first.split("| work |")[1]
    _, made = peers_table(*options, "--rounds", "3")
    # One more of each trainer's choice in three works; accelerate's fastest in the second is that of the first.
    assert made == 8


@pytest.mark.parametrize("size", ["0", "-1", "fast", "1.5"])
def test_a_size_of_peers_that_is_none_is_refused(
    size: str, peers_table: PeersTable, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        peers_table(f"--micro-batch={size}")
    assert f"found {size}, expected a size of at least 1, or fastest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=llama-30m", "precision=fp16"], "precision: found fp16, but the peers have bf16"),
        (
            ["model=qwen3-0.6b"],
            "model.qk_norm: found True, but the peers have False; model.head_dim: found 128, but the",
        ),
        (["model=mixtral-8x7b"], "model.num_experts: found 8, but the peers have None"),
        (["model=gpt2-124m", "model.activation_checkpointing=true"], "model.activation_checkpointing: found True"),
        (["model=gpt2-124m", "model.position_embedding=rotary"], "model.position_embedding: found rotary"),
        (["model=gpt2-124m", "backend.device_index=1"], "backend.device_index: found 1, but the peers have 0"),
    ],
)
def test_work_that_the_peers_would_not_do_is_refused(
    settings: list[str], message: str, peers_table: PeersTable, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        peers_table(*settings)
    assert message in capsys.readouterr().err


def test_runs_of_another_program_are_made_again(
    peers_table: PeersTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--shape", "long", "--rounds", "1", "--out", str(tmp_path / "runs.jsonl"))
    _, first = peers_table(*options)
    programs = shutil.copytree(PROJECT / "scripts" / "peers", tmp_path / "peers")
    monkeypatch.setattr(sys.modules["bench_peers"], "PROGRAMS", programs)
    assert peers_table(*options)[1] == 0
    (programs / "common.py").write_text("# Another.\n")
    _, again = peers_table(*options)
    # Not those of the harness.
    assert again == first - 1
