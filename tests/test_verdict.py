"""Verdicts: the gates, the verdict and summary after them, cautions, and exit codes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis import verdict
from harness.analysis.gates import plausible
from harness.analysis.run_group import RunGroup
from harness.analysis.utilization import utilization
from harness.analysis.verdict import Pair, compare, exit_code, holds
from tests.records import A100, ASCEND, CPU, make_record, make_records, make_side, merged, sealed

Change = Callable[[dict[str, Any]], None]


def side(label: str = "other", count: int = 5, **arguments: Any) -> RunGroup:
    # Other processes than the reference's, or the two sides would be the same numbers.
    return make_side(label, [make_record(**{"process": 100 + number, **arguments}) for number in range(count)])


def reference(**arguments: Any) -> RunGroup:
    return make_side("reference", make_records(5, **arguments))


def judge(other: RunGroup, first: RunGroup | None = None, margin: float = 0.05) -> Pair:
    return compare([first or reference(), other], margin).pairs[0]


def changed(change: Change, **arguments: Any) -> RunGroup:
    records = [make_record(**{"process": 100 + number, **arguments}) for number in range(5)]
    for record in records:
        change(record)
    return make_side("other", [sealed(record) for record in records])


def sketch(found: dict[str, Any], difference: float) -> None:
    """Move a gradient of norm 1 by about `difference`."""
    values = np.frombuffer(base64.b64decode(found["projections"]), dtype="<f4")
    moved = values + difference * np.resize([1, -1], len(values)).astype("<f4")
    found["projections"] = base64.b64encode(moved.astype("<f4").tobytes()).decode()


def scale(values: dict[str, float], factor: float) -> None:
    values.update({name: factor * value for name, value in values.items()})


def failed_gate(pair: Pair) -> str:
    [name] = [gate.name for gate in pair.gates if gate.passed is False]
    return name


class TestWords:
    @pytest.mark.parametrize(
        ("step_seconds", "process_noise", "word"),
        [
            (0.250, 0.002, verdict.EQUIVALENT),
            (0.300, 0.002, verdict.SLOWER),
            (0.200, 0.002, verdict.FASTER),
            (0.255, 0.100, verdict.INCONCLUSIVE),
        ],
    )
    def test_of_speed(self, step_seconds: float, process_noise: float, word: str) -> None:
        pair = judge(
            side(step_seconds=step_seconds, process_noise=process_noise), reference(process_noise=process_noise)
        )
        assert pair.verdict == word
        assert pair.headline is not None
        assert word in pair.summary or word == verdict.EQUIVALENT

    def test_slower_says_by_how_much_and_against_whom(self) -> None:
        sentence = judge(side(step_seconds=0.3)).summary
        assert sentence.startswith("'other' is slower than 'reference': step time ratio 1.")
        assert "95 % interval" in sentence
        assert "5 and 5 processes" in sentence

    def test_a_measurable_difference_inside_the_margin_is_both(self) -> None:
        pair = judge(side(step_seconds=0.2575, process_noise=0.001), reference(process_noise=0.001))
        assert pair.verdict == verdict.EQUIVALENT
        assert "though measurably slower" in pair.summary

    def test_inconclusive_says_how_many_more(self) -> None:
        pair = judge(side(process_noise=0.04), reference(process_noise=0.04))
        assert pair.verdict == verdict.INCONCLUSIVE
        assert "repeats a side would probably decide" in pair.summary

    def test_one_repeat_is_marked_and_never_equivalent(self) -> None:
        same = judge(side(count=1), make_side("reference", make_records(1)))
        assert same.verdict == verdict.INCONCLUSIVE
        assert "cannot estimate run-to-run variance" in same.summary
        twice = judge(side(count=1, step_seconds=0.5))
        assert twice.verdict == verdict.SLOWER
        assert "cannot estimate run-to-run variance" in twice.summary

    @pytest.mark.parametrize("expectation", ["faster", "not-slower", "equivalent"])
    def test_one_process_a_side_on_a_busy_host_shows_nothing(self, expectation: str) -> None:
        busy: dict[str, Any] = {"contention": {"other_processes_cpu_fraction": 0.7}}
        fast, alone = side(count=1, step_seconds=0.1), make_side("reference", [make_record()])
        assert judge(fast, alone).verdict == verdict.FASTER
        for other, first in ((side(count=1, step_seconds=0.1, **busy), alone),
                             (fast, make_side("reference", [make_record(**busy)]))):  # fmt: skip
            pair = judge(other, first)
            assert pair.verdict == verdict.INCONCLUSIVE
            assert "One process a side shows nothing with shared host: run 3 or more a side." in pair.summary
            assert not holds(pair, expectation)
        assert judge(side(step_seconds=0.1, **busy)).verdict == verdict.FASTER

    def test_the_margin_is_the_users(self) -> None:
        slower = side(step_seconds=0.27)
        assert judge(slower, margin=0.05).verdict == verdict.SLOWER
        assert judge(slower, margin=0.15).verdict == verdict.EQUIVALENT

    def test_more_than_two_sides_are_each_judged_against_the_first(self) -> None:
        sides = [reference(), side("same"), side("slow", step_seconds=0.4)]
        assert [pair.verdict for pair in compare(sides).pairs] == [verdict.EQUIVALENT, verdict.SLOWER]

    def test_two_devices(self) -> None:
        pair = judge(side(on=ASCEND, step_seconds=0.26), reference(on=A100, step_seconds=0.25))
        assert pair.verdict == verdict.EQUIVALENT


class TestFinished:
    @pytest.mark.parametrize("status", ["oom", "diverged", "interrupted", "device_fault", "failed"])
    def test_one_failed_run_is_enough(self, status: str) -> None:
        records = [make_record(process=100 + number) for number in range(4)]
        records.append(make_record(process=104, status=status, error="because", finished_steps=40))
        pair = judge(make_side("other", records))
        assert pair.verdict == verdict.FAILED
        assert f"{status}: because" in pair.gates[-1].details[0]

    def test_a_fallback_on_the_host_is_no_run_of_the_device(self) -> None:
        pair = judge(side(effective_settings={"cpu_fallback": True}))
        assert pair.verdict == verdict.FAILED


class TestComparable:
    @pytest.mark.parametrize(
        ("changes", "detail"),
        [
            ({"config": {"workload": {"learning_rate": 1e-3}}}, "workload.learning_rate: 0.0006 against 0.001"),
            ({"config": {"seed": 2}}, "seed: 1 against 2"),
            ({"config": {"model": {"num_hidden_layers": 11}}}, "model.num_hidden_layers: 12 against 11"),
            ({"config": {"precision": "fp16"}}, "precision: bf16 against fp16"),
            ({"world_size": 8}, "world size: 1 against 8"),
            ({"digests": {"init": "0" * 64}}, "initial weights: "),
            ({"digests": {"batches": "0" * 64}}, "batches: "),
        ],
        ids=str,
    )
    def test_the_differing_fields_are_named_with_both_values(self, changes: dict[str, Any], detail: str) -> None:
        pair = judge(side(**changes))
        assert pair.verdict == verdict.NOT_COMPARABLE
        assert any(line.startswith(detail) for line in pair.gates[-1].details), pair.gates[-1].details
        assert pair.quantities == ()

    def test_only_settings_that_are_work_are_named(self) -> None:
        pair = judge(side(config={"seed": 2, "backend": {"threads": 4}, "workload": {"micro_batch_size": 4}}))
        text = " ".join(pair.gates[-1].details)
        assert "seed" in text
        assert "threads" not in text
        assert "micro_batch_size" not in text

    def test_an_edited_identity_without_a_differing_setting_is_named_itself(self) -> None:
        pair = judge(side(workload_id="0" * 16))
        assert any(line.startswith("workload_id: ") for line in pair.gates[-1].details)

    def test_repeats_of_two_things_are_no_repeats(self) -> None:
        mixed = [make_record(process=100), make_record(process=101, on=A100)]
        pair = judge(make_side("other", mixed))
        assert pair.verdict == verdict.NOT_COMPARABLE
        assert any("device differs within other" in line for line in pair.gates[-1].details)

    def test_runs_with_two_micro_batch_sizes_are_no_repeats(self) -> None:
        """Two sides may differ in it, since it is not part of the work; the repeats of one side may not."""
        mixed = [make_record(process=100), make_record(process=101)]
        mixed[1]["config"]["workload"]["micro_batch_size"] = 1
        pair = judge(make_side("other", mixed))
        assert pair.verdict == verdict.NOT_COMPARABLE
        assert any("workload.micro_batch_size differs within other" in line for line in pair.gates[-1].details)

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"config": {"workload": {"interval_steps": 5}}}, "workload.interval_steps"),
            ({"config": {"model": {"activation_checkpointing": True}}}, "model.activation_checkpointing"),
            ({"config": {"parallel": {"cpu_offload": True}}}, "parallel.cpu_offload"),
            ({"backend": {"versions": {"driver": "1.0"}}}, "software"),
        ],
        ids=str,
    )
    def test_repeats_under_other_conditions_are_no_repeats(self, change: dict[str, Any], name: str) -> None:
        pair = judge(make_side("other", [make_record(process=100), make_record(process=101, **change)]))
        assert pair.verdict == verdict.NOT_COMPARABLE
        assert any(f"{name} differs within other" in line for line in pair.gates[-1].details), pair.gates[-1].details

    def test_repeats_may_wait_for_each_other_for_other_times(self) -> None:
        records = [make_record(process=100), make_record(process=101, config={"parallel": {"timeout_seconds": 9.0}})]
        assert judge(make_side("other", records)).quantities

    def test_a_target_reached_at_another_step_is_the_same_work(self) -> None:
        quick: dict[str, Any] = {"config": {"target_loss": 4.0}}
        first = make_side("reference", make_records(3, **quick))
        others = [make_record(process=100 + number, **quick) for number in range(3)]
        assert len(first.first["losses"]["train"]) < 200, "the made-up run stops at its target"
        for record in others:  # as on a device that got there one evaluation later
            record["losses"]["train"] += [4.0] * 50
            record["digests"]["batches"] = "1" * 64
        gate = judge(make_side("other", others), first).gates[1]
        assert (gate.name, gate.passed) == ("comparable", True), gate.details
        others[0]["eval"]["points"][-1]["batches"] = "2" * 64
        assert judge(make_side("other", others), first).verdict == verdict.NOT_COMPARABLE


class TestSameComputation:
    @pytest.mark.parametrize(
        ("change", "key"),
        [
            (lambda r: r["losses"]["train"].__setitem__(0, r["losses"]["train"][0] * 1.01), "loss_step"),
            (lambda r: r["losses"].update(train=[x * 0.97 for x in r["losses"]["train"]]), "loss_bias"),
            (lambda r: r["losses"].update(train=[x * 1.03 for x in r["losses"]["train"]]), "loss_curve"),
            (lambda r: r["eval"]["points"][-1].update(loss=r["eval"]["points"][-1]["loss"] * 0.9), "evaluation"),
            (
                lambda r: r["losses"].update(gradient_norm=[x * 2 for x in r["losses"]["gradient_norm"]]),
                "gradient_curve",
            ),
            (lambda r: r["losses"]["train"].__setitem__(100, None), "loss_step"),
            (lambda r: r["losses"].update(train=[None] * len(r["losses"]["train"])), "loss_bias"),
        ],
        ids=["first loss", "too good", "too bad", "evaluation", "gradients", "one not a number", "none a number"],
    )
    def test_is_two_sided_and_covers_every_curve(self, change: Change, key: str) -> None:
        pair = judge(changed(change))
        assert pair.verdict == verdict.DIFFERENT
        assert key in {finding.key for finding in pair.findings if finding.passed is False}

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            (lambda f: sketch(f["fp32"]["activations"][1], 1e-4), "fp32_activations"),
            (lambda f: sketch(f["fp32"]["gradients"]["norm.weight"], 1e-4), "fp32_gradients"),
            (lambda f: f["fp32"]["gradients"].pop("norm.weight"), "fp32_gradients"),
            (lambda f: scale(f["distances_to_fp32"]["gradients"], 2), "number_format"),
            (lambda f: scale(f["distances_to_fp32"]["gradients"], 0.5), "number_format"),
            (lambda f: f["distances_to_fp32"]["gradients"].update({"norm.weight": 0.02}), "number_format_layer"),
            (lambda f: f["distances_to_fp32"]["activations"].__setitem__(2, 0.02), "number_format_layer"),
            (lambda f: [sketch(found, 0.03) for found in f["first_step"]["gradients"].values()], "first_gradients"),
            (lambda f: sketch(f["first_step"]["gradients"]["norm.weight"], 0.1), "first_gradient"),
            (lambda f: f["first_step"]["update"].update(weight_error_ulps=20.0), "update"),
            (lambda f: f["repeated_step"]["update"].update(moment_error=1e-3), "moments"),
            (lambda f: f["repeated_step"].update(loss=f["first_step"]["loss"] * 1.01), "repeated_step"),
            (lambda f: f["repeated_step"].update(gradient_norm=None), "repeated_step"),
            (lambda f: f["repeated_step"].update(distance=0.01), "repeated_step"),
            (lambda f: f["short_training"]["fp32"]["losses"].__setitem__(9, 3.0), "short_training"),
            (lambda f: f["short_training"]["fp32"]["gradient_norms"].__setitem__(9, None), "short_training"),
            (lambda f: f["short_training"]["fp32"]["update"].update(weight_error_ulps=20.0), "update"),
            (lambda f: f["short_training"]["own"]["update"].update(weight_error_ulps=20.0), "update"),
            (lambda f: f["optimizer_steps"].__setitem__(0, 180), "optimizer_steps"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_covers_every_part_of_the_fingerprint(self, change: Change, key: str) -> None:
        pair = judge(changed(lambda r: change(r["fingerprint"])))
        assert pair.verdict == verdict.DIFFERENT
        assert {finding.key for finding in pair.findings if finding.passed is False} >= {key}

    def test_learning_rates_that_are_not_the_schedule_are_another_computation(self) -> None:
        pair = judge(changed(lambda r: r["losses"]["learning_rate"].__setitem__(150, 5e-4)))
        assert [finding.key for finding in pair.findings if finding.passed is False] == ["learning_rate"]
        assert "step 151" in pair.gates[-1].details[0]

    def test_a_record_without_a_fingerprint_is_judged_with_a_caution(self) -> None:
        pair = judge(side(fingerprint=None))
        assert pair.quantities
        assert {finding.passed for finding in pair.findings if finding.key.startswith("fp32")} == {None}
        assert ("no fingerprint", "other") in {(caution.name, caution.side) for caution in pair.cautions}

    @pytest.mark.parametrize("whose", ["reference", "other", "both"])
    @pytest.mark.parametrize(
        ("change", "key"),
        [
            (lambda r: r["fingerprint"]["first_step"].update(update=None), "update"),
            (lambda r: r["fingerprint"]["short_training"]["own"].update(update=None), "update"),
            (lambda r: r["fingerprint"]["repeated_step"].update(update=None), "moments"),
            (lambda r: r["fingerprint"].update(optimizer_steps=None), "optimizer_steps"),
            (lambda r: r["losses"].pop("learning_rate"), "learning_rate"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_without_its_evidence_no_test_is_passed(self, change: Change, key: str, whose: str) -> None:
        """Evidence of the other side is none of this one."""
        bf16 = {"config": {"precision": "bf16"}}
        records = [make_records(2, **bf16), make_records(2, **bf16, loss_noise=2e-5)]
        for number, side_records in enumerate(records):
            if whose in ("both", ("reference", "other")[number]):
                for record in side_records:
                    change(record)
            for process, record in enumerate(side_records):
                record["started_at"] = f"2026-11-25T10:00:{number}{process}+00:00"
        pair = judge(make_side("other", records[1]), make_side("reference", records[0]))
        assert pair.quantities, pair.summary
        [finding] = [finding for finding in pair.findings if finding.key == key]
        assert finding.passed is None
        owners = {caution.side for caution in pair.cautions if caution.name == "untested" and key in caution.text}
        assert owners == ({"reference", "other"} if whose == "both" else {whose})

    def test_evidence_against_one_side_counts_without_that_of_the_other(self) -> None:
        def change(record: dict[str, Any]) -> None:
            record["fingerprint"]["first_step"]["update"] = None
            record["fingerprint"]["repeated_step"]["update"]["weight_error_ulps"] = 20.0

        assert judge(changed(change)).verdict == verdict.DIFFERENT

    def test_limits_of_the_users_own_devices_are_used_and_named(self, tmp_path: Path) -> None:
        file = tmp_path / "own.yaml"
        wide = "{loss_step: {bf16: [1e+4]}, loss_spike: {bf16: 1e+4}, loss_spikes: {bf16: 1e+4}}"
        file.write_text(f"- {{source: mine, noise: {wide}}}\n")
        bad = changed(lambda r: r["losses"]["train"].__setitem__(0, r["losses"]["train"][0] * 1.01))
        assert judge(bad).verdict == verdict.DIFFERENT
        pair = verdict.compare([reference(), bad], calibrations=[file]).pairs[0]
        assert pair.quantities
        assert [caution.text for caution in pair.cautions if caution.name == "wider limits"] == [
            f"limits also from {file}"
        ]

    def test_too_good_is_said_to_be(self) -> None:
        pair = judge(changed(lambda r: r["losses"].update(train=[x * 0.97 for x in r["losses"]["train"]])))
        assert any("too low for the same work" in line for line in pair.gates[-1].details)

    def test_a_single_bad_run_among_good_ones_is_enough(self) -> None:
        records = [make_record(process=100 + number) for number in range(5)]
        records[3]["losses"]["train"] = [loss * 1.05 for loss in records[3]["losses"]["train"]]
        pair = judge(make_side("other", [sealed(record) for record in records]))
        assert pair.verdict == verdict.DIFFERENT
        assert "/4)" in pair.summary

    @pytest.mark.parametrize(
        ("key", "name"),
        [("linear_output_dtypes", "dtype of linear layers"), ("block_output_dtypes", "dtype of the blocks' outputs")],
    )
    def test_another_type_of_arithmetic_is_another_computation(self, key: str, name: str) -> None:
        pair = judge(side(effective_settings={key: ["float16"]}), reference(effective_settings={key: ["bfloat16"]}))
        assert pair.verdict == verdict.DIFFERENT
        assert any(name in line for line in pair.gates[-1].details)

    @pytest.mark.parametrize(
        ("payload", "layout", "micro_batch_size", "different"),
        [
            (1.0e9, 2, 8, False),
            (1.0e9 + 4000, 2, 8, False),
            # In half as many bits, or in every second step.
            (0.5e9, 2, 8, True),
            # Another layout, and another division of the batch, explain it.
            (0.5e9, 4, 8, False),
            (0.5e9, 2, 4, False),
        ],
    )
    def test_another_payload_is_another_computation(
        self, payload: float, layout: int, micro_batch_size: int, different: bool
    ) -> None:
        def parallel(bytes_per_step: float, shard: int) -> dict[str, Any]:
            axes = {"shard": {"payload_bytes_per_step": bytes_per_step / 2, "exposed_communication_seconds": None}}
            return {"layout": {"shard": shard}, "ranks": [{"axes": axes}, {"axes": axes}], "stragglers": []}

        work: dict[str, Any] = {"config": {"workload": {"micro_batch_size": 8}}}
        own: dict[str, Any] = {"config": {"workload": {"micro_batch_size": micro_batch_size}}}
        pair = judge(side(parallel=parallel(payload, layout), **own), reference(parallel=parallel(1.0e9, 2), **work))
        assert (pair.verdict == verdict.DIFFERENT) is different, pair.summary
        if different:
            assert (
                "Payload of a step on the axis shard differs: 1,000,000,000 against 500,000,000 bytes" in pair.summary
            )

    def test_runs_of_zero_length_show_nothing(self) -> None:
        pair = judge(side(finished_steps=0, status="interrupted"))
        assert pair.verdict == verdict.FAILED


class TestPossible:
    def test_more_than_the_catalogued_peak_is_implausible(self) -> None:
        # 32 768 tokens of a 124 M model in 60 ms are 450 TFLOP/s; an A100 has 312.
        pair = judge(side(on=A100, step_seconds=0.06), reference(on=A100, step_seconds=0.25))
        assert pair.verdict == verdict.IMPLAUSIBLE
        assert "above the catalogued bf16 peak" in pair.summary

    def test_more_than_a_measured_peak_is_implausible(self) -> None:
        pair = judge(side(measured_peak={"flops": {"bf16": 1e12}}))
        assert pair.verdict == verdict.IMPLAUSIBLE

    def test_a_chip_under_anothers_name_gives_itself_away(self) -> None:
        pair = judge(side(on=A100, device={"memory_bytes": 151_000_000_000}), reference(on=A100))
        assert pair.verdict == verdict.IMPLAUSIBLE
        assert "151 GB of memory" in pair.summary
        pair = judge(side(on=A100, device={"name": "NVIDIA H100 80GB HBM3"}), reference(on=A100))
        assert pair.verdict == verdict.IMPLAUSIBLE

    def test_a_peak_of_a_busy_host_is_no_bound(self) -> None:
        """An honest run exceeds a peak that was measured beside 78 % of foreign load."""
        low = {"flops": {"bf16": 1e12}, "other_processes_cpu_fraction": 0.78}
        pair = judge(side(measured_peak=low))
        assert pair.verdict != verdict.IMPLAUSIBLE
        [gate] = [gate for gate in pair.gates if "no bound" in gate.summary]
        assert gate.passed
        assert "while other processes used 78% of the CPU cores" in gate.summary
        idle = {**low, "other_processes_cpu_fraction": 0.05}
        assert judge(side(measured_peak=idle)).verdict == verdict.IMPLAUSIBLE

    def test_above_the_matrix_units_and_below_the_label_is_plausible(self) -> None:
        record = make_record(on=ASCEND, step_seconds=1.0, noise=0, process_noise=0)
        used = utilization(record)
        assert used is not None
        for flops, passed in ((360e12, True), (380e12, False)):
            fast = make_record(on=ASCEND, step_seconds=used["achieved_flops"] / flops, noise=0, process_noise=0)
            assert plausible(make_side("b", [fast])).passed is passed

    def test_a_precision_that_the_chip_lacks_is_implausible(self) -> None:
        old = merged(ASCEND, {"device": {"name": "Ascend910A", "memory_bytes": 32_000_000_000},
                              "backend": {"peak_lookup_key": "Ascend910A"}})  # fmt: skip
        assert judge(side(on=old), reference(on=A100)).verdict == verdict.IMPLAUSIBLE

    def test_an_unknown_chip_is_not_checked_and_said_not_to_be(self) -> None:
        pair = judge(side(on=CPU))
        gates = [gate for gate in pair.gates if gate.name == "plausible"]
        assert [gate.passed for gate in gates] == [None, None]
        assert "no peak is known for 'AMD EPYC'" in gates[0].summary

    def test_utilization_is_null_without_a_peak(self) -> None:
        used = utilization(make_record(on=CPU))
        assert used is not None
        assert used["mfu"] is used["mfu_of_measured_peak"] is None
        used = utilization(make_record(on=A100, step_seconds=0.25, measured_peak={"flops": {"bf16": 250e12}}))
        assert used is not None
        assert 0.2 < used["mfu"] < 0.5
        assert used["mfu_of_measured_peak"] == pytest.approx(used["mfu"] * 312 / 250)


class TestMfuAboveOne:
    """Two published speeds: 104 % on an H100 (nanoGPT#464) and 563 % on an unknown chip (Primus#772)."""

    def running(self, flops: float, on: dict[str, Any]) -> dict[str, Any]:
        """Return a record whose device does the given model FLOP/s."""
        record = make_record(on=on, step_seconds=1.0, noise=0, process_noise=0)
        used = utilization(record)
        assert used is not None
        return make_record(on=on, step_seconds=used["achieved_flops"] / flops, noise=0, process_noise=0)

    def test_104_percent_of_an_a100_is_33_percent_of_the_h100_that_it_ran_on(self) -> None:
        name = "NVIDIA H100 80GB HBM3"
        h100 = merged(A100, {"device": {"name": name}, "backend": {"peak_lookup_key": name}})
        used = utilization(self.running(1.04 * 312e12, h100))
        assert used is not None
        assert used["catalogued_peak_flops"] == 989e12
        assert used["mfu"] == pytest.approx(0.328, rel=0.01)

    def test_563_percent_on_an_unknown_chip_is_no_percentage(self) -> None:
        unknown = merged(A100, {"device": {"name": "A Chip 9000"}, "backend": {"peak_lookup_key": "A Chip 9000"}})
        used = utilization(self.running(5.63 * 312e12, unknown))
        assert used is not None
        assert used["catalogued_peak_flops"] is used["mfu"] is None

    @pytest.mark.parametrize("excess", [1.04, 5.63])
    def test_a_speed_above_the_peak_has_none_and_is_implausible(self, excess: float) -> None:
        record = self.running(excess * 312e12, A100)
        used = utilization(record)
        assert used is not None
        assert used["achieved_flops"] == pytest.approx(excess * 312e12, rel=0.01)
        assert used["mfu"] is None
        assert judge(make_side("other", [record]), reference(on=ASCEND)).verdict == verdict.IMPLAUSIBLE

    @pytest.mark.parametrize("excess", [1.04, 5.63])
    def test_nor_of_a_measured_peak(self, excess: float) -> None:
        record = make_record(on=A100, step_seconds=0.25)
        used = utilization(record)
        assert used is not None
        used = utilization({**record, "measured_peak": {"flops": {"bf16": used["achieved_flops"] / excess}}})
        assert used is not None
        assert used["mfu_of_measured_peak"] is None


class TestSound:
    def cautions(self, **arguments: Any) -> set[str]:
        return {caution.name for caution in judge(side(**arguments)).cautions if caution.side == "other"}

    def test_a_quiet_run_has_none(self) -> None:
        assert self.cautions(environment={"git": {"commit": "0" * 40, "dirty": False}}) == set()

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ({"data_wait": 0.05}, "data wait"),
            ({"contention": {"other_processes_cpu_fraction": 0.5}}, "shared host"),
            ({"contention": {"device_processes": ["python (4711)"]}}, "shared device"),
            (
                {"contention": {"device_condition": {"before": None, "after": {"throttle_reasons": ["power cap"]}}}},
                "throttled",
            ),
            ({"effective_settings": {"compilation": {"graphs_in_window": 1}}}, "compiled while timed"),
            ({"clocks": {"wall_clock_shift_seconds": 0.0, "suspended_seconds": 60.0}}, "suspended"),
            ({"environment": {"git": {"commit": "0" * 40, "dirty": True}}}, "modified source"),
            ({"config": {"precision": "bf16", "model": {"num_experts": 4}}}, "learned routing"),
            ({"contention": {"cpu_throttled_fraction": 0.2}}, "throttled"),
            (
                {
                    "contention": {
                        "device_condition": {
                            "before": None,
                            "after": {"power_limit_watts": 300.0, "default_power_limit_watts": 400.0},
                        }
                    }
                },
                "limited",
            ),
            ({"parallel": {"stragglers": [{"rank": 3, "slowdown": 1.4}]}}, "straggler"),
            ({"environment": {"source_sha256": "1" * 64}}, "different harness"),
            ({"config": {"workload": {"interval_steps": 1}}}, "timed differently"),
            ({"config": {"checkpoint": {"every": 100}}}, "saved differently"),
            ({"timing": {"saving": {"steps": 20, "seconds": 5.0}}}, "partly timed"),
        ],
        ids=str,
    )
    def test_each_has_its_name(self, arguments: dict[str, Any], name: str) -> None:
        assert name in self.cautions(**arguments)

    @pytest.mark.parametrize(
        "config",
        [
            {"precision": "fp32", "model": {"num_experts": 4}},
            {"precision": "bf16", "model": {"num_experts": 4, "routing": "round_robin"}},
            {"precision": "bf16"},
        ],
    )
    def test_routing_that_rounding_does_not_change_has_none(self, config: dict[str, Any]) -> None:
        assert "learned routing" not in self.cautions(config=config)

    @pytest.mark.parametrize(("sign", "cause"), [(1, "throttling"), (-1, "warm-up was too short")])
    def test_drift_says_in_which_direction(self, sign: int, cause: str) -> None:
        def drift(record: dict[str, Any]) -> None:
            timing = record["timing"]
            for index, interval in enumerate(timing["intervals"]):
                interval["seconds"] *= 1 + sign * 0.005 * index

        found = [caution for caution in judge(changed(drift)).cautions if caution.name == "drift"]
        assert len(found) == 1
        assert cause in found[0].text

    def test_drift_is_found_in_the_steps_of_few_intervals(self) -> None:
        def drift(record: dict[str, Any]) -> None:
            timing = record["timing"]
            for index, interval in enumerate(timing["intervals"]):
                interval["seconds"] *= 1 + 0.02 * index
            timing["step_seconds"] = [each * (1 + 0.001 * index) for index, each in enumerate(timing["step_seconds"])]

        few: dict[str, Any] = {"config": {"workload": {"steps": 60}}}
        assert len(make_record(**few)["timing"]["intervals"]) < 8
        found = [caution.name for caution in judge(changed(drift, **few), reference(**few)).cautions]
        assert "drift" in found
        assert not {"drift", "stalled"} & {each.name for each in judge(side(**few), reference(**few)).cautions}

    def test_a_stall_is_found_among_three_intervals(self) -> None:
        def stall(record: dict[str, Any]) -> None:
            record["timing"]["intervals"][1]["seconds"] += 4.0

        few: dict[str, Any] = {"config": {"workload": {"steps": 50}}}
        pair = judge(changed(stall, **few), reference(**few))
        assert "an interval took 4.0 s longer" in next(each.text for each in pair.cautions if each.name == "stalled")

    def test_rests_between_intervals_are_told(self) -> None:
        def rest(seconds: float) -> Change:
            def change(record: dict[str, Any]) -> None:
                for interval in record["timing"]["intervals"]:
                    interval["idle_seconds"] = seconds

            return change

        [found] = [each for each in judge(changed(rest(1.0))).cautions if each.name == "rested"]
        assert "for up to 40% of the timed seconds in 5 of 5 runs" in found.text
        assert "rested" not in {each.name for each in judge(changed(rest(0.05))).cautions}

    def test_outliers_are_shown_and_still_counted(self) -> None:
        records = [make_record(process=100 + number) for number in range(4)]
        records.append(make_record(process=104, step_seconds=0.5))
        pair = judge(make_side("other", records))
        assert "outliers" in {caution.name for caution in pair.cautions}
        assert pair.headline is not None
        assert len(pair.headline.other) == 5


