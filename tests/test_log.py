"""Log lines for people and for machines: levels, ranks, faults, libraries' warnings, and readers that go away."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from typing import Any

import pytest

from harness import log

pytestmark = pytest.mark.usefixtures("own_log")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_for_people_the_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(["workload.steps=5"], {})
    log.info("repeat 1 of 2", seconds=5)
    log.warning("the run goes on")
    log.error("out: no such folder", exit_code=2)
    assert capsys.readouterr().err == "repeat 1 of 2\nwarning: the run goes on\nerror: out: no such folder\n"
    assert not log.is_json()


def test_for_machines_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(["log=json"], {"RANK": "3", "WORLD_SIZE": "8"})
    log.info("training", step=4, loss=float("nan"), path=log)
    log.error("two\nlines", exit_code=5)
    first, second = lines(capsys)
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "rank": 3, "message": "training", "step": 4, "loss": "nan", "path": str(log)}
    assert (second["level"], second["message"], second["exit_code"]) == ("error", "two lines", 5)


@pytest.mark.parametrize(("level", "heard"), [("info", 3), ("warning", 2), ("error", 1), ("loud", 3)])
def test_levels(level: str, heard: int, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(["log=json", f"log_level={level}"], {})
    log.info("one")
    log.warning("two")
    log.error("three")
    assert len(lines(capsys)) == heard
    assert log.shows("info") is (heard == 3)


def test_the_last_word_counts_and_a_wrong_one_is_left_to_the_settings_check() -> None:
    log.set_up(["log=json", "log=human"], {})
    assert not log.is_json()
    log.set_up(["log=xml"], {})
    assert not log.is_json()


def test_what_libraries_say_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    # As in a run: the tests make every warning an error.
    warnings.simplefilter("default")
    log.set_up(["log=json"], {})
    logging.getLogger("some.library").warning("a\nthing of %s", "note")
    warnings.warn("old call", DeprecationWarning, stacklevel=1)
    found = lines(capsys)
    assert (found[0]["logger"], found[0]["message"]) == ("some.library", "a thing of note")
    assert "old call" in found[1]["message"]


def test_libraries_that_write_lines_of_their_own_form_are_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("own.form")
    library.handlers, library.propagate = [logging.StreamHandler()], False
    log.set_up(["log=json"], {})
    log.adopt_libraries()
    library.warning("slow path")
    [line] = lines(capsys)
    assert (line["logger"], line["message"]) == ("own.form", "slow path")


def test_a_library_says_no_more_than_log_level_allows(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("own.level")
    library.handlers, library.propagate = [logging.StreamHandler()], False
    library.setLevel(logging.DEBUG)
    log.set_up(["log=json"], {})
    log.adopt_libraries()
    library.debug("every detail")
    assert lines(capsys) == []


def test_a_library_that_keeps_silent_stays_silent(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("null.handler")
    library.handlers, library.propagate = [logging.NullHandler()], False
    log.set_up(["log=json"], {})
    log.adopt_libraries()
    library.warning("for nobody")
    assert lines(capsys) == []


def test_a_library_whose_line_cannot_be_formatted_ends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.set_up(["log=json"], {})
    logging.getLogger("some.library").warning("no place for it", "this")  # noqa: PLE1205
    assert lines(capsys) == []


def test_a_thread_that_fails_is_one_line_too() -> None:
    code = (
        "import threading; from harness import log; log.set_up(['log=json'], {}); "
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["message"] == "ZeroDivisionError: division by zero"


def test_a_fault_of_our_own_is_one_line_with_its_traceback() -> None:
    code = "from harness import log; log.set_up(['log=json'], {}); raise KeyError('lost')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert line["message"] == "KeyError: 'lost'"
    assert "Traceback" in line["traceback"]


def test_a_reader_that_has_gone_away_ends_the_lines_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    log.set_up(["log=json"], {})
    monkeypatch.setattr(sys, "stderr", Closed())
    log.info("one")
    log.error("two")


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, None),
        ({"RANK": "2"}, None),
        ({"RANK": "2", "WORLD_SIZE": "4"}, 2),
        ({"RANK": "x", "WORLD_SIZE": "4"}, None),
    ],
)
def test_rank(variables: dict[str, str], rank: int | None) -> None:
    assert log.rank(variables) == rank
