"""`python -m harness doctor`: state of every backend, its problems and their remedies.

Tests remove or add packages, libraries and variables, and check that the report follows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.backends.ascend.host import DEVICE_FOLDER, REQUIRED_LIBRARIES, device_nodes, on_loader_path
from harness.backends.cuda import CudaBackend
from harness.backends.host_checks import installed_version
from harness.config import BackendConfig
from tests.conftest import Harness
from tests.tiny import TINY

HAS_CUDA = not CudaBackend(BackendConfig(name="cuda")).preflight()

without_an_npu = pytest.mark.skipif(
    bool(device_nodes(DEVICE_FOLDER)) or on_loader_path("libascendcl.so"),
    reason="this machine has CANN or an NPU of its own",
)


def search_path(folder: Path) -> dict[str, str]:
    """Return the environment with a folder before all installed packages."""
    rest = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{rest}" if rest else str(folder)}


def hide(folder: Path, name: str) -> dict[str, str]:
    """Return the environment that hides an installed distribution."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "real = metadata.distribution\n"
        "def distribution(name):\n"
        f"    if name == {name!r}:\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.distribution = distribution\n"
    )
    return search_path(folder)


def install(folder: Path, name: str, version: str) -> None:
    """Make a distribution look installed: doctor reads its metadata only."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def reports(text: str) -> dict[str, dict[str, Any]]:
    return {report["name"]: report for report in json.loads(text)["backends"]}


def npu_report(harness: Harness, **env: str) -> dict[str, Any]:
    """Return doctor's JSON report on the NPU with these variables set."""
    done = harness("doctor", "npu", "--json", env=env, fresh=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    return reports(done.stdout)["npu"]


def problems_of(report: dict[str, Any]) -> str:
    return "\n".join(problem["what"] for problem in report["problems"])


class TestTable:
    def test_names_every_backend_its_state_and_what_is_there(self, harness: Harness) -> None:
        done = harness("doctor", env={"COLUMNS": "80"})
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
        states = {}
        for row in rows:
            cells = [cell.strip() for cell in row.strip("│").split("│")]
            if cells[0]:
                states[cells[0]] = cells[1]
        assert set(states) >= {"cpu", "cuda", "npu"}
        assert states["cpu"] == "yes"
        assert states["cuda"] == ("yes" if HAS_CUDA else "no")
        assert max(map(len, done.stdout.splitlines())) <= 100
        assert "GiB" in done.stdout
        assert "torch 2" in done.stdout

    @without_an_npu
    def test_of_one_that_is_not_there(self, harness: Harness, tmp_path: Path) -> None:
        done = harness("doctor", "npu", env=hide(tmp_path / "site", "torch-npu"), fresh=True)
        assert done.returncode == 3
        assert done.stderr == ""
        whole = " ".join(done.stdout.split())
        for part in ("npu", "no", "1.", "2.", "3.", "torch-npu", "pip install torch-npu=="):
            assert part in whole
        assert "cpu" not in [line.strip("│").split("│")[0].strip() for line in done.stdout.splitlines()]

    def test_help(self, harness: Harness) -> None:
        done = harness("doctor", "--help")
        assert done.returncode == 0
        assert "usage: python -m harness doctor" in done.stdout
        assert "exit codes" in done.stdout


class TestJson:
    def test_of_one_backend(self, harness: Harness) -> None:
        done = harness("doctor", "cpu", "--json")
        assert done.returncode == 0, done.stderr
        inventory = json.loads(done.stdout)
        assert set(inventory) == {"schema_version", "time", "host", "harness_version", "environment", "backends"}
        assert inventory["environment"]["cpu_cores_allowed"] >= 1
        [report] = inventory["backends"]
        assert set(report) == {"name", "ready", "problems", "device", "versions"}
        assert report["name"] == "cpu"
        assert report["ready"] is True
        assert report["problems"] == []
        assert set(report["device"]) >= {"kind", "name", "index", "count", "memory_bytes", "emulated"}
        assert report["versions"]["torch"]

    def test_of_all(self, harness: Harness) -> None:
        done = harness("doctor", "--json")
        assert done.returncode == 0, done.stderr
        found = reports(done.stdout)
        assert set(found) >= {"cpu", "cuda", "npu"}
        for report in found.values():
            assert bool(report["problems"]) is not report["ready"]
            assert (report["device"] is not None) is report["ready"]
            for problem in report["problems"]:
                assert problem["what"].strip()
                assert problem["remedy"].strip()
        if not HAS_CUDA:
            assert "CUDA" in problems_of(found["cuda"]) or "GPU" in problems_of(found["cuda"])


@without_an_npu
class TestAnswersFollowTheMachine:
    def test_bare(self, harness: Harness, tmp_path: Path) -> None:
        report = npu_report(harness, **hide(tmp_path / "site", "torch-npu"))
        assert [problem["what"].split(" (")[0] for problem in report["problems"]] == [
            "the package torch-npu is not installed",
            "CANN is not on the loader's path",
            "no Ascend device node",
        ]
        assert report["versions"]["torch-npu"] is None
        assert report["versions"]["cann"] is None

    def test_with_the_package(self, harness: Harness, tmp_path: Path) -> None:
        torch = installed_version("torch") or ""
        install(tmp_path / "site", "torch-npu", torch.split("+", maxsplit=1)[0])
        report = npu_report(harness, **search_path(tmp_path / "site"))
        assert "package" not in problems_of(report)
        assert "CANN is not on the loader's path" in problems_of(report)
        assert "no Ascend device node" in problems_of(report)
        assert report["versions"]["torch-npu"] == torch.split("+", maxsplit=1)[0]

    def test_with_a_package_for_another_torch(self, harness: Harness, tmp_path: Path) -> None:
        install(tmp_path / "site", "torch-npu", "2.8.0.post4")
        first = npu_report(harness, **search_path(tmp_path / "site"))["problems"][0]
        assert "torch-npu 2.8.0.post4 is made for torch 2.8.0" in first["what"]
        assert f"torch {installed_version('torch')} is installed" in first["what"]
        assert "pip install torch==2.8.0" in first["remedy"]

    @pytest.mark.parametrize("missing", ["libgraph.so", "libhccl.so"])
    def test_with_all_libraries_but_one(self, missing: str, harness: Harness, tmp_path: Path) -> None:
        folder = tmp_path / "lib64"
        folder.mkdir()
        for name in REQUIRED_LIBRARIES:
            if name != missing:
                (folder / name).touch()
        report = npu_report(harness, LD_LIBRARY_PATH=str(folder))
        assert f"CANN on the loader's path is incomplete ({missing} not found)" in problems_of(report)
        (folder / missing).touch()
        cann = {"LD_LIBRARY_PATH": str(folder), "ASCEND_HOME_PATH": str(tmp_path), "ASCEND_OPP_PATH": str(tmp_path)}
        assert "CANN" not in problems_of(npu_report(harness, **cann))

    def test_with_variables_that_would_falsify_a_run(self, harness: Harness) -> None:
        report = npu_report(harness, ASCEND_RT_VISIBLE_DEVICES="1,0", TORCH_TRANSFER_TO_NPU="1")
        assert "ASCEND_RT_VISIBLE_DEVICES='1,0' is not in ascending order" in problems_of(report)
        assert "TORCH_TRANSFER_TO_NPU=1" in problems_of(report)
        assert "unset TORCH_TRANSFER_TO_NPU" in [problem["remedy"] for problem in report["problems"]]

    def test_the_refusal_of_a_run_says_the_same(self, harness: Harness) -> None:
        done = harness("backend=npu", "experiment=smoke", env={"ASCEND_RT_VISIBLE_DEVICES": "0 1"})
        assert done.returncode == 3
        [line] = done.stderr.splitlines()
        for problem in npu_report(harness, ASCEND_RT_VISIBLE_DEVICES="0 1")["problems"]:
            assert problem["what"] in line
        assert "python -m harness doctor npu" in line


class TestABrokenPlugInOfTorch:
    """torch-npu registers itself with torch: without its CANN, `import torch` would fail."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> dict[str, str]:
        install(tmp_path / "site", "torch-npu", "2.13.0")
        info = tmp_path / "site" / "torch_npu-2.13.0.dist-info"
        (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
        (tmp_path / "site" / "torch_npu.py").write_text(
            "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')\n"
        )
        return {**search_path(tmp_path / "site"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}

    def test_does_not_break_a_run_on_the_cpu(self, site: dict[str, str], harness: Harness) -> None:
        done = harness(*TINY, "out=run", env=site, fresh=True)
        assert done.returncode == 0, done.stderr
