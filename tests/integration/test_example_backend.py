"""An out-of-tree accelerator in under 60 lines passes the contract and computes the same as the CPU."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT, Harness
from tests.tiny import TINY

EXAMPLE = PROJECT / "tests" / "example_backend"
CODE = EXAMPLE / "harness_graphchip" / "backend.py"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The package as pip installs it: its folder on the path, and the entry points of its pyproject.toml."""
    declared = (EXAMPLE / "pyproject.toml").read_text()
    name, version = (re.search(rf'^{key} = "(.+)"$', declared, re.MULTILINE) for key in ("name", "version"))
    points = re.search(r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"', declared)
    assert name is not None
    assert version is not None
    assert points is not None
    info = tmp_path / "site" / f"{name[1].replace('-', '_')}-{version[1]}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name[1]}\nVersion: {version[1]}\n")
    (info / "entry_points.txt").write_text(f"[{points[1]}]\n{points[2]} = {points[3]}\n")
    old = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(info.parent), str(EXAMPLE), old]))}


def test_has_under_60_lines() -> None:
    code = [line for line in CODE.read_text().splitlines() if line.strip()]
    settings = [path for path in EXAMPLE.rglob("*.yaml") if path.read_text().strip()]
    assert len(code) + sum(len(path.read_text().splitlines()) for path in settings) < 60


def test_passes_the_contract(installed: dict[str, str]) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "tests/test_backend_contract.py",
             "-k", "graphchip"]  # fmt: skip
    done = subprocess.run(
        words, cwd=PROJECT, env={**os.environ, **installed}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    counted = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
    assert counted is not None
    # The skipped tests are those of fp16, which this chip does not support.
    assert (int(counted[1]) >= 25, int(counted[2]) <= 5) == (True, True)


def test_trains_and_computes_what_the_cpu_does(installed: dict[str, str], harness: Harness, tmp_path: Path) -> None:
    for name in ("cpu", "graphchip"):
        done = harness(*TINY, f"backend={name}", "workload.micro_batch_size=1", f"out={name}", env=installed)
        assert done.returncode == 0, done.stderr
    done = harness("compare", "cpu", "graphchip", env=installed)
    assert done.returncode == 0, done.stderr
    assert "'graphchip' computes the same as 'cpu'; 'graphchip' is emulated: no speed is stated." in " ".join(
        done.stdout.split()
    )


def test_a_precision_that_it_lacks_is_refused(installed: dict[str, str], harness: Harness) -> None:
    done = harness(*TINY, "backend=graphchip", "precision=fp16", env=installed)
    assert done.returncode == 3
    assert "this chip has no loss scaling" in done.stderr
    assert "Traceback" not in done.stderr


def test_compiles_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    graph_step = importlib.import_module("harness_graphchip.backend").GraphStep

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 1)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.linear(batch.float()).square().mean()

    model = Loss()
    step = graph_step(model, torch.optim.SGD(model.parameters(), lr=0.1), False, 1.0)
    batches = [torch.ones(2, 3), torch.ones(2, 3)]
    losses = [float(step(batches, 0.1).loss) for _ in range(5)]
    for sequences in (2, 4, 4):
        step.evaluate(torch.ones(sequences, 3))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert len(step.graphs) == 3
