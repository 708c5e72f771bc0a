"""Audit: a finding for each kind of wrong row, none for a sound one, and means of the sound rows."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness.__main__ import main
from harness.analysis.audit.reading import read_rows
from harness.analysis.audit.rows import (
    COLUMNS,
    IMPOSSIBLE,
    INCONSISTENT,
    NOTE,
    SUSPICIOUS,
    UNPROVEN,
    AuditFinding,
    Figure,
    Row,
)
from harness.analysis.audit.summary import Audit, AuditedRow, audit, judge_by_rows
from harness.analysis.claims import INCONCLUSIVE, NOT_TESTED, REFUTED, SUPPORTED, find_claim
from harness.analysis.flops import training_flops_per_token
from harness.analysis.named_models import model_preset
from harness.errors import UserError
from harness.report.audit_page import render_audit
from harness.report.audit_table import conclusion, grade, print_audit
from tests.comparisons import HOSTILE

PUBLISHED = Path("configs/published.yaml")
# A row that nothing is to be said of: 7B on 8 devices at a third of the peak, with losses.
SOUND: dict[str, Any] = {
    "subject": "Ascend910B2",
    "reference": "NVIDIA A100-SXM4-80GB",
    "model": "Seven",
    "parameters": 7e9,
    "seq_len": 2048.0,
    "devices": 8.0,
    "precision": "bf16",
    "global_batch_size": 64.0,
    "subject_tokens_per_second": 20_000.0,
    "reference_tokens_per_second": 21_000.0,
    "subject_final_loss": 2.31,
    "reference_final_loss": 2.30,
}


def read(file: Path) -> list[Row]:
    """Return the rows of a file without mistakes."""
    found, mistakes = read_rows(file)
    assert mistakes == []
    return found


def rows(*changes: dict[str, Any]) -> Audit:
    entries = [{**SOUND, **change} for change in changes]
    return audit([
        Row(str(number), {key: value for key, value in entry.items() if value is not None})
        for number, entry in enumerate(entries)
    ])  # fmt: skip


def found(*changes: dict[str, Any]) -> list[tuple[str, str]]:
    """Return severity and check of every finding about the first row."""
    return [(finding.severity, finding.check) for finding in rows(*changes).rows[0].findings]


def only(*changes: dict[str, Any]) -> AuditFinding:
    [finding] = rows(*changes).rows[0].findings
    return finding


@pytest.fixture(scope="module")
def published() -> dict[str, AuditedRow]:
    return {row.row.name: row for row in audit(read(PUBLISHED)).rows}


class TestPublishedRows:
    """Rows of the project's own file: each known error is found, with its reason."""

    def said(self, row: AuditedRow, severity: str, check: str) -> str:
        return " ".join(f"{finding.what}: {finding.why}" for finding in row.findings
                        if (finding.severity, finding.check) == (severity, check))  # fmt: skip

    def test_llama_65b_is_bloom_s_row_and_beyond_both_chips(self, published: dict[str, AuditedRow]) -> None:
        row = published["modellink-llama-65b"]
        said = self.said(row, IMPOSSIBLE, "peak")
        assert "subject: 991 TFLOP/s" in said
        assert "reference: 1,009 TFLOP/s" in said
        assert "modellink-bloom-7b1" in self.said(row, SUSPICIOUS, "identical")

    def test_internlm2_is_beyond_both_chips(self, published: dict[str, AuditedRow]) -> None:
        said = self.said(published["modellink-internlm2-20b"], IMPOSSIBLE, "peak")
        assert "subject: 887" in said
        assert "reference: 975" in said

    def test_an_mfu_of_104_percent_was_divided_by_the_a100_s_peak(self, published: dict[str, AuditedRow]) -> None:
        said = self.said(published["nanogpt-464"], IMPOSSIBLE, "MFU")
        assert "MFU of 104%" in said
        assert "divided by the A100's 312 TFLOP/s" in said
        assert "33% of the peak of H100" in said

    def test_an_mfu_of_563_percent_has_no_chip(self, published: dict[str, AuditedRow]) -> None:
        said = self.said(published["primus-772"], IMPOSSIBLE, "MFU")
        assert "MFU of 563%" in said
        assert "no chip is named; if divided by the A100's 312 TFLOP/s" in said

    def test_figures_are_as_printed(self, published: dict[str, AuditedRow]) -> None:
        steps = [7.52, 7.66, 7.65, 7.71, 7.76]
        assert published["libai-gpt2"].row.of("subject", "step_seconds") == pytest.approx(sum(steps) / 5, abs=0.005)
        mrpc = published["accelerate-mrpc"].row
        assert [mrpc.of(side, "accuracy") for side in ("subject", "reference")] == [0.777, 0.7574]

    def test_telechat_12b_has_a_weaker_baseline(self, published: dict[str, AuditedRow]) -> None:
        said = self.said(published["telechat-12b-mindspore"], SUSPICIOUS, "baseline")
        assert "telechat-12b-a100 has 96.6 TFLOP/s" in said
        assert "the speed ratio is 0.78, not 1.20" in said

    def test_no_other_row_is_worse_than_unproven(self, published: dict[str, AuditedRow]) -> None:
        wrong = {name for name, row in published.items() if row.faulty}
        assert wrong == {"modellink-llama-65b", "modellink-internlm2-20b", "nanogpt-464", "primus-772",
                         "telechat-12b-mindspore"}  # fmt: skip

    def test_their_means_leave_the_wrong_ones_out_and_are_of_one_pair_of_chips_each(self) -> None:
        means = {(pair.subject, pair.reference): pair.mean for pair in audit(read(PUBLISHED)).means}
        assert means.keys() == {("Atlas 800T A2", "A100-40G"), ("Ascend 910B", "A100")}
        mean = means["Atlas 800T A2", "A100-40G"]
        ratios = [8.86 / 7.98, 10 / 8.99]
        assert (mean.count, mean.low) == (2, None)
        assert mean.estimate == pytest.approx(math.prod(ratios) ** 0.5)
        assert (mean.smallest, mean.largest) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))

    def test_rows_that_lack_a_chip_s_name_are_no_evidence(self) -> None:
        """ModelLink prints only NPU and reference: filled-in columns are named, and are no evidence for a claim."""
        table = audit(read(PUBLISHED))
        found = judge_by_rows(find_claim("iflytek-ascend910-a100"), table)
        assert found.verdict == INCONCLUSIVE
        assert found.reason.startswith(
            "2 sound rows (without the claim's own and those with filled-in columns), expected 3"
        )
        bloom = next(row for row in table.rows if row.row.name == "modellink-bloom-7b1")
        assert "filled in by the author of the table: subject, reference" in self.said(bloom, UNPROVEN, "assumed")


