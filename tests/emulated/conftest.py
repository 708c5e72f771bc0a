"""Fixtures that run programs and the harness on the emulated device, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cann_emulator.build import Missing, build, environment
from tests.conftest import PROJECT
from tests.zygote import Zygote

TIMEOUT_SECONDS = 300


@pytest.fixture(scope="session")
def cann() -> Path:
    """Return the folder of the emulated CANN; skip if it cannot be built."""
    try:
        return build()
    except Missing as missing:
        pytest.skip(f"the CANN emulator cannot be built: {missing}")


@pytest.fixture(scope="session")
def npu_zygote(cann: Path) -> Iterator[Zygote]:
    """Processes in which torch_npu has been imported, on the emulated CANN, and no device opened."""
    zygote = Zygote(["torch_npu", "harness.backends.npu"], environment(cann))
    yield zygote
    zygote.close()


@dataclass
class Emulated:
    """A host with an emulated Ascend NPU."""

    cann: Path
    folder: Path

    def harness(
        self, *argv: str, variables: Mapping[str, str] | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m harness ARGV...` in the scratch folder."""
        return self.python("-m", "harness", *argv, folder=self.folder, variables=variables, timeout=timeout)

    def program(
        self, name: str, *argv: str, variables: Mapping[str, str] | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> Any:
        """Run tests/emulated/programs/NAME.py and return its last line of output, parsed as JSON."""
        module = f"tests.emulated.programs.{name}"
        done = self.python("-m", module, *argv, folder=PROJECT, variables=variables, timeout=timeout)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    def record(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "record.json").read_text())

    def python(
        self,
        *argv: str,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGV...` in a folder."""
        return subprocess.run(
            [sys.executable, *argv],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **environment(self.cann), **(variables or {})},
        )


@pytest.fixture
def emulated(cann: Path, tmp_path: Path) -> Emulated:
    return Emulated(cann, tmp_path)


@pytest.fixture(scope="session")
def emulated_host(cann: Path, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The same host for results that several tests share."""
    return Emulated(cann, tmp_path_factory.mktemp("emulated"))
