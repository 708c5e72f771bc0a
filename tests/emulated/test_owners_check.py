"""scripts/verify_on_device.py on the emulated device, the backend contract included."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from harness.analysis.calibration import load_calibration
from tests.conftest import load_script
from tests.emulated.conftest import Emulated
from tests.ranks import end_ranks


def test_the_owners_check_passes_and_packs_its_evidence(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = load_script("verify_on_device.py")

    def run(argv: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        if argv[2] == "pytest":
            return emulated.python(*argv[1:], folder=cwd)
        [ended] = end_ranks([emulated.start(*argv[2:], folder=cwd)], timeout=300)
        return subprocess.CompletedProcess(argv, ended.code, ended.out, ended.err)

    # A fork for each run: most of their time is the import of torch and torch-npu.
    monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run, CompletedProcess=subprocess.CompletedProcess))
    bundle = emulated.folder / "bundle"
    monkeypatch.setattr(sys, "argv", ["verify_on_device.py", "npu", "--quick", "--out", str(bundle)])
    assert verify.main() == 0, capsys.readouterr().out
    checks = {check["name"]: check for check in json.loads((bundle / "summary.json").read_text())}
    asked = ("doctor", "contract", "parity fp32", "parity bf16", "parity fp16", "repeats")
    assert {name: check["passed"] for name, check in checks.items()} == {**dict.fromkeys(asked, True), "events": None}
    # The tests that need a device have run: none was skipped.
    assert "passed" in checks["contract"]["detail"]
    assert "backend npu:" not in (bundle / "contract.log").read_text()
    assert "equal to the bit" in checks["repeats"]["detail"]
    with tarfile.open(f"{bundle}.tar.gz") as file:
        names = file.getnames()
    # The differences between CPU and device extend the limits of somebody who has such a device.
    assert load_calibration(bundle / "parity_noise.yaml").noise.keys() == load_calibration().noise.keys()
    assert yaml.safe_load((bundle / "parity_noise.yaml").read_text())[0]["noise"]["loss_curve"].keys() == {
        "fp32", "bf16", "fp16",
    }  # fmt: skip
    for name in ("summary.json", "parity_noise.yaml", "doctor.log", "device-fp32/record.json", "timing/1/record.json"):
        assert f"bundle/{name}" in names