class TestChecks:
    def test_a_sound_row_has_no_finding(self) -> None:
        assert found({}) == []

    def test_beyond_the_peak(self) -> None:
        # 8 x 312 TFLOP/s over 42 GFLOP a token are 59,400 tokens/s; "7B" may be 10 % less.
        finding = only({"reference_tokens_per_second": 66_000.0})
        assert (finding.severity, finding.check) == (IMPOSSIBLE, "peak")
        assert only({"reference_tokens_per_second": 64_000.0}).severity == SUSPICIOUS

    def test_a_peak_that_sources_disagree_on_is_exceeded_by_a_tenth_before_it_is_impossible(self) -> None:
        """A named model is counted exactly; the Ascend 910B1's figures are of grade C, and its label is 400 TFLOP/s."""
        named = {"subject": "Ascend910B1",
                 "model": "llama2-7b", "parameters": None, "reference_tokens_per_second": None,
                 "reference_final_loss": None, "devices": 1.0}  # fmt: skip
        flops = rows(named).rows[0].row.flops_per_token
        assert flops is not None
        for share, severity in ((1.05, SUSPICIOUS), (1.15, IMPOSSIBLE)):
            table = rows({**named, "subject_tokens_per_second": share * 400e12 / flops})
            [finding] = [each for each in table.rows[0].findings if each.check == "peak"]
            assert finding.severity == severity
            assert "(bf16; grade C)" in finding.why
        # An A100's is the vendor's own.
        a100 = {**named, "subject": "A100 80GB SXM", "subject_tokens_per_second": 1.05 * 312e12 / flops}
        assert (IMPOSSIBLE, "peak") in found(a100)

    def test_beyond_every_known_training(self) -> None:
        assert "no published dense training reached 81%" in only({"reference_tokens_per_second": 48_000.0}).why
        assert found({"reference_tokens_per_second": 44_000.0}) == []

    def test_attention_counts_where_the_shape_is_known(self) -> None:
        row = rows({"layers": 32.0, "width": 4096.0, "seq_len": 32768.0}).rows[0].row
        assert row.flops_per_token == 6 * 7e9 + 3 * 4 * 32 * 4096 * 32769 / 2
        flat = rows({"seq_len": 32768.0}).rows[0].row
        assert flat.flops_per_token == 6 * 7e9

    def test_a_named_model_is_counted_exactly(self) -> None:
        row = rows({"model": "llama2-7b", "parameters": None}).rows[0].row
        shape = {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "activation": "swiglu",
            "vocab_size": 32000,
        }
        assert row.flops_per_token == training_flops_per_token(shape, 2048)

    def test_a_named_model_of_unknown_length_is_counted_without_attention(self) -> None:
        row = rows({"model": "LLaMA2 7B", "parameters": None, "seq_len": None}).rows[0].row
        assert row.flops_per_token == pytest.approx(6 * 6.607e9, rel=1e-3)
        # 70 billion parameters at 10,000 tokens/s are 4,100 TFLOP/s.
        change = {"model": "llama2-70b", "parameters": None, "seq_len": None, "devices": 1.0}
        assert (IMPOSSIBLE, "peak") in found({**change, "reference_tokens_per_second": 10_000.0})

    @pytest.mark.parametrize(
        "change",
        [{"model": "llama2-7b", "parameters": 70e9}, {"model": "llama2-70b", "parameters": 7e9},
         {"layers": 96.0, "width": 12288.0, "parameters": 7e9}],
    )  # fmt: skip
    def test_a_size_that_the_shape_has_not(self, change: dict[str, Any]) -> None:
        assert (INCONSISTENT, "size") in found({**change, "reference_tokens_per_second": 1_000.0,
                                                "subject_tokens_per_second": 1_000.0})  # fmt: skip
        assert found({"layers": 32.0, "width": 4096.0}) == []
        assert found({"model": "llama2-7b", "parameters": 6.7e9}) == []

    def test_a_model_is_the_same_however_it_is_written(self) -> None:
        better = {"model": "SEVEN", "subject": None, "subject_tokens_per_second": None, "subject_final_loss": None,
                  "reference_tokens_per_second": 30_000.0}  # fmt: skip
        assert found({}, better) == [(SUSPICIOUS, "baseline")]

    def test_a_ratio_alone_is_a_row_without_a_measurement(self, tmp_path: Path) -> None:
        (tmp_path / "t.yaml").write_text("- {subject: 910B3, reference: H100, ratio: 0.9, ratio_of: speed}")
        [row] = audit(read(tmp_path / "t.yaml")).rows
        assert {finding.severity for finding in row.findings} == {UNPROVEN}
        assert (row.ratio, row.tested) == (None, False)

    def test_a_chip_of_a_lower_peak_than_the_default_was_not_divided_by_it(self) -> None:
        for chip, said in (("H100 SXM", True), ("910B4", False)):
            row = rows({"subject": chip, "subject_mfu": 1.04}).rows[0]
            why = next(finding.why for finding in row.findings if finding.check == "MFU")
            assert ("as tools do by default" in why) is said

    @pytest.mark.parametrize("name", ["../config", "llama2-7b.yaml", "/etc/passwd", "Seven"])
    def test_other_names_bring_no_shape(self, name: str) -> None:
        assert rows({"model": name, "parameters": None}).rows[0].row.flops_per_token is None

    def test_a_precision_that_the_chip_lacks(self) -> None:
        finding = only({"subject": "Ascend 910A"})
        assert (finding.severity, finding.check) == (IMPOSSIBLE, "precision")
        assert found({"subject": "Ascend 910A", "precision": "fp16"}) == []

    def test_a_family_lacks_a_precision_if_all_of_it_does(self) -> None:
        """One of the chips that "Ascend 910" can mean lacks bf16, the others do not."""
        assert (IMPOSSIBLE, "precision") not in found({"subject": "Ascend 910"})

    def test_precisions_may_be_written_as_tables_do(self, tmp_path: Path) -> None:
        for written, name in (("BF16", "bf16"), ("bfloat16", "bf16"), ("FP16", "fp16"), ("half", "fp16")):
            (tmp_path / "t.yaml").write_text(f"- {{precision: {written}, subject_mfu: 10%}}")
            assert read(tmp_path / "t.yaml")[0].text("precision") == name

    def test_a_peak_that_is_unknown_is_said_to_be(self) -> None:
        assert (UNPROVEN, "peak") in found({"subject": "CS-2"})
        assert (UNPROVEN, "peak") not in found({})

    def test_without_a_precision_fp8_is_possible(self) -> None:
        # 1,200 TFLOP/s on an H100: above its bf16 peak, below its fp8 one, above any product that was measured.
        h100 = {"subject": "H100 SXM", "precision": None, "subject_tokens_per_second": 8 * 1.2e15 / 42e9,
                "reference_tokens_per_second": None, "reference_final_loss": None}  # fmt: skip
        assert (SUSPICIOUS, "peak") in found(h100)
        assert (IMPOSSIBLE, "peak") not in found(h100)

    def test_figures_that_contradict_each_other(self) -> None:
        finding = only({"subject_samples_per_second": 12.0})
        assert (finding.severity, finding.check) == (INCONSISTENT, "speed")
        assert "samples_per_second says 24,576 tokens/s" in finding.what
        assert found({"subject_samples_per_second": 20_000 / 2048}) == []
        assert found({"subject_step_seconds": 64 * 2048 / 20_000}) == []
        assert found({"subject_step_seconds": 5.0}) == [(INCONSISTENT, "speed")]
        assert found({"subject_tokens_per_second_per_device": 2_500.0}) == []

    def test_figures_that_contradict_each_other_in_a_unit_of_their_own(self) -> None:
        """Without a sequence length samples are compared with samples, without devices one with one."""
        change = {"seq_len": None, "subject_tokens_per_second": None, "reference_tokens_per_second": None}
        samples = {**change, "subject_samples_per_second": 10.0, "subject_samples_per_second_per_device": 2.0}
        assert "16 samples/s" in next(each.what for each in rows(samples).rows[0].findings if each.check == "speed")
        steps = {**change, "subject_samples_per_second": 10.0, "subject_step_seconds": 12.8}
        assert (INCONSISTENT, "speed") in found(steps)
        assert (INCONSISTENT, "speed") not in found({**steps, "subject_step_seconds": 6.4})
        alone = {"devices": None, "subject_tokens_per_second": None, "subject_tokens_per_second_per_device": 2_500.0,
                 "subject_samples_per_second_per_device": 5.0}  # fmt: skip
        assert "10,240 tokens/s a device" in next(
            each.what for each in rows(alone).rows[0].findings if each.check == "speed"
        )

    def test_columns_whose_ratios_contradict_each_other(self) -> None:
        change = {"seq_len": None, "subject_samples_per_second": 20.0, "reference_samples_per_second": 10.0}
        assert (INCONSISTENT, "ratio") in found(change)
        assert (INCONSISTENT, "ratio") not in found({**change, "reference_samples_per_second": 21.0})
        # The whole training may have more in it than steps, though not as much again.
        assert found({"subject_total_seconds": 140.0, "reference_total_seconds": 100.0}) == []
        assert found({"subject_total_seconds": 200.0, "reference_total_seconds": 100.0}) == [(SUSPICIOUS, "ratio")]

    def test_a_batch_that_is_not_its_parts(self) -> None:
        assert found({"micro_batch_size": 2.0, "accumulation": 4.0}) == []
        assert found({"micro_batch_size": 3.0, "accumulation": 2.0, "tensor": 1.0}) == [(INCONSISTENT, "batch")]
        assert found({"micro_batch_size": 2.0, "accumulation": 2.0}) == [(INCONSISTENT, "batch")]

    def test_a_batch_of_devices_that_share_a_model(self) -> None:
        shared = {"micro_batch_size": 1.0, "accumulation": 64.0}
        assert found({**shared, "tensor": 8.0}) == []
        assert found({**shared, "tensor": 2.0, "pipeline": 4.0}) == []
        assert found({**shared, "tensor": 4.0}) == [(INCONSISTENT, "batch")]
        # Not printed: it may be so.
        assert "right if 8 devices share a copy of the model" in only(shared).why
        assert only(shared).severity == UNPROVEN
        # And no speed is told from a batch that may be eight times too large.
        alone = {**shared, "global_batch_size": None, "subject_step_seconds": 1.0, "reference_step_seconds": 1.0,
                 "subject_tokens_per_second": None, "reference_tokens_per_second": None}  # fmt: skip
        assert {severity for severity, _ in found(alone)} == {UNPROVEN}
        assert rows({**alone, "tensor": 8.0}).rows[0].row.speeds("subject")["step_seconds"].value == 64 * 2048

    def test_a_ratio_that_the_columns_do_not_give(self) -> None:
        assert found({"ratio": 1.05, "ratio_of": "time"}) == []
        assert found({"ratio": 0.952, "ratio_of": "speed"}) == []
        assert "its inverse" in only({"ratio": 1.05, "ratio_of": "speed"}).why
        assert found({"ratio": 1.2, "ratio_of": "time"}) == [(INCONSISTENT, "ratio")]
        # In as many digits as are printed: 1.05 may be told as 1.1, and 0.952 as 1, but not as 0.9.
        assert found({"ratio": 1.1, "ratio_of": "time"}) == []
        assert found({"ratio": 1.0, "ratio_of": "speed"}) == []
        assert found({"ratio": 0.9, "ratio_of": "speed"}) == [(INCONSISTENT, "ratio")]

    def test_an_mfu_that_the_speed_does_not_give(self) -> None:
        assert found({"reference_mfu": 0.353}) == [(NOTE, "MFU")]
        assert found({"reference_mfu": 0.55}) == [(INCONSISTENT, "MFU")]

    @pytest.mark.parametrize(
        ("change", "flops"),
        [
            # 400 TFLOP/s are 40 % of the H100's bf16 peak, and 20 % of its fp8 peak.
            ({"reference": "H100 SXM", "precision": None, "reference_mfu": 0.40}, 400e12),
            # 340 TFLOP/s are 45 % of the PCIe card's peak, and 34 % of the SXM module's.
            ({"reference": "H100", "reference_mfu": 0.45}, 340e12),
        ],
    )
    def test_an_mfu_by_any_peak_that_may_be_meant_is_consistent(self, change: dict[str, Any], flops: float) -> None:
        change = {**change, "reference_tokens_per_second": 8 * flops / 42e9}
        assert (INCONSISTENT, "MFU") not in found(change)
        assert (INCONSISTENT, "MFU") in found({**change, "reference_mfu": 0.60})

    def test_identical_figures_on_different_work(self) -> None:
        other = {"model": "Eight", "parameters": 8e9}
        assert found({}, other) == [(SUSPICIOUS, "identical")]
        assert found({}, {"subject_tokens_per_second": 20_001.0, **other}) == []
        assert found({}, {}) == []

    def test_one_side_alone_may_be_copied(self) -> None:
        """One figure of many digits is enough; one of two digits is not, whatever other columns there are."""
        other = {"model": "Eight", "parameters": 8e9, "reference_tokens_per_second": 24_000.0}
        assert (SUSPICIOUS, "identical") not in found({}, other)
        assert (SUSPICIOUS, "identical") in found(
            {"subject_tokens_per_second": 20_123.4},
            {**other, "subject_tokens_per_second": 20_123.4, "subject_samples_per_second": 20_123.4 / 2048},
        )
        # With other figures on the same side one that is alike is an accident.
        accident = {"subject_samples_per_second": 20_123.4 / 2048, "subject_tokens_per_second": 20_123.4}
        assert (SUSPICIOUS, "identical") not in found(
            {**accident, "subject_total_seconds": 100.5}, {**other, **accident, "subject_total_seconds": 101.5}
        )
        # The same training on another chip.
        assert found({}, {"subject": "Ascend 910B3"}) == [(SUSPICIOUS, "identical")]

    def test_of_two_alike_the_possible_one_is_the_original(self) -> None:
        other = {"model": "Sixty", "parameters": 65e9}
        assert found({}, other) == []
        assert (SUSPICIOUS, "identical") in found(other, {})

    def test_outcomes_that_differ(self) -> None:
        assert found({"reference_final_loss": 2.5}) == [(SUSPICIOUS, "outcome")]
        accuracies = {"subject_final_loss": None, "reference_final_loss": None, "subject_accuracy": 0.777}
        assert found({**accuracies, "reference_accuracy": 0.76}) == []
        assert found({**accuracies, "reference_accuracy": 0.74}) == [(SUSPICIOUS, "outcome")]
        assert (
            "the tolerance where evaluation_samples is not printed"
            in rows({**accuracies, "reference_accuracy": 0.74}).rows[0].findings[0].why
        )
        # Of 100 samples chance explains more, of 100,000 less.
        assert found({**accuracies, "reference_accuracy": 0.74, "evaluation_samples": 100.0}) == []
        assert found({**accuracies, "reference_accuracy": 0.76, "evaluation_samples": 1e5}) == [(SUSPICIOUS, "outcome")]

    def test_a_weaker_baseline(self) -> None:
        better = {"subject": None, "subject_tokens_per_second": None, "subject_final_loss": None,
                  "reference_tokens_per_second": 30_000.0}  # fmt: skip
        assert found({}, better) == [(SUSPICIOUS, "baseline")]
        assert "0.67, not 0.95" in rows({}, better).rows[0].findings[0].why
        for other in (
            {"model": "Eight"},
            {"devices": 16.0, "reference_tokens_per_second": 60_000.0},
            {"reference": "H100"},
            {"reference_tokens_per_second": 25_000.0},
            # Another precision is other work, and a row that cannot be is no baseline.
            {"precision": "fp16"},
            {"reference_tokens_per_second": 90_000.0},
            # Nor is one that no training is known to have reached: it is not trusted itself.
            {"reference_tokens_per_second": 48_000.0},
        ):
            assert found({}, {**better, **other}) == [], other

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"precision": None}, "the precision"),
            ({"parameters": None}, "the model's size"),
            ({"seq_len": None}, "the sequence length"),
            ({"devices": None}, "devices, batch, sequence length"),
            ({"subject_tokens_per_second": None, "subject_final_loss": None}, "the subject's speed"),
        ],
    )
    def test_what_is_missing_is_said(self, change: dict[str, Any], said: str) -> None:
        findings = rows(change).rows[0].findings
        assert {finding.severity for finding in findings} == {UNPROVEN}
        assert said in findings[0].what

    def test_unknown_and_ambiguous_chips_are_said(self) -> None:
        assert "not in the catalogue" in only({"subject": "Atlas 9000"}).why
        assert "'910B' may be Ascend 910B1" in only({"subject": "910B"}).what


