"""Build of the emulator: names from the installed wheel, stubs that fail with their name, skips with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.cann_emulator import build as building
from tests.cann_emulator.symbols import cann_names, kernel_names, stubs_source
from tests.conftest import PROJECT
from tests.emulated.conftest import Emulated

WHEEL = (
    b"\x7fELF\0aclnnFooGetWorkspaceSize\0aclnnFoo\0aclrtBar\0HcclBaz\0PTAFindExecCache\0not_one\0aclrtHalf"
    b"\x01\0xaclrtTail\0aclsysGetVersionStr\0"
)


def test_names_are_whole_strings_of_the_wheel(tmp_path: Path) -> None:
    library = tmp_path / "libtorch_npu.so"
    library.write_bytes(WHEEL)
    names = cann_names([library])
    assert names == {"aclnnFooGetWorkspaceSize", "aclnnFoo", "aclrtBar", "HcclBaz", "aclsysGetVersionStr"}
    assert kernel_names(names) == ["aclnnFoo"]


def test_every_name_gets_a_stub_that_names_it() -> None:
    source = stubs_source({"aclnnFooGetWorkspaceSize", "aclrtBar", "HcclBaz"})
    for function, name in (
        ("aclnnFooGetWorkspaceSize", 'no_kernel("aclnnFoo")'),
        ("aclnnFoo", 'no_kernel("aclnnFoo")'),
        ("aclrtBar", 'no_function("aclrtBar")'),
        ("HcclBaz", 'no_function("HcclBaz")'),
    ):
        [line] = [line for line in source.splitlines() if f"int {function}()" in line]
        assert name in line
        assert "weak" in line


class TestMissing:
    def test_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert building.missing() == "no C++ compiler (no-such-compiler is not on the PATH)"
        with pytest.raises(building.Missing, match="no-such-compiler"):
            building.build()

    @pytest.mark.parametrize("package", ["torch", "torch-npu"])
    def test_a_package(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = metadata.version

        def version(name: str) -> str:
            if name == package:
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setenv("CXX", sys.executable)  # any existing program
        monkeypatch.setattr(building.metadata, "version", version)
        if package == "torch-npu":
            monkeypatch.setattr(building.metadata, "version", lambda name: version(name) if name == package else "1")
        assert building.missing() == f"the package {package} is not installed"

    def test_a_skip_gives_the_reason(self) -> None:
        words = ("-q", "-rs", "-p", "no:cacheprovider", "tests/emulated/test_operations.py", "-k", "exp")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=PROJECT,
            env={**os.environ, "CXX": "no-such-compiler"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert "the CANN emulator cannot be built: no C++ compiler (no-such-compiler is not on the PATH)" in done.stdout
        assert "passed" not in done.stdout


def test_a_build_is_made_once(cann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_again(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(building, "_compile", compile_again)
    assert building.build() == cann


def test_an_unimplemented_function_fails_with_its_name(emulated: Emulated) -> None:
    found = emulated.program("missing")
    assert found["kernel"] == ["aclnnConvolution"]
    assert found["function"] == 207000
    assert "aclmdlRICaptureBegin" in found["message"]


def test_a_wrong_mask_of_the_fused_attention_is_noticed(emulated: Emulated) -> None:
    errors = emulated.program("wrong_mask")
    assert errors["right"] == ""
    assert "a mask that is not the upper triangle" in errors["wrong"]
