"""A backend from outside this tree is one Python file, one YAML and one entry-point line, and it trains.

A broken one breaks only itself.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Harness
from tests.tiny import TINY

SUBCLASS = """\
from harness.backends.cpu import CpuBackend


class Zpu(CpuBackend):
    \"\"\"The CPU under another name.\"\"\"

    name = "{name}"
"""
BROKEN = 'raise OSError("libzpu.so.1: cannot open [/opt/zpu/lib]")\n'


class PlugIn:
    """A package as pip would install it, in a folder on PYTHONPATH."""

    def __init__(self, folder: Path, name: str, source: str, *, init: str = "", kind: str = "Zpu") -> None:
        self.name = name
        self.env = {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
        package = folder / f"harness_{name}"
        (package / "configs" / "backend").mkdir(parents=True)
        (package / "__init__.py").write_text(init)
        (package / "device.py").write_text(source.format(name=name))
        (package / "configs" / "__init__.py").touch()
        (package / "configs" / "backend" / f"{name}.yaml").write_text(f"name: {name}\n")
        info = folder / f"harness_{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: harness-{name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[harness.backends]\n{name} = harness_{name}.device:{kind}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line of an error."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert done.stdout == ""
    return line


def examined(harness: Harness, plug_in: PlugIn) -> dict[str, Any]:
    """Return doctor's report on the plug-in."""
    done = harness("doctor", plug_in.name, "--json", env=plug_in.env)
    assert "Traceback" not in done.stderr
    [report] = json.loads(done.stdout)["backends"]
    assert done.returncode == (0 if report["ready"] else 3)
    return report


class TestAWorkingOne:
    def test_trains_and_does_the_same_work(self, site: Path, harness: Harness, tmp_path: Path) -> None:
        plug_in = PlugIn(site, "zpu", SUBCLASS)
        for name in ("zpu", "cpu"):
            done = harness(*TINY, f"backend={name}", f"out={name}", env=plug_in.env)
            assert done.returncode == 0, done.stderr
        own, reference = record(tmp_path / "zpu"), record(tmp_path / "cpu")
        assert own["backend"]["name"] == own["device"]["kind"] == own["config"]["backend"]["name"] == "zpu"
        assert reference["backend"]["name"] == "cpu"
        for key in ("workload_id", "digests", "losses"):
            assert own[key] == reference[key], key
        assert [point["loss"] for point in own["eval"]["points"]] == [
            point["loss"] for point in reference["eval"]["points"]
        ]

    def test_is_offered_everywhere(self, site: Path, harness: Harness) -> None:
        plug_in = PlugIn(site, "zpu", SUBCLASS)
        listed = harness("--help", env=plug_in.env)
        assert "backend=cpu | cuda | hpu | mps | npu | xpu | zpu" in listed.stdout
        composed = harness("backend=zpu", "--cfg", env=plug_in.env)
        assert composed.returncode == 0, composed.stderr
        assert "name: zpu" in composed.stdout
        assert "cpu, cuda, hpu, mps, npu, xpu, zpu" in one_line(harness("backend=tpu", env=plug_in.env), 2)
        assert examined(harness, plug_in)["ready"] is True
        assert "zpu" not in harness("--help").stdout, "it is gone with its package"

    def test_without_a_yaml_file_is_reached_by_its_name(self, site: Path, harness: Harness) -> None:
        plug_in = PlugIn(site, "zpu", SUBCLASS)
        (site / "harness_zpu" / "configs" / "backend" / "zpu.yaml").unlink()
        composed = harness("backend.name=zpu", "--cfg", env=plug_in.env)
        assert composed.returncode == 0, composed.stderr
        assert "name: zpu" in composed.stdout

    def test_may_lack_the_packaging_of_its_configs_folder(self, site: Path, harness: Harness) -> None:
        """A plug-in may lack the __init__.py that makes its folder of YAML a package."""
        plug_in = PlugIn(site, "zpu", SUBCLASS)
        (site / "harness_zpu" / "configs" / "__init__.py").unlink()
        composed = harness("backend=zpu", "--cfg", env=plug_in.env)
        assert composed.returncode == 0, composed.stderr

    def test_its_own_failures_are_told_in_its_words(self, site: Path, harness: Harness, tmp_path: Path) -> None:
        source = SUBCLASS + (
            "\n"
            "    def synchronize(self):\n"
            '        raise RuntimeError("ZPU fell over")\n'
            "\n"
            "    def classify_error(self, error):\n"
            "        from harness.backends.base import Failure\n"
            "\n"
            '        return Failure("device_fault", str(error), "pick it up again")\n'
        )
        plug_in = PlugIn(site, "zpu", source)
        done = harness(*TINY, "backend=zpu", "out=run", env=plug_in.env)
        assert done.returncode == 5
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "ZPU fell over; pick it up again" in line
        assert record(tmp_path / "run")["status"] == "device_fault"

    def test_that_is_missing_something_says_so_before_torch_is_loaded(self, site: Path, harness: Harness) -> None:
        source = SUBCLASS + (
            "\n"
            "    def preflight(self):\n"
            "        import sys\n"
            "        from harness.backends.base import Problem\n"
            "\n"
            '        return [Problem(f"no ZPU, torch loaded: {{\'torch\' in sys.modules}}", "buy one")]\n'
        )
        plug_in = PlugIn(site, "zpu", source)
        line = one_line(harness(*TINY, "backend=zpu", "out=run", env=plug_in.env, fresh=True), 3)
        assert "backend zpu is not available here: no ZPU, torch loaded: False. First remedy: buy one" in line


