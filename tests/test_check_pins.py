"""An image's build fails if a package comes in that nothing pins, and the pins fit what pyproject.toml asks for."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import PROJECT, load_script

CONTAINER = PROJECT / "scripts" / "container"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_script("container/check_pins.py")


def package(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_every_requirement_of_an_image_is_pinned_within_its_range(program: ModuleType) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    named = program.pins(CONTAINER / "constraints.txt")
    for line in program.requirements(PROJECT / "pyproject.toml", "ops,cuda,npu,tensorboard,text"):
        asked = Requirement(line)
        assert named[canonicalize_name(asked.name)] in asked.specifier, line


def test_the_pinned_torch_is_the_newest_that_torch_npu_takes(program: ModuleType) -> None:
    """The project itself takes newer ones, which the weekly job tries."""
    [newest] = re.findall(r'npu = \["torch-npu>=[\d.]+,<=([\d.]+)"\]', (PROJECT / "pyproject.toml").read_text())
    assert program.pins(CONTAINER / "constraints.txt")["torch"] == newest


def test_an_extra_that_is_none_is_refused(program: ModuleType) -> None:
    with pytest.raises(SystemExit, match="EXTRA: found 'gpu', expected some of: npu, cuda"):
        program.requirements(PROJECT / "pyproject.toml", "ops,gpu")


def test_what_nothing_pins_is_named(program: ModuleType, tmp_path: Path) -> None:
    package(tmp_path, "torch", "2.13.0+cpu", "sympy>=1.13", "triton==3.5.0 ; platform_system == 'Linux'")
    package(tmp_path, "triton", "3.5.0")
    package(tmp_path, "training_harness", "0.1.0")
    named = {"torch": "2.13.0"}
    assert program.unpinned(tmp_path, named) == []
    package(tmp_path, "Sym_Py", "1.14.0")
    assert program.unpinned(tmp_path, named) == ["sym-py==1.14.0"]
    assert program.unpinned(tmp_path, {**named, "sym-py": "1.14.0"}) == []


@pytest.mark.parametrize(("extra", "refused"), [("ops", True), ("ops,npu", True), ("ops,cuda", False)])
def test_a_torch_for_cuda_has_no_place_in_another_image(
    extra: str, refused: bool, program: ModuleType, tmp_path: Path
) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    package(packages, "torch", "2.13.0")
    (packages / "torch").mkdir()
    (packages / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    words = ["installed", str(tmp_path), str(constraints), extra]
    if refused:
        with pytest.raises(SystemExit, match="built for CUDA"):
            program.main(words)
    else:
        program.main(words)