class TestEmulated:
    def test_computes_the_same_and_gets_no_speed(self) -> None:
        pair = judge(side(device={"emulated": True}, data_wait=0.05))
        assert pair.verdict == verdict.SAME_COMPUTATION
        assert pair.quantities == ()
        assert "no speed is stated" in pair.summary
        assert [caution.name for caution in pair.cautions if caution.side == "other"] == ["emulated"]

    def test_is_still_held_to_the_gates(self) -> None:
        pair = judge(side(device={"emulated": True}, digests={"init": "0" * 64}))
        assert pair.verdict == verdict.NOT_COMPARABLE


class TestExitCodes:
    @pytest.mark.parametrize(
        ("arguments", "expectation", "code"),
        [
            ({}, None, 0),
            ({}, "equivalent", 0),
            ({}, "not-slower", 0),
            ({}, "faster", 1),
            ({"step_seconds": 0.3}, None, 0),
            ({"step_seconds": 0.3}, "equivalent", 1),
            ({"step_seconds": 0.3}, "not-slower", 1),
            ({"step_seconds": 0.2}, "faster", 0),
            ({"step_seconds": 0.2}, "not-slower", 0),
            ({"step_seconds": 0.2}, "equivalent", 1),
            ({"process_noise": 0.3}, "not-slower", 1),
            ({"count": 1}, "not-slower", 1),
            ({"count": 1, "step_seconds": 0.1}, "faster", 0),
            ({"world_size": 2}, "faster", 4),
            ({"status": "oom", "error": "x", "finished_steps": 5}, "faster", 5),
        ],
        ids=str,
    )
    def test_of_an_expectation(self, arguments: dict[str, Any], expectation: str | None, code: int) -> None:
        first = make_side("reference", make_records(5))
        assert exit_code(compare([first, side(**arguments)]), expectation) == code

    def test_every_expectation_is_answered_without_a_number(self) -> None:
        pair = judge(side(device={"emulated": True}))
        assert not any(holds(pair, expectation) for expectation in verdict.EXPECTATIONS)
