"""Doctor with the real torch-npu: a working host, and a problem that only opening the device shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.emulated.conftest import Emulated


def test_a_working_host_is_ready_and_reported_as_emulated(emulated: Emulated) -> None:
    done = emulated.python("-m", "harness", "doctor", "npu", "--json")
    assert done.returncode == 0, done.stderr
    [report] = json.loads(done.stdout)["backends"]
    assert report["device"]["name"] == "Ascend910B3 (emulated)"
    assert report["device"]["cube_cores"] == 20
    assert report["versions"]["cann"] == "9.1.0-emulated"
    assert report["versions"]["torch-npu commit"]


def test_a_cann_that_lacks_a_function_is_too_old(emulated: Emulated, tmp_path: Path) -> None:
    """Without an entry in the table of releases, only the first call of the missing function shows it."""
    libraries = tmp_path / "lib64"
    shutil.copytree(emulated.cann / "lib64", libraries, symlinks=True)
    library = libraries / "libascendcl.so"
    text = library.read_bytes()
    assert text.count(b"\0aclrtSetDeviceSatMode\0") >= 1
    library.write_bytes(text.replace(b"\0aclrtSetDeviceSatMode\0", b"\0aclrtSetDeviceSatModX\0"))
    done = emulated.python("-m", "harness", "doctor", "npu", "--json", variables={"LD_LIBRARY_PATH": str(libraries)})
    assert done.returncode == 3, done.stdout
    [problem] = json.loads(done.stdout)["backends"][0]["problems"]
    assert "CANN is too old for this torch-npu" in problem["what"]
    assert "aclrtSetDeviceSatMode" in problem["what"]
