"""`harness doctor npu` on broken Ascend hosts: the first problem, and the command that fixes it.

Packages, libraries, device nodes and files are simulated; what doctor makes of them is the real thing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.backends import base
from harness.backends.ascend import host
from harness.commands import doctor


class AscendHost:
    """A complete Ascend host in a folder; tests remove parts of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self.libraries, self.nodes, self.cann = folder / "lib64", folder / "dev", folder / "cann"
        self.driver = folder / "driver" / "lib64"
        for made in (self.libraries, self.nodes, self.cann / "opp", self.driver):
            made.mkdir(parents=True)
        for name in host.REQUIRED_LIBRARIES:
            (self.libraries / name).touch()
        (self.driver / host.DRIVER_LIBRARY).touch()
        for name in ("davinci0", *host.MANAGEMENT_NODES):
            (self.nodes / name).touch()
        self.cann_is("9.1.0")
        self.packages = {"torch": "2.12.0+cpu", "torch-npu": "2.12.0"}
        for module in (base, host):
            monkeypatch.setattr(module, "installed_version", self.packages.get)
        monkeypatch.setattr(host, "torch_build", dict)
        monkeypatch.setattr(host, "DEVICE_FOLDER", self.nodes)
        monkeypatch.setattr(host, "DRIVER_LIBRARIES", self.driver)
        # Settings of the machine that runs the tests.
        monkeypatch.setattr(host, "_loader_cache", set)
        for name in (host.VISIBLE_DEVICES, *host.UNSAFE_ENV_VARS):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LD_LIBRARY_PATH", f"{self.libraries}:{self.driver}")
        monkeypatch.setenv("ASCEND_HOME_PATH", str(self.cann))
        monkeypatch.setenv("ASCEND_OPP_PATH", str(self.cann / "opp"))
        # These tests end before the device is opened.
        opened = {"device": {"name": "Ascend910B3", "memory_bytes": 2**36, "count": 8}}
        monkeypatch.setattr(doctor, "_probe_in_fresh_process", lambda name: opened)

    def cann_is(self, version: str) -> None:
        (self.cann / "ascend_toolkit_install.info").write_text(f"version={version}\n")

    def close(self, node: str) -> None:
        real = os.access
        self._monkeypatch.setattr(
            os, "access", lambda path, mode: str(path) != str(self.nodes / node) and real(path, mode)
        )

    def set(self, name: str, value: str) -> None:
        self._monkeypatch.setenv(name, value)

    def unset(self, name: str) -> None:
        self._monkeypatch.delenv(name)


@pytest.fixture
def ascend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AscendHost:
    return AscendHost(tmp_path, monkeypatch)


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = doctor.main(["npu", "--json"])
    [found] = json.loads(capsys.readouterr().out)["backends"]
    return code, found


def no_package(ascend: AscendHost) -> None:
    del ascend.packages["torch-npu"]


def version_mismatch(ascend: AscendHost) -> None:
    ascend.packages["torch-npu"] = "2.8.0.post2"


def no_cann(ascend: AscendHost) -> None:
    ascend.set("LD_LIBRARY_PATH", str(ascend.driver))


def one_library_missing(ascend: AscendHost) -> None:
    (ascend.libraries / "libgraph.so").unlink()


def no_nodes(ascend: AscendHost) -> None:
    for node in ascend.nodes.iterdir():
        node.unlink()


def no_permission(ascend: AscendHost) -> None:
    ascend.close("davinci_manager")


def no_driver_mount(ascend: AscendHost) -> None:
    (ascend.driver / host.DRIVER_LIBRARY).unlink()
    ascend.driver.rmdir()


def bad_visible_devices(ascend: AscendHost) -> None:
    ascend.set(host.VISIBLE_DEVICES, "1,0")


def old_cann(ascend: AscendHost) -> None:
    ascend.cann_is("8.5.0")


BROKEN: dict[str, tuple[Callable[[AscendHost], None], tuple[str, ...], str]] = {
    "no package": (no_package, ("torch-npu is not installed",), "pip install torch-npu==2.12.0"),
    "version mismatch": (version_mismatch, ("2.8.0.post2", "2.12.0+cpu"), "pip install torch==2.8.0"),
    "no CANN": (no_cann, ("CANN is not on the loader's path",), "set_env.sh"),
    "one library missing": (one_library_missing, ("incomplete", "libgraph.so"), "set_env.sh"),
    "no device nodes": (no_nodes, ("no Ascend device node",), "--device /dev/davinci0"),
    "no permission": (no_permission, ("davinci_manager may not be opened",), "usermod -aG HwHiAiUser"),
    "driver not mounted": (no_driver_mount, ("libascend_hal.so", "driver/lib64 is missing"), "in a container pass -v"),
    "bad visible devices": (
        bad_visible_devices, ("ASCEND_RT_VISIBLE_DEVICES='1,0'", "ascending"), "export ASCEND_RT_VISIBLE_DEVICES=0,1",
    ),
    "too old CANN": (old_cann, ("CANN 8.5.0 is too old for torch-npu 2.12.0",), "install CANN 9.1.0"),
}  # fmt: skip


def test_a_whole_host_is_ready(ascend: AscendHost, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys)
    assert found["problems"] == []
    assert (code, found["ready"]) == (0, True)
    assert found["versions"]["cann"] == "9.1.0"


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_broken(name: str, ascend: AscendHost, capsys: pytest.CaptureFixture[str]) -> None:
    break_it, words, remedy = BROKEN[name]
    break_it(ascend)
    code, found = report(capsys)
    assert (code, found["ready"]) == (3, False)
    [problem] = found["problems"]
    for word in words:
        assert word in problem["what"]
    assert remedy in problem["remedy"]


def test_everything_broken_names_the_first_first(ascend: AscendHost, capsys: pytest.CaptureFixture[str]) -> None:
    for break_it in (no_package, no_cann, no_nodes, bad_visible_devices):
        break_it(ascend)
    _, found = report(capsys)
    shown = [problem["what"] for problem in found["problems"]]
    firsts = ("the package torch-npu", "CANN is not", "no Ascend device node", "ASCEND_RT_VISIBLE_DEVICES")
    assert len(shown) == len(firsts)
    assert all(text.startswith(first) for text, first in zip(shown, firsts, strict=True))