class TestSummary:
    def test_unsound_rows_do_not_count(self) -> None:
        table = rows({}, {"subject_tokens_per_second": 70_000.0})
        assert [row.sound for row in table.rows] == [True, False]
        [pair] = table.means
        assert (pair.mean.count, pair.mean.estimate, pair.mean.low) == (1, pytest.approx(1.05), None)

    def test_other_chips_have_a_mean_of_their_own(self) -> None:
        h100 = {"reference": "H100 SXM", "reference_tokens_per_second": 40_000.0}
        table = rows({}, *({**h100, "subject_tokens_per_second": speed} for speed in (19_000.0, 18_000.0)))
        assert [pair.mean.count for pair in table.means] == [1, 2]

    def test_a_mean_of_three_has_an_interval(self) -> None:
        [pair] = rows(*({"subject_tokens_per_second": speed} for speed in (20_000.0, 20_100.0, 19_900.0))).means
        logarithms = [math.log(21_000 / speed) for speed in (20_000, 20_100, 19_900)]
        middle = sum(logarithms) / 3
        half = 4.302653 * math.sqrt(sum((each - middle) ** 2 for each in logarithms) / 2 / 3)
        assert pair.mean.low == pytest.approx(math.exp(middle - half))
        assert pair.mean.high == pytest.approx(math.exp(middle + half))

    def test_rows_that_agree_to_the_last_digit_have_no_interval(self) -> None:
        table = rows(*({"subject_tokens_per_second": 20_000.0 * scale, "reference_tokens_per_second": 21_000.0 * scale,
                        "devices": 8.0 * scale} for scale in (1, 2, 4)))  # fmt: skip
        assert (table.means[0].mean.count, table.means[0].mean.low) == (3, None)
        found = judge_by_rows(find_claim("iflytek-ascend910-a100"), table)
        assert (found.verdict, found.reason[:31]) == (INCONCLUSIVE, "all 3 sound rows have the same ")

    def test_a_row_that_is_there_twice_counts_once(self) -> None:
        table = rows({}, {"subject_final_loss": 2.305}, {"subject_final_loss": 2.305})
        assert [row.sound for row in table.rows] == [True, False, False]
        assert "the same row as 0 and 1 more" in table.rows[2].findings[0].what

    def test_many_copies_are_one_finding(self) -> None:
        table = rows(*({"model": f"M{number}", "parameters": 7e9 + number} for number in range(300)))
        assert [len(row.findings) for row in table.rows] == [1] * 300
        assert "the same figures as 1 and 298 more" in table.rows[0].findings[0].what

    @pytest.mark.parametrize(
        ("speeds", "word"),
        [
            ((20_000, 20_100, 19_900), SUPPORTED),
            ((15_000, 15_100, 14_900), REFUTED),
            ((20_000, 15_000, 25_000), INCONCLUSIVE),
            ((20_000,), INCONCLUSIVE),
        ],
    )
    def test_says_what_the_sound_rows_say_of_a_claim(self, speeds: tuple[float, ...], word: str) -> None:
        table = rows(*({"subject_tokens_per_second": float(speed)} for speed in speeds))
        assert judge_by_rows(find_claim("iflytek-ascend910-a100"), table).verdict == word

    def test_rows_of_other_chips_or_sizes_say_nothing(self) -> None:
        claim = find_claim("iflytek-ascend910-a100")
        for change in ({"reference": "H100"}, {"parameters": 1e8}, {"parameters": None}):
            found = judge_by_rows(claim, rows(change, {**change, "subject_tokens_per_second": 19_000.0}))
            assert (found.verdict, found.reason[:17]) == (NOT_TESTED, "no published row ")

    def test_rows_that_cannot_be_trusted_say_nothing(self) -> None:
        impossible = {"subject_tokens_per_second": 70_000.0}
        found = judge_by_rows(find_claim("iflytek-ascend910-a100"), rows(impossible, impossible))
        assert (found.verdict, found.reason) == (NOT_TESTED, "none of the 2 other rows about it is sound")

    def test_a_claim_is_no_evidence_of_itself(self) -> None:
        found = judge_by_rows(find_claim("telechat-12b-mindspore"), audit(read(PUBLISHED)))
        assert found.verdict == NOT_TESTED
        assert found.reason.startswith("all rows about it are its own source")
        found = judge_by_rows(find_claim("telechat-7b-mindspore"), audit(read(PUBLISHED)))
        assert found.verdict == INCONCLUSIVE
        assert found.reason.startswith("one sound row (without the claim's own")

    def test_a_row_can_say_which_claim_it_states(self) -> None:
        change = {
            "reference": "A100-40G",
            "subject_tokens_per_second": 8_990.0,
            "reference_tokens_per_second": 10_000.0,
        }
        claim = find_claim("telechat-7b-pytorch")
        assert judge_by_rows(claim, rows(change)).verdict == INCONCLUSIVE
        found = judge_by_rows(claim, rows({**change, "states": "telechat-7b-pytorch"}))
        assert (found.verdict, found.reason[:36]) == (NOT_TESTED, "all rows about it are its own source")

    @pytest.mark.parametrize(("ratio", "word"), [(3.0, REFUTED), (9.0, SUPPORTED)])
    def test_a_claim_of_speed_counts_the_other_way_around(self, ratio: float, word: str) -> None:
        """The H100 that is 3 times as fast refutes "nine times", though a third would fit as a time."""
        changes = [{"subject": "H100 SXM", "reference": "A100 80GB SXM", "reference_tokens_per_second": 5_000.0,
                    "subject_tokens_per_second": 5_000 * ratio * near} for near in (1.001, 1.0, 0.999)]  # fmt: skip
        found = judge_by_rows(find_claim("h100-nine-times-a100"), rows(*changes))
        assert (found.verdict, found.ratio) == (word, pytest.approx(ratio, rel=0.01))

    @pytest.mark.parametrize(
        "change",
        [{"precision": "bf16"}, {"precision": None}, {"devices": 16.0}, {"devices": None}, {"parameters": 7e9}],
        ids=str,
    )
    def test_rows_that_miss_a_claim_s_conditions_or_do_not_print_them_say_nothing(self, change: dict[str, Any]) -> None:
        claim = find_claim("accelerate-mrpc")
        of_it = {"reference": "A100 80GB SXM", "precision": "fp32", "parameters": 1.1e8,
                 "subject_tokens_per_second": 20_100.0}  # fmt: skip
        assert judge_by_rows(claim, rows(of_it)).verdict == INCONCLUSIVE
        assert judge_by_rows(claim, rows({**of_it, **change})).verdict == NOT_TESTED

    def test_rows_of_another_length_say_nothing_of_a_claim_that_has_one(self) -> None:
        of_it = {"reference": "A100-40G", "subject_tokens_per_second": 19_000.0}
        claim = find_claim("telechat-7b-pytorch")
        assert judge_by_rows(claim, rows(of_it)).verdict == INCONCLUSIVE
        assert judge_by_rows(claim, rows({**of_it, "seq_len": 4096.0})).verdict == NOT_TESTED

    def test_a_claim_whose_own_row_is_impossible_is_said_to_be(self) -> None:
        found = judge_by_rows(find_claim("modellink-llama-65b"), audit(read(PUBLISHED)))
        assert found.reason.endswith("; the claim's own row is impossible")

    def test_two_rows_that_happen_to_agree_have_no_interval(self) -> None:
        [pair] = rows({}, {"subject_tokens_per_second": 20_001.0}).means
        assert (pair.mean.count, pair.mean.low) == (2, None)


