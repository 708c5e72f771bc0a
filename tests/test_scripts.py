"""Settings that the scripts give to runs are accepted: most scripts need hardware or hours, and run in no test."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

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
