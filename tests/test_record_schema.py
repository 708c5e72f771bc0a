"""Foreign records: readers accept them or end with a one-line error, whatever their content."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.errors import ExitCode
from harness.records.schema import schema_problem
from tests.records import A100, TELEMETRY, make_record, merged, sealed, write_runs

STRANGE = (None, "x\x1b[31m\u202e", -1, 0, 10**400, float("nan"), {}, [])
PROJECT = ("--model", "gpt2-124m", "--tokens", "1B", "--devices", "1", "--precision", "bf16")


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key path of a record; of a list, its first element."""
    if path:
        yield path
    if isinstance(part, dict):
        for key, value in part.items():
            yield from places(value, (*path, key))
    elif isinstance(part, list) and part:
        yield from places(part[0], (*path, 0))


def replaced(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    part: Any = record
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return record


def full_record(**changes: Any) -> dict[str, Any]:
    small = {"workload": {"steps": 40, "eval_every": 20}}
    return make_record(on=merged(A100, {"telemetry": TELEMETRY}), config=small, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(full_record()))
def test_no_value_at_any_place_ends_in_a_traceback(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = write_runs(tmp_path / "reference", [full_record()])
    odd = tmp_path / "odd.json"
    record = full_record(process=2)
    for path in places({part: record[part]}):
        for value in STRANGE:
            try:
                odd.write_text(json.dumps(sealed(replaced(record, path, value))))
            except ValueError:
                # No checksum can be had of NaN: the harness itself would not write it.
                odd.write_text(json.dumps(replaced(record, path, value)))
            for words in (["compare", str(reference), str(odd)], ["project", *PROJECT, "--records", str(odd)]):
                code = main(words)
                captured = capsys.readouterr()
                assert code in set(ExitCode), (path, value)
                assert (code == ExitCode.USAGE) == (len(captured.err.splitlines()) == 1), (path, value)
                assert "\x1b" not in captured.err + captured.out, (path, value)


def test_a_whole_record_has_nothing_to_complain_of() -> None:
    assert schema_problem(full_record()) is None
    assert schema_problem({**full_record(), "of a later harness": 1}) is None


def test_what_is_wrong_is_said_with_what_is_expected() -> None:
    complaint = schema_problem(merged(full_record(), {"telemetry": {"mean_power_watts": "hot"}}))
    assert complaint == (
        'has no usable telemetry.mean_power_watts: found "hot", expected a number or null; it was not written by this '
        "harness, or was edited"
    )


def test_half_a_record_of_deep_nesting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text("[" * 100_000)
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("number", ["1e308", "NaN", "Infinity", "9" * 400])
def test_numbers_beyond_all_measure_are_told(number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(full_record()).replace('"setup_seconds": ', f'"setup_seconds": {number}, "was": ', 1)
    (tmp_path / "record.json").write_text(text)
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "record.json: holds " in capsys.readouterr().err