# One side alone: 7B of 32 layers of width 4096 on an H100, in sequences of 65,536.
LONG: dict[str, Any] = {
    "subject": "H100 SXM",
    "parameters": 6.918905856e9,
    "layers": 32.0,
    "width": 4096.0,
    "seq_len": 65536.0,
    "devices": 8.0,
    "precision": "bf16",
    "subject_tokens_per_second_per_device": 1956.0,
}


def alone(*changes: dict[str, Any]) -> Audit:
    entries = [{**LONG, **change} for change in changes]
    return audit([
        Row(str(number), {key: value for key, value in entry.items() if value is not None})
        for number, entry in enumerate(entries)
    ])  # fmt: skip


def about(check: str, *changes: dict[str, Any]) -> list[AuditFinding]:
    return [finding for finding in alone(*changes).rows[0].findings if finding.check == check]


class TestConventionsOfMfu:
    """Attention counted whole, causally or not at all: each is in use, and the one that fits is named."""

    @pytest.mark.parametrize(
        ("mfu", "named"),
        [(0.2859, "counted whole"), (0.1840, "causal attention"), (0.0821, "without attention")],
    )
    def test_the_one_that_fits_is_named(self, mfu: float, named: str) -> None:
        [finding] = about("MFU", {"subject_mfu": mfu})
        assert finding.severity == NOTE
        assert named in finding.why

    @pytest.mark.parametrize("mfu", [0.05, 0.12, 0.23, 0.40])
    def test_what_fits_none_is_inconsistent_with_the_nearest(self, mfu: float) -> None:
        [finding] = about("MFU", {"subject_mfu": mfu})
        assert finding.severity == INCONSISTENT
        assert "the nearest way to count" in finding.why

    def test_without_a_shape_attention_may_explain_what_a_deep_model_could_have(self) -> None:
        flat = {"layers": None, "width": None}
        [finding] = about("MFU", {**flat, "subject_mfu": 0.2859})
        assert finding.severity == UNPROVEN
        assert "8.2% of the bf16 peak of NVIDIA H100 SXM5 without attention" in finding.why
        # Not six times as much again, not in short sequences, and never less than without attention.
        for wrong in ({"subject_mfu": 0.9}, {"subject_mfu": 0.2859, "seq_len": 2048.0}, {"subject_mfu": 0.04}):
            assert [each.severity for each in about("MFU", {**flat, **wrong})] == [INCONSISTENT], wrong
        [finding] = about("MFU", {**flat, "seq_len": None, "subject_mfu": 0.2859})
        assert finding.severity == UNPROVEN

    @pytest.mark.parametrize(
        ("mfu", "said"),
        [
            (0.0821, "follows from the speed"),
            (0.0755, "is within 9 % of what the speed gives"),
            (0.0893, "is within 9 % of what the speed gives"),
        ],
    )
    def test_what_fits_only_nearly_is_said_so(self, mfu: float, said: str) -> None:
        [finding] = about("MFU", {"layers": None, "width": None, "subject_mfu": mfu})
        assert (finding.severity, finding.what) == (NOTE, f"subject: the MFU {said}")

    def test_an_mfu_of_the_label_or_of_the_matrix_units_is_consistent(self) -> None:
        flops = 0.4 * 280e12
        speed = flops / (6 * 7e9)
        change = {"subject": "910B4", "parameters": 7e9, "layers": None, "width": None, "seq_len": 2048.0,
                  "subject_tokens_per_second_per_device": speed}  # fmt: skip
        for mfu in (0.4, 0.4 * 280 / 245.76):
            assert [each.severity for each in about("MFU", {**change, "subject_mfu": mfu})] == [NOTE]


