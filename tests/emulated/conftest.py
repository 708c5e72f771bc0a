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
from tests.ranks import Ended, end_ranks
from tests.zygote import Forked, Zygote

TIMEOUT_SECONDS = 300


@pytest.fixture(scope="session")
def cann() -> Path:
    """Return the folder of the emulated CANN; skip if it cannot be built."""
    try:
        return build()
    except Missing as missing:
        if os.environ.get("REQUIRE_EMULATOR") == "1":
            pytest.fail(f"REQUIRE_EMULATOR=1, but the CANN emulator cannot be built: {missing}")
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
    zygote: Zygote

    def start(self, *argv: str, folder: Path | None = None, variables: Mapping[str, str] | None = None) -> Forked:
        """Start `python -m ARGV...` as a fork of a process that has imported torch_npu already."""
        return self.zygote.start(argv, folder or self.folder, self._environment(variables))

    def harness(self, *argv: str, variables: Mapping[str, str] | None = None) -> Ended:
        """Run `python -m harness ARGV...` in the scratch folder, as a fork."""
        [ended] = end_ranks([self.start("harness", *argv, variables=variables)], TIMEOUT_SECONDS)
        return ended

    def program(
        self, name: str, *argv: str, variables: Mapping[str, str] | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> Any:
        """Run tests/emulated/programs/NAME.py and return its last line of output, parsed as JSON.

        As a fork, unless there are variables: torch_npu reads some of them when it is imported.
        """
        module = f"tests.emulated.programs.{name}"
        if variables is None:
            [ended] = end_ranks([self.start(module, *argv, folder=PROJECT)], timeout)
            code, out, errors = ended.code, ended.out, ended.err
        else:
            done = self.python("-m", module, *argv, folder=PROJECT, variables=variables, timeout=timeout)
            code, out, errors = done.returncode, done.stdout, done.stderr
        assert code == 0, errors[-4000:]
        return json.loads(out.splitlines()[-1])

    def record(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "record.json").read_text())

    def python(
        self,
        *argv: str,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGV...` in a fresh interpreter."""
        return subprocess.run(
            [sys.executable, *argv],
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self._environment(variables),
        )

    def _environment(self, variables: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, **environment(self.cann), **(variables or {})}


@pytest.fixture
def emulated(cann: Path, npu_zygote: Zygote, tmp_path: Path) -> Emulated:
    return Emulated(cann, tmp_path, npu_zygote)


@pytest.fixture(scope="session")
def emulated_host(cann: Path, npu_zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The same host for results that several tests share."""
    return Emulated(cann, tmp_path_factory.mktemp("emulated"), npu_zygote)
