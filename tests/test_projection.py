"""Projections: step times by hand, sources of the interval, errors, published trainings."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.__main__ import main
from harness.analysis.chips import Chip, match_chips
from harness.analysis.projection.assumptions import Assumptions, Range
from harness.analysis.projection.links import all_gather_seconds, all_reduce_seconds
from harness.analysis.projection.model import Estimate, Speed, project, to_dict
from harness.analysis.projection.plan import Plan
from harness.analysis.projection.published import check_all, load_trainings, plan_of
from harness.errors import ConfigError, UserError
from harness.records.peak import COLLECTIVES, PEAK_FILE
from harness.records.record import write_record
from harness.report.projection_table import print_projection
from tests.comparisons import EMULATED
from tests.records import A100, CPU, TELEMETRY, make_record, make_records, merged, write_runs

HOUR = 3600.0
# Without chance: every range is a point, and every cost that can be 0 is 0.
FIXED = Assumptions(
    efficiency_of_products=Range(0.5, 0.5, 0.5),
    product_share_of_peak=Range(1, 1, 1),
    link_efficiency=Range(1, 1, 1),
    latency_seconds=Range(0, 0, 0),
    hiding_compute=Range(0, 0, 0),
    checkpoint_seconds=Range(1e-12, 1e-12, 1e-12),
    device_hours_between_interruptions=Range(1e30, 1e30, 1e30),
    restart_hours=Range(0, 0, 0),
    power_share=Range(1, 1, 1),
)


@pytest.fixture
def chip() -> Chip:
    """An A100 with round numbers: 100 TFLOP/s, 100 GB/s to its neighbors, 400 W."""
    [a100] = match_chips("A100 80GB SXM")
    return replace(
        a100,
        peak_flops={"bf16": 200e12},
        measured_flops={},
        link_bytes_per_second=100e9,
        memory_bytes_per_second=1e30,
        power_watts=400.0,
    )


def plan(**changes: Any) -> Plan:
    """Of 1e9 parameters, 1e10 FLOPs a token, 1e3 steps of 1e6 tokens."""
    values: dict[str, Any] = {
        "parameters": 1e9, "tokens": 1e9, "flops_per_token": 1e10, "devices": 1, "seq_len": 1000,
        "global_batch_size": 1000, "layers": 10, "width": 1000,
    }  # fmt: skip
    return Plan(**{**values, **changes})


def step(chip: Chip, assumed: Assumptions = FIXED, **changes: Any) -> float:
    return project(plan(**changes), chip, assumed=assumed).step_seconds.median


def ends(found: Estimate) -> tuple[float, float]:
    """Return the ends of an interval that must be there."""
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


class TestByHand:
    def test_one_device(self, chip: Chip) -> None:
        # 1e10 x 1e6 FLOPs at 1e14: 100 s a step, 1e5 s in all.
        found = project(plan(), chip, assumed=FIXED)
        assert found.step_seconds.median == pytest.approx(100)
        assert found.days.median == pytest.approx(1e5 / 86_400)
        assert found.device_hours.median == pytest.approx(1e5 / HOUR)
        assert found.mfu is not None
        assert found.mfu.median == pytest.approx(0.5)
        assert found.megawatt_hours is not None
        assert found.megawatt_hours.median == pytest.approx(1e5 / HOUR * 400 / 1e6)
        assert found.shares["compute"] == pytest.approx(1)

    def test_recomputation_costs_a_third(self, chip: Chip) -> None:
        assert step(chip, recompute=True) == pytest.approx(400 / 3)

    def test_data_parallel_gradients_within_a_node(self, chip: Chip) -> None:
        # 25 s of compute; 2 x 3/4 x 2e9 bytes at 100 GB/s: 0.03 s.
        assert step(chip, devices=4) == pytest.approx(25 + 0.03)

    def test_data_parallel_gradients_across_nodes(self, chip: Chip) -> None:
        # 2 x 9/10 x 2e9 bytes at 10 GB/s: 0.36 s; and all of it hidden if it can be.
        assert step(chip, devices=10, network_bytes_per_second=10e9) == pytest.approx(10 + 0.36)
        hidden = replace(FIXED, hiding_compute=Range(0.5, 0.5, 0.5))
        assert step(chip, hidden, devices=10, network_bytes_per_second=10e9) == pytest.approx(10)

    def test_sharded_weights_are_gathered_once_where_they_fit(self, chip: Chip) -> None:
        # A gather and a scatter of 3/4 x 2e9 bytes: as much as the all-reduce.
        assert step(chip, devices=4, sharded=True) == pytest.approx(25 + 0.03)
        # 4 GB of weights and gradients in 5 GB are too much: two gathers and a scatter for each of 250 micro-batches.
        small = replace(chip, memory_bytes=5e9)
        assert step(small, devices=4, sharded=True) == pytest.approx(25 + 750 * 0.015)
        assert step(small, devices=4, sharded=True, micro_batch_size=125) == pytest.approx(25 + 6 * 0.015)

    def test_numbers_of_four_bytes_take_twice_as_long_on_links(self, chip: Chip) -> None:
        chip = replace(chip, peak_flops={"fp32": 200e12, "fp8": 200e12}, lacks=())
        assert step(chip, devices=4, precision="fp32") == pytest.approx(25 + 0.06)
        assert step(chip, devices=4, sharded=True, precision="fp32") == pytest.approx(25 + 0.06)
        assert step(chip, devices=2, tensor=2, precision="fp32") == pytest.approx(50 + 84_000 * 2e-5)
        assert step(chip, devices=4, precision="fp8") == pytest.approx(25 + 0.03)

    def test_tensor_parallel_activations(self, chip: Chip) -> None:
        # 1000 micro-batches x (10 layers x 8 + 4 around them) gathers or scatters of 1/2 x 2e6 bytes: 1e-5 s each.
        assert step(chip, devices=2, tensor=2) == pytest.approx(50 + 84_000 * 1e-5)
        assert step(chip, devices=2, tensor=2, recompute=True) == pytest.approx(200 / 3 + 124_000 * 1e-5)

    def test_pipeline_bubble(self, chip: Chip) -> None:
        # Two stages, four micro-batches of 250, whose 5e8 bytes go there and back in 5 ms each: a quarter on top;
        # halved by two virtual stages, which send twice as often.
        assert step(chip, devices=2, pipeline=2, micro_batch_size=250) == pytest.approx(50.04 * 1.25)
        assert step(chip, devices=2, pipeline=2, micro_batch_size=250, virtual_stages=2) == pytest.approx(50.08 * 1.125)
        # The bubble holds the tensor-parallel collectives too: 4 micro-batches x (5 layers x 8 + 2) of 5e8 bytes.
        both = step(chip, devices=4, tensor=2, pipeline=2, micro_batch_size=250)
        assert both == pytest.approx((25 + 168 * 2.5e8 / 1e11 + 0.02) * 1.25)

    def test_tensor_parallelism_across_nodes_goes_over_the_network(self, chip: Chip) -> None:
        within = step(chip, devices=8, tensor=8)
        across = step(chip, devices=8, tensor=8, devices_per_node=4, network_bytes_per_second=10e9)
        assert across - 12.5 == pytest.approx(10 * (within - 12.5))

    def test_the_optimizer_goes_through_memory(self, chip: Chip) -> None:
        assert step(replace(chip, memory_bytes_per_second=2.8e9)) == pytest.approx(100 + 10)

    def test_interruptions_and_checkpoints(self, chip: Chip) -> None:
        # One interruption in 100 hours, checkpoints of 0.02 h: every sqrt(2 x 0.02 x 100) = 2 h by Young.
        assumed = replace(FIXED, checkpoint_seconds=Range(72, 72, 72), restart_hours=Range(1, 1, 1),
                          device_hours_between_interruptions=Range(100, 100, 100))  # fmt: skip
        found = project(plan(), chip, assumed=assumed)
        hours = 1e5 / HOUR
        assert found.uninterrupted_days.median == pytest.approx(hours / 24)
        assert found.days.median == pytest.approx(hours * 1.01 / (1 - 2 / 100) / 24)

    def test_collectives(self) -> None:
        ones = np.ones(1)
        # Ring: 2 x 7/8 x 8 bytes at 1 byte/s and 14 hops of a second; the tree has six hops, and sends all twice.
        assert all_reduce_seconds(8, 8.0, ones, 0 * ones) == pytest.approx(14)
        assert all_reduce_seconds(8, 8.0, ones, ones) == pytest.approx(22)
        assert all_reduce_seconds(2, 8.0, ones, ones) == pytest.approx(10)
        assert all_gather_seconds(8, 8.0, ones, ones) == pytest.approx(7 + 3)
        assert all_reduce_seconds(1, 8.0, ones, ones) == pytest.approx(0)
        assert all_gather_seconds(1, 8.0, ones, ones) == pytest.approx(0)


class TestInterval:
    def test_comes_from_the_spread_of_records(self, chip: Chip) -> None:
        flops = (0.9e14, 1.0e14, 1.1e14)
        found = project(plan(), chip, Speed(flops, "three runs"), FIXED)
        # Student's t of two degrees of freedom, and the mean of three is not certain itself.
        spread = float(np.std(np.log(flops), ddof=1)) * math.sqrt(1 + 1 / 3)
        assert found.step_seconds.median == pytest.approx(100 / np.exp(np.mean(np.log(flops))) * 1e14, rel=0.01)
        assert math.log(ends(found.step_seconds)[1] / ends(found.step_seconds)[0]) == pytest.approx(
            2 * 2.920 * spread, rel=0.05
        )
        assert found.source == "three runs"

    def test_is_wider_the_fewer_runs_it_comes_from(self, chip: Chip) -> None:
        def width(*flops: float) -> float:
            low, high = ends(project(plan(), chip, Speed(flops, "runs"), FIXED).days)
            assert np.isfinite(high)
            return high / low

        assert width(0.99e14, 1.01e14) > 1.1 > width(*[0.99e14, 1.01e14] * 5) > 1.03
        assert project(plan(), chip, Speed((1e14,), "run"), FIXED).days.low is None
        # Two runs of which one was disturbed say next to nothing, and no number overflows.
        assert width(1e10, 1e14) > 1e6

    def test_is_a_point_if_nothing_is_left_to_chance(self, chip: Chip) -> None:
        found = project(plan(devices=4), chip, assumed=FIXED).days
        assert found.low == pytest.approx(found.high)

    @pytest.mark.parametrize("name", [name for name in vars(Assumptions()) if name != "power_share"])
    def test_every_assumption_takes_part(self, name: str, chip: Chip) -> None:
        base = replace(Assumptions(), **{key: Range(value.likely, value.likely, value.likely)
                                         for key, value in vars(Assumptions()).items()})  # fmt: skip
        wide = replace(base, **{name: getattr(Assumptions(), name)})
        work = plan(devices=2048, tensor=8, global_batch_size=2048, sharded=True, network_bytes_per_second=1e9)
        chip = replace(chip, memory_bytes=1e9)
        found = project(work, chip, assumed=wide).days
        assert ends(found)[0] < ends(found)[1] * 0.9999

    def test_is_the_same_every_time(self, chip: Chip) -> None:
        assert project(plan(), chip) == project(plan(), chip)

    def test_measured_power_takes_the_place_of_the_sheet_s(self, chip: Chip) -> None:
        speed = Speed((1e14,), "a run", watts=100.0)
        found = project(plan(), chip, speed, FIXED)
        assert found.megawatt_hours is not None
        assert found.megawatt_hours.median == pytest.approx(1e5 / HOUR * 100 / 1e6)
        assert {"power_share", "efficiency_of_products"} <= found.unused

    def test_no_draw_is_faster_than_the_chip(self, chip: Chip) -> None:
        """Two runs that vary much still give no MFU above one."""
        found = project(plan(), chip, Speed((0.5e14, 1.9e14), "two runs"), FIXED)
        assert found.mfu is not None
        assert found.mfu.high == pytest.approx(1)
        assert ends(found.mfu)[0] < 0.1

    def test_power_of_the_sheet_is_a_range_of_devices(self, chip: Chip) -> None:
        assumed = replace(FIXED, power_share=Range(0.5, 0.75, 1.0))
        found = project(plan(devices=4), chip, assumed=assumed)
        assert found.megawatt_hours is not None
        hours = found.device_hours.median
        assert found.megawatt_hours.median == pytest.approx(hours * 0.75 * 400 / 1e6, rel=0.01)
        assert ends(found.megawatt_hours)[0] < 0.9 * found.megawatt_hours.median


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"devices": 12, "tensor": 8}, "devices: found 12, expected a multiple of tensor x pipeline = 8"),
            ({"devices": 3}, "global-batch-size: found 1000, expected a multiple of 3"),
            ({"devices": 2, "tensor": 2, "layers": None}, "need the model's layers and width"),
            ({"devices": 8, "tensor": 8, "heads": 12}, "found 8, expected a divisor of the model's 12 heads"),
            ({"layers": 96, "width": 12288}, "found 1 B, expected about 174 B or more for 96 layers of width 12288"),
            ({"devices": 20, "pipeline": 20}, "no more than the model's 10 layers"),
            ({"devices": 4, "pipeline": 4, "virtual_stages": 3}, "found 4 stages of 3, expected no more than"),
        ],
    )
    def test_layouts_that_cannot_be(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(UserError, match=said):
            plan(**changes)

    def test_what_does_not_fit(self, chip: Chip) -> None:
        with pytest.raises(UserError, match=r"memory: .* take 160 GB a device.* use --sharded, or"):
            project(plan(parameters=1e10), chip)
        with pytest.raises(UserError, match=r"take 800 GB a device.* use more --tensor or --pipeline"):
            project(plan(parameters=1e11, devices=2, sharded=True), chip)
        project(plan(parameters=1e10, devices=4, sharded=True), chip)

    def test_more_devices_than_can_be_kept_running(self, chip: Chip) -> None:
        with pytest.raises(UserError, match="make no progress between interruptions"):
            project(plan(devices=1_048_576, global_batch_size=1_048_576), chip)

    def test_precisions_and_peaks_that_there_are_not(self, chip: Chip) -> None:
        [old] = match_chips("910A")
        with pytest.raises(UserError, match="has no bf16 arithmetic"):
            project(plan(), old)
        with pytest.raises(UserError, match=r"no fp16 peak of .* is known; give --records"):
            project(plan(precision="fp16"), chip)
        with pytest.raises(UserError, match="no link bandwidth"):
            project(plan(devices=8), replace(chip, link_bytes_per_second=None))

    def test_a_bridge_between_two_cards_does_not_join_eight(self, chip: Chip) -> None:
        bridged = replace(chip, link_devices=2)
        with pytest.raises(UserError, match="joins 2 devices, but the plan has 8 in a node; give --link-gb-per-s"):
            project(plan(devices=40), bridged)
        project(plan(devices=40, devices_per_node=2), bridged)
        project(plan(devices=2, tensor=2), bridged)


class TestPublishedTrainings:
    def test_are_within_the_interval_or_the_miss_is_explained(self) -> None:
        checks = check_all()
        assert len(checks) >= 10
        assert sum(check.hit for check in checks) >= len(checks) / 2
        for check in checks:
            assert check.hit or check.training.miss, check.training.name

    def test_of_those_without_a_reason_to_miss_the_error_is_below_a_fifth(self) -> None:
        errors = {check.training.name: check.error for check in check_all() if check.training.miss is None}
        assert len(errors) >= 7
        assert max(abs(error) for error in errors.values()) < 0.2

    @pytest.mark.parametrize("training", load_trainings(), ids=lambda training: training.name)
    def test_stated_hours_are_possible(self, training: Any) -> None:
        assert 0.1 < training.mfu < 0.65

    def test_a_malformed_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "t.yaml").write_text("trainings: {x: {chip: A100}}")
        with pytest.raises(ConfigError, match=r"t\.yaml: is no valid list of trainings"):
            load_trainings(tmp_path / "t.yaml")

    def test_a_named_model_has_its_own_size(self) -> None:
        found = plan_of(tokens=1.0, seq_len=1, model="llama2-7b", devices=1, global_batch_size=1)
        assert found.parameters == pytest.approx(6_738_415_616, rel=0.001)
        found = plan_of(tokens=1.0, seq_len=1, model="gpt2-124m", devices=1, global_batch_size=1)
        assert found.parameters == pytest.approx(124_439_808, rel=0.01)


class TestCommand:
    PLAN = ("--model", "gpt2-124m", "--tokens", "1B", "--devices", "1", "--seq-len", "1024")

    def test_from_the_catalogue_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["project", *self.PLAN, "--chip", "A100 80GB SXM"]) == 0
        printed = capsys.readouterr().out
        assert "catalogue (grade A), not measured" in printed
        assert "efficiency of products 0.45 to 0.8" in " ".join(printed.split())

    def test_from_records(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_runs(tmp_path / "a", make_records(5, on=A100, step_seconds=0.25))
        assert main(["project", *self.PLAN, "--records", str(folder), "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        # 32 x 1024 tokens in 0.25 s: 1e9 take 7,629 s, less the checkpoints on top.
        assert found["uninterrupted_days"]["median"] == pytest.approx(1e9 / (32 * 1024 / 0.25) / 86_400, rel=0.01)
        assert found["source"] == "5 measured runs on NVIDIA A100-SXM4-80GB"

    def test_json_has_all_that_it_was_estimated_from(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["project", *self.PLAN, "--chip", "A100 80GB SXM", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["plan"]["tokens"] == 1e9
        assert found["plan"]["precision"] == "bf16"
        assert found["chip"] == {"name": "NVIDIA A100 80GB SXM4", "source": "NVIDIA A100 data sheet", "grade": "A"}
        assert found["assumptions"]["restart_hours"] == {"low": 0.05, "likely": 0.1, "high": 0.5}
        assert "product_share_of_peak" not in found["assumptions"]
        assert found["cautions"] == []

    def test_a_run_that_recomputed_is_not_slowed_down_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = {"model": {"activation_checkpointing": True}}
        folder = write_runs(tmp_path / "a", make_records(5, on=A100, step_seconds=0.25, config=config))
        argv = ["project", *self.PLAN, "--records", str(folder), "--format", "json"]
        assert main([*argv, "--recompute"]) == 0
        again = json.loads(capsys.readouterr().out)["step_seconds"]["median"]
        assert main(argv) == 0
        once = json.loads(capsys.readouterr().out)["step_seconds"]["median"]
        # The plan's 1024 sequences are 32 of the runs' steps.
        assert again == pytest.approx(32 * 0.25, rel=0.01)
        assert once == pytest.approx(again * 3 / 4, rel=0.01)

    def test_assumptions_can_be_one_s_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["project", *self.PLAN, "--chip", "A100 80GB SXM", "--format", "json"]
        assert main([*argv, "--assume", "device-hours-between-interruptions=1000", "--assume",
                     "link-efficiency=0.5:0.5:0.8"]) == 0  # fmt: skip
        often = json.loads(capsys.readouterr().out)
        assert often["assumptions"]["device_hours_between_interruptions"] == {"low": 1000, "likely": 1000, "high": 1000}
        assert often["assumptions"]["link_efficiency"] == {"low": 0.5, "likely": 0.5, "high": 0.8}
        assert main(argv) == 0
        seldom = json.loads(capsys.readouterr().out)
        assert often["shares"]["interruptions"] > 3 * seldom["shares"]["interruptions"]

    def test_activations_that_do_not_fit_are_cautioned_about(self, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["project", "--model", "llama2-7b", "--tokens", "1B", "--devices", "8", "--chip", "A100 80GB SXM",
                 "--sharded", "--global-batch-size", "8", "--format", "json"]  # fmt: skip
        assert main([*argv, "--seq-len", "4096"]) == 0
        assert json.loads(capsys.readouterr().out)["cautions"] == []
        # 34 bytes x 65,536 tokens x 4096 x 32 layers.
        assert main([*argv, "--seq-len", "65536"]) == 0
        [caution] = json.loads(capsys.readouterr().out)["cautions"]
        assert caution.startswith("activations need about 292 GB a device")
        assert main([*argv, "--seq-len", "65536", "--recompute"]) == 0
        assert json.loads(capsys.readouterr().out)["cautions"] == []

    def test_published_trainings_under_other_assumptions(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["project", "--check", "--assume", "efficiency-of-products=0.3", "--format", "json"]) == 0
        assert all(check["error"] > 0.2 for check in json.loads(capsys.readouterr().out)
                   if check["name"].startswith("llama2"))  # fmt: skip

    def test_a_link_that_is_given_takes_the_place_of_a_bridge(self, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["project", "--model", "gpt2-124m", "--tokens", "1B", "--devices", "8", "--chip", "NVIDIA H100 PCIe"]
        assert main(argv) == 2
        assert "joins 2 devices" in capsys.readouterr().err
        assert main([*argv, "--link-gb-per-s", "25"]) == 0

    def test_records_of_another_size_are_cautioned_about(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = write_runs(tmp_path / "a", make_records(2, on=A100, model={"parameters": 124_439_808}))
        argv = ["project", "--model", "llama2-7b", "--tokens", "1T", "--devices", "64", "--sharded"]
        assert main([*argv, "--records", str(folder)]) == 0
        assert "the runs trained 0.124 B parameters, the plan has 6.74 B" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize(
        ("on", "changes", "said"),
        [
            (EMULATED, {}, "its device is emulated and has no speed"),
            (A100, {"world_size": 8}, "it ran on 8 devices"),
            (A100, {"step_seconds": 0.01}, "above the chip's peak of 312 TFLOP/s: one is wrong"),
            # 0.09 s are 290 TFLOP/s of the model, and with activations computed twice 387 of the device.
            (A100, {"step_seconds": 0.09, "config": {"model": {"activation_checkpointing": True}}}, "above the chip's"),
            (A100, {"status": "oom", "error": "no memory", "finished_steps": 40}, "the run ended oom"),
        ],
    )
    def test_records_without_a_device_s_own_speed_are_refused(
        self, on: Any, changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = write_runs(tmp_path / "a", [make_record(on=on, **changes)])
        assert main(["project", *self.PLAN, "--records", str(folder)]) == 2
        assert said in capsys.readouterr().err

    def test_records_of_two_chips_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = merged(CPU, {"device": {"name": "another"}})
        folder = write_runs(tmp_path / "a", [make_record(on=A100), make_record(on=other, process=2)])
        assert main(["project", *self.PLAN, "--records", str(folder)]) == 2
        assert "it ran on another, others on NVIDIA A100-SXM4-80GB" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "changes",
        [
            {"config": {"workload": {"learning_rate": 1e-3}}},
            {"config": {"workload": {"micro_batch_size": 4}}},
            {"config": {"track": {"name": "tuned", "compile": "model"}}},
        ],
        ids=str,
    )
    def test_records_of_different_work_are_no_repeats(
        self, changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = write_runs(tmp_path / "a", [make_record(on=A100), make_record(on=A100, process=2, **changes)])
        assert main(["project", *self.PLAN, "--records", str(folder)]) == 2
        assert "its work differs from that of" in capsys.readouterr().err

    def test_a_precision_that_was_not_run_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_runs(tmp_path / "a", make_records(2, on=A100))
        assert main(["project", *self.PLAN, "--records", str(folder), "--precision", "fp16"]) == 2
        assert "it ran in bf16, expected fp16" in capsys.readouterr().err

    def test_watts_of_the_records_count(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_runs(tmp_path / "a", make_records(2, on=merged(A100, {"telemetry": TELEMETRY})))
        assert main(["project", *self.PLAN, "--records", str(folder), "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        expected = found["device_hours"]["median"] * TELEMETRY["mean_power_watts"] / 1e6
        assert found["megawatt_hours"]["median"] == pytest.approx(expected)

    def test_runs_beside_other_processes_are_cautioned_about(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        busy = merged(A100, {"contention": {"other_processes_cpu_fraction": 0.68}})
        folder = write_runs(tmp_path / "a", make_records(2, on=busy))
        assert main(["project", *self.PLAN, "--records", str(folder)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "caution the runs: other processes used up to 68% of the CPU cores in 2 of 2 runs" in printed

    def test_a_copy_of_a_record_is_no_repeat(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_runs(tmp_path / "a", make_records(1, on=A100))
        shutil.copytree(folder, folder / "copy")
        assert main(["project", *self.PLAN, "--records", str(folder)]) == 2
        assert "the same record was given twice" in capsys.readouterr().err

    def test_a_slice_of_a_chip_has_not_its_peak(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sliced = merged(A100, {"backend": {"peak_lookup_key": None}})
        folder = write_runs(tmp_path / "a", make_records(2, on=sliced))
        assert main(["project", *self.PLAN, "--records", str(folder), "--seq-len", "2048", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["mfu"] is None
        assert any("memory bandwidth of NVIDIA A100-SXM4-80GB is unknown" in caution for caution in found["cautions"])
        assert "the runs had sequences of 1024 tokens, the plan has 2048" in found["cautions"]

    def test_measured_collectives_take_the_place_of_assumed_links(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        collective = {"latency_seconds": 0.25, "sweep": [{"bytes": 1 << power, "seconds": 0.25} for power in (10, 30)]}
        run = make_record(on=A100)
        peak = {"schema_version": 3, "kind": "peak", "finished_at": "2026", "world_size": 8,
                **{key: run[key] for key in ("backend", "device", "effective_settings")},
                "collectives": {"asynchronous": True, "ranks_per_host": 8, "missing_reasons": {},
                                **dict.fromkeys(COLLECTIVES, collective)}}  # fmt: skip
        path = write_record(tmp_path, peak, PEAK_FILE)
        argv = ["project", "--model", "gpt2-124m", "--tokens", "1B", "--devices", "8", "--seq-len", "1024", "--chip",
                "A100 80GB SXM", "--assume", "hiding-compute=0", "--format", "json", "--peak"]  # fmt: skip
        assert main([*argv, str(path)]) == 0
        found = json.loads(capsys.readouterr().out)
        # One all-reduce of the gradients a step.
        seconds = found["shares"]["data-parallel collectives"] * found["days"]["median"] * 86_400
        assert seconds / (1e9 / (1024 * 1024)) == pytest.approx(0.25, rel=0.02)
        assert not {"link_efficiency", "latency_seconds"} & found["assumptions"].keys()
        assert main([*argv, str(path), "--assume", "link-efficiency=0.5"]) == 2
        assert "link-efficiency: not used" in capsys.readouterr().err
        argv[argv.index("A100 80GB SXM")] = "H200"
        assert main([*argv, str(path)]) == 2
        assert "was measured on NVIDIA A100-SXM4-80GB, expected NVIDIA H200" in capsys.readouterr().err
        assert main([*argv, str(tmp_path / "nowhere")]) == 2
        assert "nowhere: found no peak record" in capsys.readouterr().err

    def test_check_prints_every_training(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["project", "--check"]) == 0
        printed = capsys.readouterr().out
        assert all(training.name in printed for training in load_trainings())
        assert main(["project", "--check", "--format", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == len(load_trainings())

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["--tokens", "1B", "--devices", "1", "--chip", "H200"], "either --model or --parameters"),
            (["--model", "tiny", "--devices", "1", "--chip", "H200"], "--tokens is missing"),
            (["--model", "tiny", "--tokens", "1B", "--devices", "1"], "either --records or --chip"),
            (
                ["--parameters", "7B", "--layers", "32", "--tokens", "1B", "--devices", "1", "--chip", "H200"],
                "both or none",
            ),
            (["--model", "tiny", "--tokens", "1B", "--devices", "1", "--chip", "H20O"], "did you mean 'H20'?"),
            (
                ["--model", "tiny", "--virtual-stages", "2", "--tokens", "1B", "--devices", "1", "--chip", "H200"],
                "found no --pipeline",
            ),
            (
                [
                    "--model",
                    "tiny",
                    "--tokens",
                    "1B",
                    "--devices",
                    "1",
                    "--chip",
                    "A100 80GB SXM",
                    "--assume",
                    "product-share-of-peak=0.5",
                ],
                "product-share-of-peak: not used",
            ),
            (
                ["--model", "llama2-7b", "--tensor", "5", "--tokens", "1B", "--devices", "5", "--chip", "H200"],
                "tensor: found 5, expected a divisor of the model's 32 heads",
            ),
            (["--check", "--assume", "restart-hours=1", "--assume", "restart-hours=2"], "restart-hours: found twice"),
            (["--check", "--assume", "restart-hors=1"], "did you mean restart-hours?"),
            (["--check", "--assume", "luck=1"], "assume: found 'luck', expected one of: efficiency-of-products, "),
            (["--check", "--assume", "power-share=1.5"], "found '1.5', expected a number between 0 and 1"),
            (["--check", "--assume", "checkpoint-seconds=0"], "found '0', expected a number above 0"),
            (["--check", "--assume", "restart-hours=3:2:1"], "found '3:2:1', expected a number of at least 0"),
            (["--check", "--assume", "restart-hours=x:1"], "found 'x:1'"),
            (["--check", "--assume", "restart-hours=inf"], "found 'inf'"),
            (["--check", "--assume", "product-share-of-peak=0.5"], "product-share-of-peak: not used"),
            (["--check", "--devices", "8"], "--devices: found beside --check"),
            (["--check", "--records", "runs"], "--records: found beside --check"),
            (["--model", "x", "--tokens", "1B", "--devices", "1", "--chip", "H200"], "--model: found 'x'"),
            (
                ["--model", "tiny", "--tokens", "1B", "--devices", "1", "--chip", "910B"],
                "the name matches Ascend 910B1",
            ),
            (["--model", "tiny", "--tokens", "7Q", "--devices", "1", "--chip", "H200"], "found '7Q'"),
            (["--model", "tiny", "--tokens", "7B", "--devices", "1.5", "--chip", "H200"], "found '1.5'"),
        ],
    )
    def test_mistakes_are_one_line(self, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["project", *argv]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.parametrize(("flops", "known"), [((1e14,), False), ((1e14, 1.01e14), True)])
def test_one_measured_run_has_no_interval(
    flops: tuple[float, ...], known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (chip,) = match_chips("A100 80GB SXM")
    plan = Plan(1e9, 1e12, 6e9, 8, 2048, 512)
    found = project(plan, chip, Speed(flops, "measured", None))
    for each in (found.days, found.device_hours, found.mfu, found.step_seconds, found.megawatt_hours):
        assert each is not None
        assert (each.low is not None, each.high is not None) == (known, known)
    assert (to_dict(found)["days"]["low"] is not None) is known
    print_projection(plan, chip, found, Assumptions(), [])
    said = capsys.readouterr().out
    assert (" to " in next(line for line in said.splitlines() if line.startswith("days"))) is known
    assert ("Medians without intervals" in said) is not known
