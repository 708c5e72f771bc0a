"""JUnit XML of --expect, for comparisons, suites, histories and audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.__main__ import main
from harness.analysis.audit.summary import audit
from harness.errors import ExitCode
from harness.report.junit import TestCase, write_junit
from tests.records import A100, ASCEND, make_record, write_runs
from tests.test_audit import PUBLISHED, read


def cases(file: Path) -> dict[str, bool]:
    """Return which cases of a file passed, after a check of its counts."""
    root = ElementTree.parse(file).getroot()
    [suite] = root.findall("testsuite")
    found = {case.attrib["name"]: case.find("failure") is None for case in suite.findall("testcase")}
    for element in (root, suite):
        assert int(element.attrib["tests"]) == len(found)
        assert int(element.attrib["failures"]) == sum(not passed for passed in found.values())
    return found


@pytest.fixture
def sides(tmp_path: Path) -> dict[str, Path]:
    speeds = {"a100": (A100, 0.25, 0), "same": (A100, 0.25, 10), "ascend": (ASCEND, 0.3, 20)}
    return {
        name: write_runs(
            tmp_path / name,
            [make_record(on=on, process=first + number, step_seconds=seconds) for number in range(5)],
        )
        for name, (on, seconds, first) in speeds.items()
    }


def test_a_comparison_has_a_case_for_each_side(sides: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "out" / "junit.xml"
    names = [f"--label={name}" for name in sides]
    command = ["compare", *map(str, sides.values()), *names, "--expect", "not-slower", "--junit", str(file)]
    assert main(command) == 1
    assert cases(file) == {"same against a100": True, "ascend against a100": False}
    failure = ElementTree.parse(file).find(".//failure")
    assert failure is not None
    assert failure.attrib["message"] == "expected not-slower of ascend: not shown (slower)"
    assert "slower" in (failure.text or "")
    assert "finished: all 10 runs finished" in (failure.text or "")
    # A second run of CI replaces the first.
    assert main([*command[:2], *command[2:3], "--expect", "not-slower", "--junit", str(file)]) == ExitCode.OK
    assert len(cases(file)) == 1


def test_a_history_has_a_case_for_each_series(tmp_path: Path) -> None:
    seconds = [0.25] * 10 + [0.3] * 10
    for name, on, times in (("a", A100, seconds), ("b", ASCEND, [0.3] * 20)):
        write_runs(tmp_path / name, [make_record(on=on, process=number, step_seconds=time)
                                     for number, time in enumerate(times)])  # fmt: skip
    file = tmp_path / "junit.xml"
    assert main(["history", str(tmp_path), "--expect", "no-regression", "--junit", str(file)]) == 1
    found = cases(file)
    assert sorted(found.values()) == [False, True]
    [slower] = [name for name, shown in found.items() if not shown]
    assert "A100" in slower


def test_an_audit_has_a_case_for_each_row(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    assert main(["audit", str(PUBLISHED), "--expect", "sound", "--junit", str(file)]) == 1
    audited = audit(read(PUBLISHED))
    assert cases(file) == {row.row.name: row.sound for row in audited.rows}


def test_text_of_strangers_is_valid_xml(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    write_junit(file, "compare", [TestCase("a\x00<&\ud800", shown=False, message="\x1b[31m]]>", details="\x0b\nb")])
    assert list(cases(file).values()) == [False]


def test_an_earlier_result_does_not_stand_for_this_one(sides: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "junit.xml"
    file.write_text("<testsuites/>")
    folders = [str(sides["a100"]), str(tmp_path / "nothing")]
    assert main(["compare", *folders, "--expect", "not-slower", "--junit", str(file)]) == ExitCode.USAGE
    assert not file.exists()
    assert main(["compare", *folders, "--expect", "not-slower", "--junit", str(tmp_path)]) == ExitCode.USAGE
    assert f"--junit: {tmp_path} cannot be replaced" in capsys.readouterr().err
    # A slip must not cost a record.
    record = sides["a100"] / "1" / "record.json"
    content = record.read_bytes()
    assert main(["compare", *folders, "--expect", "not-slower", "--junit", str(record)]) == ExitCode.USAGE
    assert "holds something else than JUnit XML" in capsys.readouterr().err
    assert record.read_bytes() == content


def test_junit_needs_an_expectation(sides: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = list(map(str, sides.values()))
    assert main(["compare", *folders, "--junit", str(tmp_path / "x.xml")]) == ExitCode.USAGE
    assert "--junit: found no --expect" in capsys.readouterr().err