# Faults of a plug-in, as (code of its package, code of its module, name of its class).
WAYS_TO_BE_BROKEN = {
    "its module raises": ("", BROKEN, "Zpu"),
    "its package raises": (BROKEN, SUBCLASS, "Zpu"),
    "its class is not there": ("", SUBCLASS, "Ypu"),
    "its class is no backend": ("", "class Zpu: pass\n", "Zpu"),
    "its class lacks members": (
        "",
        "from harness.backends.base import Backend\n\n\nclass Zpu(Backend):\n    name = 'zpu'\n",
        "Zpu",
    ),
}
REASONS = {
    "its module raises": "libzpu.so.1: cannot open [/opt/zpu/lib]",
    "its package raises": "libzpu.so.1: cannot open [/opt/zpu/lib]",
    "its class is not there": "Ypu",
    "its class is no backend": "Zpu",
    "its class lacks members": "synchronize",
}


@pytest.mark.parametrize("way", WAYS_TO_BE_BROKEN)
class TestABrokenOne:
    @pytest.fixture
    def plug_in(self, way: str, site: Path) -> PlugIn:
        init, source, kind = WAYS_TO_BE_BROKEN[way]
        return PlugIn(site, "zpu", source, init=init, kind=kind)

    def test_does_not_break_the_others(self, way: str, plug_in: PlugIn, harness: Harness) -> None:
        for words in (("--help",), ("backend=cpu", "--cfg")):
            done = harness(*words, env=plug_in.env)
            assert done.returncode == 0, f"{words}: {done.stderr}"
            assert "Traceback" not in done.stderr

    def test_is_shown_by_doctor_with_the_reason(self, way: str, plug_in: PlugIn, harness: Harness) -> None:
        report = examined(harness, plug_in)
        assert report["ready"] is False
        [problem] = report["problems"]
        assert REASONS[way] in problem["what"]
        assert problem["remedy"].strip()

    def test_is_shown_in_doctors_table_as_well(self, way: str, plug_in: PlugIn, harness: Harness) -> None:
        """A reason may contain brackets, which rich would take for markup."""
        done = harness("doctor", "zpu", env=plug_in.env)
        assert done.returncode == 3, done.stderr
        assert done.stderr == ""
        text = "".join(line.split("│")[3].strip() for line in done.stdout.splitlines() if line.startswith("│"))
        assert REASONS[way].replace(" ", "") in text.replace(" ", "")

    @pytest.mark.parametrize("word", ["backend=zpu", "backend.name=zpu"])
    def test_is_refused_in_one_line_when_named(
        self, way: str, word: str, plug_in: PlugIn, harness: Harness, tmp_path: Path
    ) -> None:
        line = one_line(harness(*TINY, word, "out=run", env=plug_in.env), 3)
        assert "backend zpu" in line
        assert REASONS[way] in line
        assert not (tmp_path / "run").exists()