class TestRounding:
    @pytest.mark.parametrize(
        ("printed_samples", "tokens", "fits"),
        [(1.0, 11_072.0, True), (18.0, 153_000.0, True), (12.0, 105_000.0, True), (1.0, 20_000.0, False),
         (12.0, 120_000.0, False), (1.4, 11_072.0, True), (1.3, 11_900.0, False), (0.1, 900.0, True)],
    )  # fmt: skip
    def test_a_whole_number_may_be_rounded_or_cut_off(self, printed_samples: float, tokens: float, fits: bool) -> None:
        change = {"seq_len": 8192.0, "subject_samples_per_second": printed_samples,
                  "subject_tokens_per_second": tokens, "subject_tokens_per_second_per_device": None}  # fmt: skip
        assert [each.severity for each in about("speed", change)] == ([] if fits else [INCONSISTENT])

    def test_the_precise_figure_counts_for_the_peak(self) -> None:
        """One sample a second is 0.5 to 2, of which the tokens leave one value."""
        change = {"seq_len": 8192.0, "subject_samples_per_second": 1.0, "subject_tokens_per_second": 11_072.0}
        speed = alone(change).rows[0].row.speed_per_device("subject")
        assert speed is not None
        assert speed.value == 11_072 / 8

    def test_what_rounding_may_explain_is_not_impossible(self) -> None:
        change = {"subject_tokens_per_second_per_device": None, "subject_samples_per_second_per_device": 1.0,
                  "parameters": 3e9, "layers": None, "width": None, "model": None}  # fmt: skip
        assert about("peak", change) == []
        assert [each.severity for each in about("peak", {**change, "parameters": 7e9})] == [IMPOSSIBLE]

    @pytest.mark.parametrize(
        ("ratio", "tokens", "fits"),
        [("1.0", "1400", False), ("1.00", "1400", False), ("1", "1400", True), ("1.40", "1400", True),
         ("1.4", "1440", True), ("1.40", "1440", False), ("1.20", "1245", False), ("1.2", "1245", True)],
    )  # fmt: skip
    def test_zeros_at_the_end_are_digits(self, ratio: str, tokens: str, fits: bool, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(
            "subject,reference,ratio,ratio_of,subject_tokens_per_second,reference_tokens_per_second\n"
            f"Ascend 910B,A100,{ratio},time,1000,{tokens}\n"
        )
        [row] = audit(read(tmp_path / "t.csv")).rows
        checks = [finding.check for finding in row.findings if finding.severity == INCONSISTENT]
        assert checks == ([] if fits else ["ratio"])

    @pytest.mark.parametrize(("text", "half"), [("40%", 0.005), ("40.0%", 0.0005), ("0.4", 0.05), ("0.40", 0.005)])
    def test_a_percentage_is_as_precise_as_it_is_printed(self, text: str, half: float, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(f"subject,subject_mfu\nA100,{text}\n")
        [row] = read(tmp_path / "t.csv")
        figure = row.figure("subject", "mfu")
        assert figure is not None
        assert figure == pytest.approx((0.4 - half, 0.4, 0.4 + half))

    def test_ratios_of_rounded_columns_agree(self) -> None:
        change = {"seq_len": None, "subject_samples_per_second": 2.0, "reference_samples_per_second": 3.0}
        assert (INCONSISTENT, "ratio") not in found(change)
        assert found({"ratio": 2.0, "ratio_of": "time", "subject_tokens_per_second": None, "global_batch_size": None,
                      "reference_tokens_per_second": None, "subject_samples_per_second": 1.0,
                      "reference_samples_per_second": 1.0, "parameters": 1e8}) == []  # fmt: skip


class TestMixtures:
    DEEPSEEK: ClassVar[dict[str, Any]] = {
        "subject": "H800", "model": "DeepSeek-V2", "parameters": 236e9, "layers": None, "width": None,
        "seq_len": 4096.0, "subject_tokens_per_second_per_device": 1083.0,
    }  # fmt: skip

    def test_counts_the_active_parameters(self) -> None:
        table = alone({**self.DEEPSEEK, "active_parameters": 21e9})
        assert table.rows[0].sound
        assert table.rows[0].row.flops_per_token == 6 * 21e9

    def test_an_impossible_row_says_what_would_make_it_possible(self) -> None:
        [finding] = about("peak", self.DEEPSEEK)
        assert finding.severity == IMPOSSIBLE
        assert "if it is a mixture of experts, give active_parameters" in finding.why

    @pytest.mark.parametrize("name", ["Mixtral 8x22B", "Qwen3-235B-A22B", "OLMoE-1B-7B", "Phi-3.5-MoE"])
    def test_a_mixture_by_its_name_is_untested_without_them(self, name: str) -> None:
        table = alone({**self.DEEPSEEK, "model": name})
        assert not table.rows[0].tested
        assert "the active parameters of the mixture" in " ".join(each.what for each in table.rows[0].findings)

    def test_a_mixture_among_the_presets_needs_none(self) -> None:
        row = Row("r", {"model": "Mixtral 8x7B", "seq_len": 4096.0})
        assert row.is_mixture
        # Six times the 12.75 billion that a token is multiplied with, and attention.
        assert row.flops_per_token == pytest.approx(6 * 12.748e9 + 3 * 32 * 4 * 4096 * 4097 / 2, rel=1e-4)

    @pytest.mark.parametrize("name", ["llama2-7b", "qwen3-0.6b", "qwen3-30b-a3b", "mixtral-8x7b", "gpt2-1.5b"])
    def test_a_preset_has_the_flops_of_a_run(self, name: str) -> None:
        """Heads may be wider than the hidden size, as Qwen3's are."""
        flops = Row("r", {"model": name, "seq_len": 4096.0}).flops_per_token
        assert flops == pytest.approx(training_flops_per_token(model_preset(name) or {}, 4096))

    @pytest.mark.parametrize("name", ["LLaMA-7B", "A100 test", "llama2-7b", "GPT-2 774M", "Llama 3.1 8B"])
    def test_a_dense_model_is_none(self, name: str) -> None:
        assert not Row("r", {"model": name}).is_mixture

    def test_more_active_parameters_than_parameters(self) -> None:
        assert [each.severity for each in about("size", {**self.DEEPSEEK, "active_parameters": 250e9})] == [
            INCONSISTENT
        ]


class TestOneSidedTables:
    def test_have_a_headline_of_their_own(self) -> None:
        table = alone(
            {"subject_tokens_per_second_per_device": 90_000.0},
            {"subject_mfu": 0.01},
            {},
            {"seq_len": 32768.0, "model": "Other"},
            {"parameters": None, "layers": None},
        )
        assert conclusion(table, None) == [
            "5 rows without a comparison: 1 impossible, 1 inconsistent, 2 within the peak, 1 untested."
        ]

    def test_what_most_rows_have_is_printed_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        table = alone(*({"subject_tokens_per_second_per_device": 1900.0 + number} for number in range(9)))
        print_audit(table)
        printed_text = capsys.readouterr().out
        assert printed_text.count("the reference's speed") == 1
        assert "unproven  all  missing" in printed_text
        assert render_audit(table, None).count("the reference&#39;s speed") == 1

    def test_a_finding_of_one_row_stays_with_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_audit(alone({}, {"precision": None}, {}))
        printed_text = capsys.readouterr().out
        assert printed_text.index("1, H100 SXM") < printed_text.index("the precision") < printed_text.index("2, H100")


class TestSoundness:
    @pytest.mark.parametrize(
        "change",
        [{"parameters": None}, {"subject": "CS-2"}, {"subject": None}, {"devices": None,
         "subject_tokens_per_second_per_device": None, "subject_tokens_per_second": 1e4}, {"subject": "Ascend 910A",
         "precision": "fp32"}, {"subject_tokens_per_second_per_device": None, "subject_mfu": 0.3}],
    )  # fmt: skip
    def test_a_row_whose_speed_no_peak_was_compared_with_is_not_sound(self, change: dict[str, Any]) -> None:
        [row] = alone(change).rows
        assert (row.faulty, row.tested, row.sound) == (False, False, False)
        assert grade(row) == "untested"


class TestSameWork:
    """A weaker baseline is one of the same work: as long sequences, in no larger a batch."""

    def better(self, **change: Any) -> dict[str, Any]:
        return {"subject": None, "subject_tokens_per_second": None, "subject_final_loss": None,
                "reference_tokens_per_second": 30_000.0, **change}  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "accused"),
        [
            ({}, True),
            ({"seq_len": 4096.0}, True),
            ({"seq_len": 1024.0}, False),
            ({"seq_len": 256.0}, False),
            ({"seq_len": 8192.0}, False),
            ({"seq_len": None}, False),
            ({"global_batch_size": 1024.0}, False),
            ({"global_batch_size": None}, True),
            ({"active_parameters": 1e9, "reference_tokens_per_second": 200_000.0}, False),
        ],
        ids=str,
    )
    def test_only_the_same_work_accuses(self, change: dict[str, Any], accused: bool) -> None:
        assert ((SUSPICIOUS, "baseline") in found({}, self.better(**change))) is accused


