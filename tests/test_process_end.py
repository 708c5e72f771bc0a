"""How a process ends: normally, or, after collectives, without the interpreter's finalization."""

from __future__ import annotations

import os
import threading

import pytest

from harness import __main__ as entry
from harness import process_end


@pytest.fixture
def after_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise SystemExit(f"at once, {code}")

    monkeypatch.setattr(process_end, "_skips_finalization", threading.Event())
    monkeypatch.setattr(os, "_exit", end)
    process_end.skip_finalization()


def ends(monkeypatch: pytest.MonkeyPatch, code: int | Exception) -> object:
    def main() -> int:
        if isinstance(code, Exception):
            raise code
        return code

    monkeypatch.setattr(entry, "main", main)
    with pytest.raises(SystemExit) as ended:
        entry.run_as_process()
    return ended.value.code


def test_a_process_without_collectives_is_finalized(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends(monkeypatch, 5) == 5


@pytest.mark.usefixtures("after_collectives")
def test_after_collectives_nothing_is_finalized(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends(monkeypatch, 5) == "at once, 5"


@pytest.mark.usefixtures("after_collectives")
def test_nor_after_a_bug_whose_traceback_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(monkeypatch, ZeroDivisionError("a bug")) == "at once, 1"
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err
