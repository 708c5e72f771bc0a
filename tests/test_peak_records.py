"""Which record of a device's peak is a run's: the newest of the same device and software, and only a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RecordError
from harness.records.peak import PEAK_FILE, find_peak, read_peak
from harness.records.record import write_record

RUN: dict[str, Any] = {
    "backend": {"name": "cpu", "versions": {"torch": "2.13.0+cpu"}},
    "device": {"name": "AMD EPYC"},
    "effective_settings": {"threads": 2},
}


def write_peak(folder: Path, name: str, ended: str = "2026-11-25T10:00:00+00:00", flops: float = 1e12,
               **changes: Any) -> Path:  # fmt: skip
    peak = {
        "schema_version": 3,
        "kind": "peak",
        "finished_at": ended,
        **RUN,
        "matrix_products": {"fp32": {"best_flops": flops}, "bf16": None},
        "memory": {"best_bytes_per_second": 3e10},
        **changes,
    }
    (folder / name).mkdir(parents=True)
    return write_record(folder / name, peak, PEAK_FILE)


def test_the_newest(tmp_path: Path) -> None:
    write_peak(tmp_path, "b", "2026-11-25T12:00:00+00:00", 2e12)
    write_peak(tmp_path, "a", "2026-11-25T11:00:00+00:00", 1e12)
    found = find_peak(tmp_path, RUN)
    assert found is not None
    assert found["flops"] == {"fp32": 2e12, "bf16": None}
    assert found["path"] == str(tmp_path / "b" / PEAK_FILE)
    assert found["content_sha256"] == json.loads((tmp_path / "b" / PEAK_FILE).read_text())["content_sha256"]


@pytest.mark.parametrize(
    "change",
    [
        {"device": {"name": "AMD EPYC 2"}},
        {"backend": {"name": "cpu", "versions": {"torch": "2.12.0"}}},
        {"backend": {"name": "other", "versions": {"torch": "2.13.0+cpu"}}},
        {"effective_settings": {"threads": 1}},
    ],
    ids=str,
)
def test_of_another_device_or_software_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    write_peak(tmp_path, "a", **change)
    assert find_peak(tmp_path, RUN) is None


def test_no_folder_no_peak(tmp_path: Path) -> None:
    assert find_peak(tmp_path / "nowhere", RUN) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:50], "cannot be read"),
        (lambda text: text.replace('"peak"', '"run"'), "not a peak record"),
        (lambda text: text.replace('"schema_version": 3', '"schema_version": 99'), "newer than this harness reads"),
        (lambda text: text.replace("1000000000000.0", "1.0"), "was changed after it was written"),
        (lambda text: "[]", "not a peak record"),
    ],
)
def test_a_damaged_one_is_named(change: Any, said: str, tmp_path: Path) -> None:
    path = write_peak(tmp_path, "a")
    path.write_text(change(path.read_text()))
    with pytest.raises(RecordError, match=said) as refused:
        read_peak(path)
    assert str(path) in str(refused.value)
    with pytest.raises(RecordError):
        find_peak(tmp_path, RUN)
