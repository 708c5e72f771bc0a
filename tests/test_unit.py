"""Unequal systems: what a step takes of devices, hosts, energy or money."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from harness.analysis.unit import Unit
from harness.analysis.verdict import Comparison, compare, holds, to_dict
from harness.commands import compare as command
from harness.errors import UserError
from harness.records.record import write_record
from harness.report.content import notes
from harness.report.markdown import render_markdown
from harness.report.page import render_page
from tests.conftest import PROJECT
from tests.records import A100, ASCEND, TELEMETRY, make_record, make_records, make_side, merged

MESH = {"parallel": {"name": "ddp"}}


def ranks(count: int, hosts: int) -> list[dict[str, Any]]:
    return [{"rank": rank, "host": f"h{rank * hosts // count}"} for rank in range(count)]


def judged(unit: Unit | None, seconds: float = 0.25, processes: int = 5, **changes: Any) -> Comparison:
    """Compare one device that takes 0.25 s a step with two that take `seconds`."""
    reference = make_side("one", make_records(processes, on=A100))
    other = [make_record(on=ASCEND, process=10 + number, step_seconds=seconds, world_size=2, **changes)
             for number in range(processes)]  # fmt: skip
    return compare([reference, make_side("two", other)], unit=unit)


class TestDevices:
    def test_other_sizes_are_not_comparable_in_time_alone(self) -> None:
        [pair] = judged(None).pairs
        assert pair.verdict == "not comparable"
        assert "world size: 1 against 2" in pair.gates[-1].details

    def test_the_same_step_time_on_twice_the_devices_takes_twice_the_device_time(self) -> None:
        [pair] = judged(Unit("device")).pairs
        assert pair.verdict == "more"
        assert pair.headline is not None
        assert pair.headline.ratio.estimate == pytest.approx(2.0, rel=0.01)
        assert pair.summary.startswith("'two' takes more device time than 'one': device time a step ratio ")
        assert "(5 and 5 processes; 1 and 2 devices)" in pair.summary

    def test_half_the_step_time_on_twice_the_devices_is_the_same_device_time(self) -> None:
        found = judged(Unit("device"), seconds=0.125)
        assert found.pairs[0].verdict == "equivalent"
        assert found.pairs[0].summary.startswith("'two' takes the same device time as 'one' within 5 %")
        assert holds(found.pairs[0], "equivalent")
        # The step times are still there, beside what the verdict is about.
        assert [quantity.key for quantity in found.pairs[0].quantities][:2] == ["device", "step_time"]
        assert found.pairs[0].quantities[1].ratio.estimate == pytest.approx(0.5, rel=0.01)

    def test_two_dies_are_one_package(self) -> None:
        reference = make_side("one", make_records(5, on=A100))
        die = merged(ASCEND, {"device": {"name": "Ascend910_9392", "memory_bytes": 64 * 10**9},
                              "backend": {"peak_lookup_key": "Ascend910_9392"}})  # fmt: skip
        other = [make_record(on=die, process=10 + number, world_size=2) for number in range(5)]
        [pair] = compare([reference, make_side("two", other)], unit=Unit("package")).pairs
        assert pair.verdict == "equivalent"
        assert "'two' takes the same package time as 'one'" in pair.summary
        assert "1 and 2 devices in 1 and 1 packages" in pair.summary

    def test_a_chip_that_the_catalogue_does_not_know_has_no_packages(self) -> None:
        unknown = merged(A100, {"device": {"name": "X1"}, "backend": {"peak_lookup_key": "X1"}})
        sides = [make_side(name, make_records(2, on=on)) for name, on in (("a", A100), ("b", unknown))]
        with pytest.raises(UserError, match="the catalogue of chips does not know 'X1', nor how many devices make one"):
            compare(sides, unit=Unit("package"))

    def test_repeats_of_one_side_have_one_size(self) -> None:
        one = make_side("one", make_records(2, on=A100))
        mixed = [make_record(on=ASCEND, process=10 + size, world_size=size) for size in (2, 4)]
        [pair] = compare([one, make_side("two", mixed)], unit=Unit("device")).pairs
        assert pair.verdict == "not comparable"
        assert "world size: 2 against 4" in pair.gates[-1].details

    def test_a_single_run_keeps_the_interval_of_its_step_times(self) -> None:
        [pair] = judged(Unit("device"), processes=1).pairs
        step_time = pair.quantities[1].ratio
        assert pair.headline is not None
        found = pair.headline.ratio
        assert found.single_run
        assert found.low is not None
        assert step_time.low is not None
        assert found.low / found.estimate == pytest.approx(step_time.low / step_time.estimate)
        assert pair.verdict == "more"


class TestHosts:
    def test_hosts_are_those_of_the_ranks(self) -> None:
        [pair] = judged(Unit("node"), parallel={"ranks": ranks(2, 2)}).pairs
        assert pair.headline is not None
        assert pair.headline.ratio.estimate == pytest.approx(2.0, rel=0.01)
        assert "1 and 2 hosts" in pair.summary
        [pair] = judged(Unit("node"), parallel={"ranks": ranks(2, 1)}).pairs
        assert pair.verdict == "equivalent"

    def test_a_record_that_does_not_know_its_hosts(self) -> None:
        with pytest.raises(UserError, match=r"--per node: .*: lists no host of its ranks; use --per device"):
            judged(Unit("node"))


class TestEnergy:
    def test_energy_is_that_of_the_records_with_its_scope(self) -> None:
        reference = make_side("one", make_records(3, on=A100, telemetry={**TELEMETRY, "joules_per_token": 0.002}))
        other = make_side(
            "two", [make_record(on=ASCEND, process=10 + number, telemetry=TELEMETRY) for number in range(3)]
        )
        [pair] = compare([reference, other], unit=Unit("joule")).pairs
        assert pair.headline is not None
        assert pair.headline.ratio.estimate == pytest.approx(0.5)
        assert pair.verdict == "less"
        assert "takes less energy than" in pair.summary
        assert "energy of board and board" in pair.summary

    def test_a_record_without_energy(self) -> None:
        with pytest.raises(UserError, match=r"--per joule: .*: has no energy: "):
            judged(Unit("joule"))


class TestCost:
    def test_prices_and_their_date_are_in_the_sentence(self) -> None:
        [pair] = judged(Unit("cost", (4.0, 1.0), "2026-11-30")).pairs
        assert pair.headline is not None
        assert pair.headline.ratio.estimate == pytest.approx(0.5, rel=0.01)
        assert pair.headline.reference[0] == pytest.approx(0.25 * 4 / 3600, rel=0.05)
        assert "1 and 2 devices, 4 and 1 a device-hour (2026-11-30)" in pair.summary
        assert pair.verdict == "less"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (
                ["--per", "cost"],
                "--per cost: found 0 prices, dated '', expected --price P above 0 for each",
            ),
            (["--per", "cost", "--price", "1", "--price", "2"], "found 2 prices, dated ''"),
            (["--per", "cost", "--price", "1", "--price", "-2", "--price-date", "x"], "found 2 prices"),
            (["--per", "device", "--price", "1"], "--price, --price-date: found without --per cost"),
            (["--per", "device", "--claim", "rehearsal"], "--per: found with --claim, which is about step times"),
            (
                ["--per", "cost", "--price", "1", "--price", "2", "--price-date", "x", "--claim", "rehearsal"],
                "--per: found with --claim, which is about step times",
            ),
            (["--label", "x", "--label", "x"], "--label: found 'x' twice, expected another name for each side"),
            (["--per", "die"], "invalid choice: 'die'"),
        ],
    )
    def test_bad_usage_is_one_line(self, argv: list[str], message: str, tmp_path: Any) -> None:
        for number, name in enumerate(("a", "b")):
            (tmp_path / name).mkdir()
            write_record(tmp_path / name, make_record(process=number))
        with pytest.raises(UserError) as caught:
            command.main([str(tmp_path / "a"), str(tmp_path / "b"), *argv])
        assert message in str(caught.value)


def test_with_one_process_a_side_three_would_decide() -> None:
    """Whatever the step times say, whose ratio is another one."""
    [pair] = judged(Unit("device"), seconds=0.125, processes=1).pairs
    assert pair.verdict == "inconclusive"
    assert "About 3 repeats a side would probably decide." in pair.summary


def test_reports_say_what_the_ratio_is_of() -> None:
    found = judged(Unit("device"))
    schema = json.loads((PROJECT / "harness" / "schemas" / "verdict.schema.json").read_text())
    content = to_dict(found)
    jsonschema.validate(content, schema)
    assert any(line.startswith("The same device time a step: a ratio from") for line in notes(found.pairs[0], 0.05))
    assert content["per"] == {"unit": "device", "prices": [], "price_date": None}
    assert content["pairs"][0]["quantities"][0]["name"] == "device"
    page, markdown = render_page(found, []), render_markdown(found, [])
    for text in (page, markdown):
        assert "Device time a step, as a ratio to the reference" in text
        assert "takes more device time than" in text