class TestMistakesCostTheirRow:
    TABLE = (
        "id,subject,parameters,seq_len,devices,precision,subject_tokens_per_second\n"
        "good,H100 SXM,7B,2048,8,bf16,80000\n"
        "{}\n"
        "last,H100 SXM,7B,2048,8,bf16,81000\n"
    )

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("bad,H100 SXM,7B,2048,8,bf16,OOM", "row 2: subject_tokens_per_second: found 'OOM'"),
            ("bad,H100 SXM,seven,2048,8,bf16,8", "row 2: parameters: found 'seven'"),
            ("bad,H100 SXM,7B,2048,8,int4,8", "row 2: precision: found 'int4'"),
            ("bad,H100 SXM,7B,2048,8.5,bf16,8", "row 2: devices: found '8.5'"),
            ("bad,H100 SXM,7B", "line 3: expected 7 cells"),
            ("bad,H100 SXM,7B,2048,8,bf16,", "row 2: found no measurement"),
            ("good,H100 SXM,7B,2048,8,bf16,9000", "row 2: two rows have the id 'good'"),
        ],
    )
    def test_in_csv(self, line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "t.csv").write_text(self.TABLE.format(line))
        kept, mistakes = read_rows(tmp_path / "t.csv")
        assert [row.name for row in kept] == ["good", "last"]
        assert [said in mistake for mistake in mistakes] == [True]
        assert main(["audit", str(tmp_path / "t.csv")]) == 0
        printed_text = " ".join(capsys.readouterr().out.split())
        assert f"Left out: {said}" in printed_text
        assert "2 rows without a comparison: 2 within the peak; 1 left out." in printed_text

    @pytest.mark.parametrize(
        "entry",
        ["{subject_mfu: 38.5}", "{subject_step_seconds: 1:30}", "{sbject: H100, subject_mfu: 1%}", "3",
         "{devices: [1]}", "{ratio: 2}", "{subject_accuracy: 77.7}"],
    )  # fmt: skip
    def test_in_yaml(self, entry: str, tmp_path: Path) -> None:
        (tmp_path / "t.yaml").write_text(f"- {{id: a, subject_mfu: 40%}}\n- {entry}\n")
        kept, mistakes = read_rows(tmp_path / "t.yaml")
        assert ([row.name for row in kept], len(mistakes)) == (["a"], 1)
        assert mistakes[0].startswith("row 2: ")

    def test_a_dash_is_an_empty_cell_and_a_date_is_text(self, tmp_path: Path) -> None:
        (tmp_path / "t.yaml").write_text("- {subject_mfu: 40%, seq_len: '-', devices: n/a, note: 2023-13-45}")
        assert read(tmp_path / "t.yaml")[0].values == {"subject_mfu": 0.4, "note": "2023-13-45"}

    def test_a_file_of_mistakes_alone_is_refused_with_the_first(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("id,seq_len,subject_mfu\n1,x,10%\n2,y,10%\n")
        with pytest.raises(UserError, match=r"row 1: seq_len: found 'x'.*and 1 more rows? cannot be read"):
            read_rows(tmp_path / "t.csv")


def test_work_grows_with_the_rows_and_not_with_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks against other rows use indexes, and compute each row once."""
    real, calls = Row.speed_per_device, 0

    def counted(row: Row, side: str) -> Figure | None:
        nonlocal calls
        calls += 1
        return real(row, side)

    monkeypatch.setattr(Row, "speed_per_device", counted)
    made = []
    for count in (50, 100):
        calls = 0
        entries = [{"model": "llama2-7b", "parameters": None, "subject_tokens_per_second": 20_000.0 + number,
                    "reference_tokens_per_second": 21_000.0 + number} for number in range(count)]  # fmt: skip
        assert all(row.sound for row in rows(*entries).rows)
        made.append(calls)
    assert made[1] == 2 * made[0]


class TestFiles:
    def test_csv_and_yaml_say_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(
            "\ufeff\n ID,Subject,parameters,subject mfu,subject_tokens_per_second\none, H100 ,6.5B,41%,\n"
        )
        (tmp_path / "t.yaml").write_text("- {id: one, subject: H100, parameters: 6500000000, subject_mfu: 0.41}\n")
        one, two = (read(tmp_path / name) for name in ("t.csv", "t.yaml"))
        assert one == two
        assert one[0].values == {"id": "one", "subject": "H100", "parameters": 6.5e9, "subject_mfu": 0.41}

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("t.csv", "", "found no rows"),
            ("t.txt", "id,subject\n1,H100\n", "found a name that ends in '.txt', expected .yaml, .yml or .csv"),
            ("t.csv", "id;subject\n1;H100\n", "found semicolons between columns, expected commas"),
            ("t.csv", "id\tsubject\n1\tH100\n", "found tabs between columns, expected commas"),
            ("t.csv", "| id | subject |\n|---|---|\n", "found bars between columns, expected commas"),
            ("t.csv", "ID,id\n1,2\n", "id: found twice, also as 'id'"),
            ("t.csv", "id,devices\n1,8.5\n", "devices: found '8.5', expected a whole number"),
            ("t.csv", "id,parameters\n1,175\n", "found '175', expected a number of parameters, such as 7B"),
            ("t.csv", "id,subject_accuracy\n1,77.7\n", "found '77.7', expected a fraction of at most 1, or a percent"),
            ("t.yaml", "- {subject_total_seconds: 1:30}", "found '1:30', expected a number of seconds"),
            ("t.yaml", "- {subject_mfu: 10%, assumed: reference}", "assumed: found 'reference', expected columns of"),
            ("t.csv", "id,sbject\n1,H100\n", "row 1: sbject: unknown column; did you mean subject?"),
            ("t.csv", "id,subject\n1\n", "line 2: expected 2 cells"),
            ("t.csv", "id,subject\n1,H100,3\n", "line 2: expected 2 cells"),
            ("t.csv", 'id,seq_len\n1,"2,048"\n', "row 1: seq_len: found '2,048', expected a number above 0"),
            ("t.csv", "id,note,note\n1,a,b\n", "found the column 'note' twice"),
            ("t.csv", "id,subject_accuracy\n1,150%\n", "subject_accuracy: found '150%', expected a fraction"),
            ("t.csv", "id,seq_len\n1,-4\n", "row 1: seq_len: found '-4'"),
            ("t.csv", "id,seq_len\n1,nan\n", "row 1: seq_len: found 'nan'"),
            ("t.csv", 'id,note\n1,"open\n', "cannot be read as CSV"),
            ("t.yaml", "a: [", "cannot be read as YAML"),
            ("t.yaml", "rows: 3", "found no list of rows"),
            ("t.yaml", "- 3", "found no list of rows"),
            ("t.yaml", "- {devices: true}", "devices: found 'true'"),
            ("t.yaml", "- {ratio: 2}", "ratio: found no ratio_of"),
            ("t.yaml", "- {ratio: 2, ratio_of: power}", "ratio_of: found 'power'"),
            ("t.yaml", "- {id: a}", "row 1: found no measurement"),
            ("t.yaml", "- {id: {a: 1}, subject_mfu: 1%}", "id: found a list or a mapping"),
            ("t.yaml", "- {note: 1, note: 2}", "duplicate key 'note'"),
            ("t.yaml", "- {parameters: !!int abc}", "cannot be read as YAML"),
            ("t.yaml", "[" * 5000, "cannot be read as YAML"),
            ("t.yaml", "- {precision: int8, subject_mfu: 1%}", "precision: found 'int8', expected one of: fp32"),
            ("t.yaml", "- {subject_mfu: 38.5}", "expected a fraction, or a percentage such as 38.5%"),
            ("t.yaml", "- {subject_step_seconds: 1e-308}", "of a possible size"),
            ("t.yaml", "- !!python/object/apply:os.system [id]", "cannot be read as YAML"),
        ],
    )
    def test_mistakes_are_one_line_with_file_and_place(self, name: str, text: str, said: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as caught:
            read_rows(tmp_path / name)
        assert said in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_other_letters_than_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes("id,note,subject_mfu\n1,grün,40%\n".encode("latin-1"))
        with pytest.raises(UserError, match=r"t\.csv: is not UTF-8 text at byte 24, .*; convert it"):
            read_rows(tmp_path / "t.csv")


class TestCommand:
    def test_help_documents_every_column(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit", "--help"]) == 0
        printed = capsys.readouterr().out
        assert [column for column in COLUMNS if column not in printed] == []

    def test_prints_writes_and_returns(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit", str(PUBLISHED), "--claim", "iflytek-ascend910-a100", "--out", str(tmp_path / "a")]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "4 of 11 rows are sound, 2 untested." in printed
        assert "inconclusive. 2 sound rows (without the claim's own" in printed
        assert (
            "Sound rows of Atlas 800T A2 against A100-40G: geometric mean of the time ratios 1.111 (2 rows" in printed
        )
        page = (tmp_path / "a" / "audit.html").read_text()
        assert "inconclusive" in page
        assert "://" not in page
        found = json.loads((tmp_path / "a" / "audit.json").read_text())
        assert (found["claim"]["verdict"], len(found["rows"])) == ("inconclusive", 11)
        assert [pair["mean"]["count"] for pair in found["mean_time_ratios"]] == [2, 1]

    def test_expect_sound(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit", str(PUBLISHED), "--expect", "sound"]) == 1
        (tmp_path / "t.yaml").write_text("- {subject: 910B3, reference: A100-80G, subject_step_seconds: 2}")
        assert main(["audit", str(tmp_path / "t.yaml"), "--expect", "sound", "--format", "json"]) == 1
        whole = "- {subject: 910B3, parameters: 7B, devices: 1, precision: bf16, subject_tokens_per_second: 2000}"
        (tmp_path / "t.yaml").write_text(whole)
        assert main(["audit", str(tmp_path / "t.yaml"), "--expect", "sound"]) == 0
        (tmp_path / "t.yaml").write_text(f"{whole}\n- {{subject: 910B3, parameters: seven}}")
        assert main(["audit", str(tmp_path / "t.yaml"), "--expect", "sound"]) == 1

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["audit"], "the following arguments are required: FILE"),
            (["audit", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
            (["audit", str(PUBLISHED), "--frmat", "json"], "unrecognized arguments"),
            (["audit", str(PUBLISHED), "--claim", "x"], "claim: found 'x'"),
        ],
    )
    def test_mistakes_are_one_line(self, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(argv) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line

    def test_a_terminal_without_the_letters_gets_escapes(self, tmp_path: Path) -> None:
        (tmp_path / "t.yaml").write_text("- {id: Müller→, subject: H100, subject_mfu: 10%}", encoding="utf-8")
        words = [sys.executable, "-m", "harness", "audit", str(tmp_path / "t.yaml")]
        done = subprocess.run(
            words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "M\\xfcller\\u2192" in done.stdout

    def test_the_page_escapes_what_strangers_wrote(self) -> None:
        table = rows({"subject": HOSTILE, "model": HOSTILE, "source": HOSTILE})
        page = render_audit(
            Audit((AuditedRow(Row(HOSTILE, table.rows[0].row.values), table.rows[0].findings),), ()), None
        )
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
        page.encode()
