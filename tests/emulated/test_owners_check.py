"""scripts/verify_on_device.py on the emulated device, the backend contract included."""

from __future__ import annotations

import json
import tarfile

from tests.conftest import PROJECT
from tests.emulated.conftest import Emulated


def test_the_owners_check_passes_and_packs_its_evidence(emulated: Emulated) -> None:
    bundle = emulated.folder / "bundle"
    argv = ("npu", "--quick", "--out", str(bundle))
    done = emulated.python("scripts/verify_on_device.py", *argv, folder=PROJECT)
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check for check in json.loads((bundle / "summary.json").read_text())}
    asked = ("doctor", "contract", "parity fp32", "parity bf16", "parity fp16", "repeats")
    assert {name: check["passed"] for name, check in checks.items()} == {**dict.fromkeys(asked, True), "events": None}
    # The tests that need a device have run: none was skipped.
    assert "passed" in checks["contract"]["detail"]
    assert "backend npu:" not in (bundle / "contract.log").read_text()
    assert "equal to the bit" in checks["repeats"]["detail"]
    with tarfile.open(f"{bundle}.tar.gz") as file:
        names = file.getnames()
    for name in ("summary.json", "doctor.log", "device-fp32/record.json", "timing/1/record.json"):
        assert f"bundle/{name}" in names