class TestTheCpuBesideABrokenOne:
    @pytest.fixture
    def plug_in(self, site: Path) -> PlugIn:
        return PlugIn(site, "zpu", SUBCLASS, init=BROKEN)

    def test_trains(self, plug_in: PlugIn, harness: Harness, tmp_path: Path) -> None:
        done = harness(*TINY, "backend=cpu", "out=run", env=plug_in.env)
        assert done.returncode == 0, done.stderr
        assert record(tmp_path / "run")["status"] == "ok"

    def test_is_ready(self, plug_in: PlugIn, harness: Harness) -> None:
        done = harness("doctor", "--json", env=plug_in.env)
        assert done.returncode == 0, done.stderr
        states = {report["name"]: report["ready"] for report in json.loads(done.stdout)["backends"]}
        assert states["cpu"] is True
        assert states["zpu"] is False


class TestOneThatMisbehavesWhenAsked:
    """Doctor queries every backend; one that hangs must not hide the reports of the others."""

    @pytest.mark.parametrize("member", ["preflight", "versions"])
    def test_in_doctors_own_process(self, member: str, site: Path, harness: Harness) -> None:
        source = SUBCLASS + f'\n    def {member}(self):\n        raise OSError("no such register")\n'
        report = examined(harness, PlugIn(site, "zpu", source))
        assert report["ready"] is False
        assert "no such register" in report["problems"][0]["what"]

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ('raise RuntimeError("the device is on fire")', "the device is on fire"),
            ("import os; os._exit(7)", "code 7"),
            ("import os; os.kill(os.getpid(), 11)", "code -11"),
            ('print("a warning of the vendor"); super().load()', None),
        ],
        ids=["raises", "exits", "crashes", "prints"],
    )
    def test_in_a_process_of_its_own(self, body: str, reason: str | None, site: Path, harness: Harness) -> None:
        source = SUBCLASS + f"\n    def load(self):\n        {body}\n"
        report = examined(harness, PlugIn(site, "zpu", source))
        assert report["ready"] is (reason is None)
        if reason is not None:
            [problem] = report["problems"]
            assert reason in problem["what"]
            assert "harness.commands.doctor zpu" in problem["remedy"]

    def test_a_description_of_the_promised_keys_is_enough(self, site: Path, harness: Harness) -> None:
        """base.py promises kind, name, index and memory_bytes; doctor's table may use no more."""
        source = SUBCLASS + (
            "\n"
            "    def describe(self):\n"
            '        return {{"kind": "zpu", "name": "ZPU 1", "index": 0, "memory_bytes": None}}\n'
        )
        done = harness("doctor", "zpu", env=PlugIn(site, "zpu", source).env)
        assert done.returncode == 0, done.stderr
        assert "ZPU 1" in done.stdout


def test_a_name_that_two_packages_claim_is_refused(site: Path, harness: Harness, tmp_path: Path) -> None:
    """One would run under the other's name, and the record would not show it."""
    PlugIn(site, "zpu", SUBCLASS)
    other = tmp_path / "other"
    other.mkdir()
    plug_in = PlugIn(other, "ypu", SUBCLASS)
    (other / "harness_ypu-0.1.dist-info" / "entry_points.txt").write_text(
        "[harness.backends]\nzpu = harness_ypu.device:Zpu\n"
    )
    plug_in.env["PYTHONPATH"] = f"{site}{os.pathsep}{plug_in.env['PYTHONPATH']}"
    line = one_line(harness(*TINY, "backend=zpu", "out=run", env=plug_in.env), 3)
    assert "harness_zpu.device" in line
    assert "harness_ypu.device" in line
    assert harness("backend=cpu", "--cfg", env=plug_in.env).returncode == 0
