"""Contract of every backend: run over every registered name, out-of-tree ones included.

The first half needs no device. The second runs where the device is and is skipped elsewhere, with the first missing
thing named.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from harness import backends
from harness.backends.base import Backend
from harness.backends.host_checks import Problem
from harness.backends.sensors import Reading
from harness.backends.step import DTYPE_NAMES, StepOutput, TrainStep, residual_dtype
from harness.composition import group_options, load
from harness.config import PRECISIONS, BackendConfig, Config
from harness.errors import BackendUnavailable
from harness.training.probe import probe
from harness.workload.data import open_dataset
from harness.workload.initialization import build_model
from harness.workload.optimizer import build_optimizer
from tests.conftest import PROJECT
from tests.tiny import TINY

NAMES = list(backends.registered())
BUILT_IN = {
    point.name: point
    for points in backends.registered().values()
    for point in points
    if point.module.startswith("harness.")
}

every_backend = pytest.mark.parametrize("name", NAMES)


def create(name: str) -> Backend:
    return backends.create(BackendConfig(name=name))


def test_the_three_built_in_backends_are_registered() -> None:
    assert {"cpu", "cuda", "npu"} <= set(NAMES)


def test_built_ins_are_entry_points_like_plug_ins() -> None:
    text = (PROJECT / "pyproject.toml").read_text()
    section = text.split('[project.entry-points."harness.backends"]', 1)[1].split("\n[", 1)[0]
    declared = dict(re.findall(r'^(\w+) = "([\w.]+:\w+)"$', section, re.MULTILINE))
    assert declared == {name: point.value for name, point in BUILT_IN.items()}, "install again: pip install -e ."


@every_backend
class TestWithoutADevice:
    def test_class_says_what_it_is(self, name: str) -> None:
        kind = type(create(name))
        assert issubclass(kind, Backend)
        assert kind.name == name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert kind.__doc__
        assert kind.__doc__ != Backend.__doc__
        assert kind.collective is None or kind.collective.strip()
        assert isinstance(kind.pins_host_memory, bool)
        assert isinstance(kind.asynchronous, bool)
        for words in (kind.distributions, kind.environment_prefixes):
            assert isinstance(words, tuple), "one string in brackets is a string, not a tuple"
            assert all(isinstance(word, str) and word.strip() == word != "" for word in words)

    def test_a_yaml_file_chooses_it(self, name: str) -> None:
        assert name in group_options()["backend"]
        assert load([f"backend={name}"]).backend == BackendConfig(name=name)
        if name in BUILT_IN:
            assert (PROJECT / "configs" / "backend" / f"{name}.yaml").is_file()

    def test_preflight_answers_without_torch(self, name: str) -> None:
        script = (
            "import json, sys\n"
            "from harness import backends\n"
            "from harness.config import BackendConfig\n"
            f"backend = backends.create(BackendConfig(name={name!r}))\n"
            "problems = [[p.what, p.remedy] for p in backend.preflight()]\n"
            "versions = backend.versions()\n"
            "print(json.dumps([problems, versions, 'torch' in sys.modules]))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        problems, versions, has_torch = json.loads(done.stdout)
        assert not has_torch
        for what, remedy in problems:
            assert what.strip()
            assert remedy.strip()
            assert "\n" not in what + remedy
        assert torch.__version__.startswith(versions["torch"])
        assert all(version is None or (isinstance(version, str) and version) for version in versions.values())

    def test_preflight_is_of_this_process_and_repeats_itself(self, name: str) -> None:
        backend = create(name)
        problems = backend.preflight()
        assert all(isinstance(problem, Problem) for problem in problems)
        assert backend.preflight() == problems

    def test_more_threads_than_cores_is_a_problem(self, name: str) -> None:
        backend = backends.create(BackendConfig(name=name, threads=4096))
        [problem] = [problem for problem in backend.preflight() if "backend.threads" in problem.what]
        assert "4096" in problem.what
        assert "backend.threads=" in problem.remedy

    def test_refusal_is_one_line_with_every_problem_and_the_first_remedy(self, name: str) -> None:
        error = create(name).unavailable_error([Problem("no driver", "install it"), Problem("no\nnode", "pass it")])
        assert isinstance(error, BackendUnavailable)
        assert error.exit_code == 3
        text = str(error)
        assert "\n" not in text
        for part in (name, "no driver", "no node", "install it", f"python -m harness doctor {name}"):
            assert part in text
        assert "pass it" not in text

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("out of memory, tried to allocate 2.00 GiB"),
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough memory"),
        ],
        ids=lambda error: str(error)[:20] or type(error).__name__,
    )
    def test_out_of_memory_is_classified(self, name: str, error: BaseException) -> None:
        failure = create(name).classify_error(error)
        assert failure is not None
        assert failure.status == "oom"
        assert failure.cause.strip()
        assert "\n" not in failure.cause
        assert "workload.micro_batch_size" in failure.remedy

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("out of memory"),
            ValueError("expected a number"),
            RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
            RuntimeError("Expected all tensors to be on the same device, but found at least two devices"),
            KeyError("missing"),
        ],
        ids=lambda error: str(error)[:20],
    )
    def test_errors_of_the_harness_are_not_the_device_s(self, name: str, error: BaseException) -> None:
        assert create(name).classify_error(error) is None


@dataclass
class Opened:
    """A backend with its device open, and the tiny workload on it."""

    backend: Backend
    name: str

    def config(self, precision: str) -> Config:
        return load([*TINY, f"backend={self.name}", f"precision={precision}", "workload.learning_rate=0.01"])

    def prepared(self, precision: str) -> tuple[torch.nn.Module, TrainStep, tuple[torch.Tensor, ...]]:
        """Return the model, its step, and one global batch as two micro-batches on the host."""
        config = self.config(precision)
        try:
            self.backend.apply(precision)
        except BackendUnavailable as error:
            pytest.skip(str(error))
        model = build_model(
            config.model, config.seed, self.backend.device(), residual_dtype=residual_dtype(config.precision)
        )
        optimizer = build_optimizer(model, config.workload, config.track)
        step = self.backend.prepare(model, optimizer, precision=precision, max_grad_norm=1.0)
        sequences = torch.from_numpy(open_dataset(config).train(0, 4))
        return model, step, sequences.split(2)


def create_or_skip(name: str) -> Backend:
    backend = backends.create(BackendConfig(name=name, threads=1))
    problems = backend.preflight()
    if problems:
        pytest.skip(f"backend {name}: {problems[0].what}")
    return backend


@pytest.fixture
def opened(name: str) -> Iterator[Opened]:
    backend = create_or_skip(name)
    backend.load()
    yield Opened(backend, name)
    backend.close()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().clone() for key, value in model.named_parameters()}


precisions = pytest.mark.parametrize("precision", PRECISIONS)


@every_backend
class TestOnTheDevice:
    def test_describes_itself(self, name: str, opened: Opened) -> None:
        described = opened.backend.describe()
        assert {"kind", "name", "index", "memory_bytes", "count", "emulated"} <= set(described)
        json.dumps(described)
        assert isinstance(described["kind"], str)
        assert isinstance(described["emulated"], bool)
        assert 0 <= described["index"] < described["count"]
        assert described["memory_bytes"] is None or described["memory_bytes"] > 0
        key = opened.backend.peak_lookup_key()
        assert key is None or key == described["name"], "a catalogue lists devices by their exact names"

    def test_a_device_of_several_is_named_with_its_index(self, name: str, opened: Opened) -> None:
        device = opened.backend.device()
        assert isinstance(device, torch.device)
        if opened.backend.describe()["count"] > 1:
            assert device.index == opened.backend.settings.device_index
        assert torch.zeros(1, device=device).device == device

    @precisions
    def test_what_is_in_effect_can_be_recorded_and_agrees(self, name: str, opened: Opened, precision: str) -> None:
        opened.prepared(precision)
        json.dumps(opened.backend.effective_settings())
        found = probe(opened.backend, opened.config(precision))
        json.dumps(found)
        assert found["matmul_dtype"] == DTYPE_NAMES[precision]
        assert found["threads"] == 1
        assert found["attention_kernel"].endswith("Backward0")
        assert 0 < found["matmul_relative_error"] < 0.01
        for key, value in opened.backend.effective_settings().items():
            assert found[key] == value

    @precisions
    def test_a_repeated_batch_is_learned(self, name: str, opened: Opened, precision: str) -> None:
        _, step, batch = opened.prepared(precision)
        losses = [float(step(batch, 0.01).loss) for _ in range(12)]
        assert losses[0] == pytest.approx(5.5, abs=0.3), "ln 256, an untrained model's loss"
        assert losses[-1] < losses[0] - 0.3
        assert step.skipped_steps() == 0

    @precisions
    def test_a_step_returns_scalars_that_stay_on_the_device(self, name: str, opened: Opened, precision: str) -> None:
        _, step, batch = opened.prepared(precision)
        output = step(batch, 0.01)
        assert isinstance(output, StepOutput)
        for scalar in output:
            assert scalar.shape == ()
            assert scalar.dtype == torch.float32
            assert scalar.device == opened.backend.device()
            assert not scalar.requires_grad
        assert float(output.gradient_norm) > 0

    @precisions
    def test_a_step_changes_the_weights_and_an_evaluation_does_not(
        self, name: str, opened: Opened, precision: str
    ) -> None:
        model, step, batch = opened.prepared(precision)
        step(batch, 0.01)
        before = weights(model)
        loss = step.evaluate(torch.cat(batch))
        assert loss.shape == ()
        assert loss.device == opened.backend.device()
        assert not loss.requires_grad
        assert model.training
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())
        again = step.evaluate(torch.cat(batch))
        assert float(again) == pytest.approx(float(loss), rel=1e-3)
        step(batch, 0.01)
        assert not all(torch.equal(before[key], value) for key, value in weights(model).items())

    def test_weights_stay_in_float32_whatever_the_precision(self, name: str, opened: Opened) -> None:
        for precision in PRECISIONS:
            model, step, batch = opened.prepared(precision)
            step(batch, 0.01)
            assert {value.dtype for value in model.parameters()} == {torch.float32}

    def test_memory_is_known_or_null_but_never_zero(self, name: str, opened: Opened) -> None:
        _, step, batch = opened.prepared("fp32")
        opened.backend.reset_peak_memory()
        step(batch, 0.01)
        opened.backend.synchronize()
        memory = opened.backend.memory()
        if memory is not None:
            assert any(value is not None for value in memory.values()), "nothing known is None, not a dict of None"
            for key, value in memory.items():
                assert key.endswith("_bytes")
                assert value is None or (type(value) is int and value > 0), key

    def test_event_timer_is_none_or_works(self, name: str, opened: Opened) -> None:
        timer = opened.backend.event_timer()
        if timer is None:
            return
        _, step, batch = opened.prepared("fp32")
        for _ in range(3):
            timer.mark()
            step(batch, 0.01)
        opened.backend.synchronize()
        intervals = timer.intervals_seconds()
        assert len(intervals) == 2
        assert all(0 < seconds < 60 for seconds in intervals)
        assert timer.intervals_seconds() == []

    def test_optional_parts_are_of_the_promised_kind(self, name: str, opened: Opened) -> None:
        kernels = opened.backend.kernels()
        assert isinstance(kernels, Mapping)
        assert all(isinstance(key, str) for key in kernels)
        sensor = opened.backend.telemetry()
        if isinstance(sensor, str):
            # The reason why there is none, in one line.
            assert sensor.strip()
            assert "\n" not in sensor
        else:
            assert sensor.period_seconds > 0
            assert sensor.read() != Reading()
            sensor.close()
        versions: dict[str, Any] = opened.backend.versions()
        assert torch.__version__.startswith(versions["torch"])
        assert set(opened.backend.distributions) <= set(versions)


class FakeSensor:
    """A sensor with one reading, or one that fails."""

    source, scope, period_seconds = "fake", "nothing", 1.0

    def __init__(self, reading: Reading | Exception) -> None:
        self._reading, self.closed = reading, False

    def read(self) -> Reading:
        if isinstance(self._reading, Exception):
            raise self._reading
        return self._reading

    def close(self) -> None:
        self.closed = True


class TestClockState:
    @pytest.mark.parametrize(
        ("reading", "expected"),
        [
            (
                Reading(power_watts=9.0, clock_mhz=900.0, throttle_reasons=("power cap",)),
                {"clock_mhz": 900.0, "clock_limit_mhz": None, "throttle_reasons": ["power cap"],
                 "temperature_celsius": None, "power_limit_watts": None, "default_power_limit_watts": None},
            ),
            (OSError("no answer"), None),
            (RuntimeError("an error of a vendor's library"), None),
        ],
    )  # fmt: skip
    def test_is_one_reading_of_the_sensor(
        self, reading: Reading | Exception, expected: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend, sensor = create("cpu"), FakeSensor(reading)
        monkeypatch.setattr(backend, "telemetry", lambda: sensor)
        assert backend.clock_state() == expected
        assert sensor.closed

    def test_is_none_without_a_sensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = create("cpu")
        monkeypatch.setattr(backend, "telemetry", lambda: "no sensor")
        assert backend.clock_state() is None


def test_a_skip_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hardware test skipped without a reason would look like one that passed."""
    monkeypatch.setattr("harness.backends.cpu.CpuBackend.preflight", lambda self: [Problem("no CPU at all", "buy one")])
    with pytest.raises(pytest.skip.Exception, match="backend cpu: no CPU at all"):
        create_or_skip("cpu")
