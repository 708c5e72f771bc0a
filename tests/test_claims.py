"""Claims as data, and verdicts on them: supported, refuted, inconclusive, not tested."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.__main__ import main
from harness.analysis.audit.reading import read_rows
from harness.analysis.claim_verdict import judge_claim
from harness.analysis.claims import (
    CLAIM_VERDICTS,
    INCONCLUSIVE,
    NOT_TESTED,
    REFUTED,
    SUPPORTED,
    Claim,
    ClaimVerdict,
    chips_of,
    find_claim,
    judge_ratio,
    load_claims,
)
from harness.analysis.flops import matrix_weights
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import compare, exit_code
from harness.commands.claim import changes, how_to_test
from harness.composition import load
from harness.errors import ConfigError
from tests.comparisons import EMULATED
from tests.records import A100, ASCEND, CPU, make_record, make_records, make_side, merged, write_runs

IFLYTEK = "iflytek-ascend910-a100"
BIG = {"model": {"parameters": 1_557_611_200}}
A100_40G = merged(A100, {"backend": {"peak_lookup_key": "NVIDIA A100-SXM4-40GB"}})
H100 = merged(
    A100, {"device": {"name": "NVIDIA H100 80GB HBM3"}, "backend": {"peak_lookup_key": "NVIDIA H100 80GB HBM3"}}
)


def side(on: dict[str, Any], label: str, step_seconds: float = 1.0, *, count: int = 5, **changes: Any) -> RunGroup:
    first = changes.pop("process", 1)
    records = [make_record(on=on, step_seconds=step_seconds, **{**BIG, **changes, "process": first + number})
               for number in range(count)]  # fmt: skip
    return make_side(label, records)


def verdict(claim: str, *sides: RunGroup) -> ClaimVerdict:
    found = judge_claim(compare(sides), find_claim(claim)).pairs[0].claim
    assert found is not None
    return found


class TestRecords:
    @pytest.mark.parametrize(
        ("seconds", "word"),
        [(1.0, SUPPORTED), (1.06, SUPPORTED), (1.2, REFUTED), (0.8, REFUTED), (1.1, INCONCLUSIVE)],
    )
    def test_support_or_refute_the_same_time(self, seconds: float, word: str) -> None:
        found = verdict(IFLYTEK, side(A100, "A100"), side(ASCEND, "Ascend", seconds))
        assert found.verdict == word
        assert found.ratio == pytest.approx(seconds, rel=0.01)
        assert None not in (found.low, found.ratio, found.high)
        assert [found.low, found.ratio, found.high] == sorted([found.low or 0, found.ratio or 0, found.high or 0])

    def test_the_subject_is_found_by_its_chip_not_by_its_place(self) -> None:
        """With the Ascend as reference, the ratio is still its time over the A100's."""
        found = verdict(IFLYTEK, side(ASCEND, "Ascend", 1.2), side(A100, "A100"))
        assert found.verdict == REFUTED
        assert found.ratio == pytest.approx(1.2, rel=0.01)

    def test_of_speed_is_the_inverse_of_time(self) -> None:
        found = verdict("h100-nine-times-a100", side(A100, "A100", 9.0), side(H100, "H100"))
        assert (found.verdict, found.ratio) == (SUPPORTED, pytest.approx(9.0, rel=0.01))
        found = verdict("h100-nine-times-a100", side(H100, "H100"), side(A100, "A100", 3.0))
        assert (found.verdict, found.ratio) == (REFUTED, pytest.approx(3.0, rel=0.01))
        assert None not in (found.low, found.ratio, found.high)
        assert [found.low, found.ratio, found.high] == sorted([found.low or 0, found.ratio or 0, found.high or 0])

    def test_of_other_chips_do_not_test_it(self) -> None:
        found = verdict(IFLYTEK, side(A100, "A100"), side(H100, "hopper"))
        assert found.verdict == NOT_TESTED
        assert "wrong chips" in found.reason
        assert "NVIDIA H100 80GB HBM3 (hopper)" in found.reason

    def test_two_of_the_same_chip_do_not_test_it(self) -> None:
        assert "wrong chips" in verdict(IFLYTEK, side(A100, "one"), side(A100, "two", process_noise=0.01)).reason

    def test_of_an_emulated_device_do_not_test_it(self) -> None:
        found = verdict(IFLYTEK, side(A100, "A100"), side(EMULATED, "emulated"))
        assert (found.verdict, found.ratio) == (NOT_TESTED, None)
        assert found.reason.startswith("emulated device: emulated")

    def test_of_a_small_model_do_not_test_it(self) -> None:
        small: Any = {"model": {"parameters": 124_439_808}}
        found = verdict(IFLYTEK, side(A100, "A100", **small), side(ASCEND, "Ascend", **small))
        assert found.verdict == NOT_TESTED
        assert "other scale" in found.reason
        assert "0.124 billion" in found.reason

    def test_of_fewer_devices_do_not_test_it(self) -> None:
        changes: Any = {"config": {"precision": "fp32"}, "model": {"parameters": 124_439_808}}
        a100 = merged(A100, {"device": {"memory_bytes": 85_100_000_000}})
        found = verdict("accelerate-mrpc", side(a100, "A100", **changes), side(ASCEND, "Ascend", **changes))
        assert found.reason.startswith("other scale: the claim is of 8 devices")

    @pytest.mark.parametrize(
        ("parameters", "devices", "seq_len", "said"),
        [
            (68_976_648_192, 8, 2048, "other scale: the claim is of models of 5.3 to 8.8 billion"),
            (None, 8, 2048, "trained one of unknown size"),
            (6_738_415_616, 1024, 2048, "other scale: the claim is of 8 devices, Ascend ran on 1024"),
            (6_738_415_616, 8, 1024, "other workload: the claim is of 2048 tokens a sequence, Ascend trained 1024"),
        ],
    )
    def test_of_another_size_or_length_do_not_test_it(
        self, parameters: int | None, devices: int, seq_len: int, said: str
    ) -> None:
        config = {"workload": {"seq_len": seq_len}, "model": {"max_position_embeddings": seq_len}}
        sides = [side(on, label, model={"parameters": parameters}, world_size=devices, config=config)
                 for on, label in ((A100_40G, "A100"), (ASCEND, "Ascend"))]  # fmt: skip
        found = verdict("telechat-7b-pytorch", *sides)
        assert found.verdict == NOT_TESTED
        assert said in found.reason

    def test_of_another_precision_do_not_test_it(self) -> None:
        found = verdict("accelerate-mrpc", side(A100, "A100"), side(ASCEND, "Ascend"))
        assert found.reason.startswith("other precision: the claim is of fp32, Ascend ran in bf16")

    def test_that_may_not_be_compared_do_not_test_it(self) -> None:
        found = verdict(IFLYTEK, side(A100, "A100"), side(ASCEND, "Ascend", config={"seed": 2}))
        assert found.verdict == NOT_TESTED
        assert found.reason.startswith("not comparable: not the same work")

    def test_of_one_process_a_side_is_inconclusive(self) -> None:
        found = verdict(IFLYTEK, side(A100, "A100", count=1), side(ASCEND, "Ascend", count=1))
        assert (found.verdict, found.ratio) == (INCONCLUSIVE, None)

    def test_of_any_device_rehearse(self) -> None:
        assert verdict("rehearsal", side(CPU, "one"), side(CPU, "two", 1.5)).verdict == REFUTED
        assert verdict("rehearsal", side(CPU, "one"), side(CPU, "again", process=11)).verdict == SUPPORTED

    def test_expecting_support(self) -> None:
        claim = find_claim(IFLYTEK)
        assert exit_code(judge_claim(compare([side(A100, "a"), side(ASCEND, "b")]), claim), SUPPORTED) == 0
        assert exit_code(judge_claim(compare([side(A100, "a"), side(ASCEND, "b", 1.2)]), claim), SUPPORTED) == 1


class TestWithin:
    """An interval that touches the bound is inside."""

    @pytest.mark.parametrize(
        ("low", "high", "word"),
        [
            (0.9, 1.1, SUPPORTED),
            (0.899, 1.0, INCONCLUSIVE),
            (1.0, 1.101, INCONCLUSIVE),
            (0.5, 0.899, REFUTED),
            (1.101, 1.2, REFUTED),
            (0.5, 2.0, INCONCLUSIVE),
        ],
    )
    def test_two_borders(self, low: float, high: float, word: str) -> None:
        assert judge_ratio(find_claim(IFLYTEK), (low + high) / 2, low, high).verdict == word

    @pytest.mark.parametrize(
        ("low", "high", "word"), [(1.0, 50, SUPPORTED), (0.5, 0.8, REFUTED), (0.9, 1.5, INCONCLUSIVE)]
    )
    def test_one_border(self, low: float, high: float, word: str) -> None:
        assert judge_ratio(find_claim("gh200-above-h100"), (low + high) / 2, low, high).verdict == word


class TestFiles:
    def test_every_claim_of_the_article_has_one(self) -> None:
        article = {
            (claim.subject, claim.reference, claim.quantity, claim.stated, claim.low, claim.high)
            for claim in load_claims().values()
            if claim.source.startswith("The Asia Business Daily")
        }
        for claim in load_claims().values():
            # It is about massive models: runs of a small one neither support nor refute any of it.
            if claim.source.startswith("The Asia Business Daily"):
                assert (claim.parameters.low, claim.parameters.high) == (1e9, None)
        level = ("A100", "speed", 1.0, 0.9, None)
        assert article == {
            ("Ascend 910", "A100", "time", 1.0, 0.9, 1.1),
            ("H100", "A100", "speed", 9.0, 8.5, 9.5),
            ("GH200", "H100", "speed", None, 1.0, None),
            ("Gaudi until 2023", *level),
            ("Graphcore IPU", *level),
            ("WSE-2", *level),
            ("SambaNova RDU until 2023", *level),
        }

    @pytest.mark.parametrize("claim", load_claims().values(), ids=lambda claim: claim.name)
    def test_says_why_and_names_experiments_that_there_are(self, claim: Claim) -> None:
        assert len(claim.rationale) > 10
        for experiment, commands in how_to_test(claim).items():
            assert load([f"experiment={experiment}"]).experiment == experiment
            assert commands[-1].startswith("python -m harness compare")
            assert f"--claim {claim.name}" in commands[-1]

    def test_an_experiment_over_many_devices_is_launched(self) -> None:
        commands = how_to_test(find_claim(IFLYTEK))
        assert commands["iflytek/card"][0] == (
            f"python -m harness experiment=iflytek/card backend=cuda out=runs/{IFLYTEK}/card/reference  # on A100"
        )
        assert "--nnodes=$NODES" in commands["iflytek/cluster"][1]
        assert "backend=npu" in commands["iflytek/card"][1]
        assert "torchrun --nproc-per-node=8 experiment=iflytek/node backend=npu" in commands["iflytek/node"][1]

    @pytest.mark.parametrize("claim", load_claims().values(), ids=lambda claim: claim.name)
    def test_its_own_experiments_meet_its_conditions(self, claim: Claim) -> None:
        for experiment in claim.experiment:
            config = load([f"experiment={experiment}", *changes(claim)])
            assert claim.precision in (None, config.precision)
            assert claim.parameters.holds(matrix_weights(asdict(config.model)))
            assert claim.seq_len in (None, config.workload.seq_len)
            assert config.workload.seq_len <= config.model.max_position_embeddings
            assert config.parallel.name in ("fsdp", "mesh") or claim.devices.holds(1)

    def test_a_chip_without_a_backend_is_said(self) -> None:
        assert "no backend" in how_to_test(find_claim("cerebras-a100-level"))["iflytek/card"][1]

    @pytest.mark.parametrize("claim", load_claims().values(), ids=lambda claim: claim.name)
    def test_precision_is_one_that_both_sides_have(self, claim: Claim) -> None:
        for experiment in claim.experiment:
            precision = load([f"experiment={experiment}", *changes(claim)]).precision
            for written in (claim.subject, claim.reference):
                chips = chips_of(written)
                assert not chips or any(precision not in chip.lacks for chip in chips), written
                # Where peaks are known, this one is.
                known = [chip for chip in chips if any(chip.peak_flops.values())]
                assert not known or any(chip.peak_flops[precision] for chip in known), written

    @pytest.mark.parametrize("claim", load_claims().values(), ids=lambda claim: claim.name)
    def test_a_row_that_states_it_has_its_ratio_and_its_conditions(self, claim: Claim) -> None:
        """The claims of published.md have a row each in published.yaml: quantity, ratio, size and length fit it."""
        rows = {row.name: row for row in read_rows(Path("configs/published.yaml"))[0]}
        if claim.name not in rows:
            assert claim.source.startswith("The Asia Business Daily") or claim.name == "rehearsal"
            return
        row = rows[claim.name]
        assert row.time_ratio is not None
        own = row.time_ratio if claim.quantity == "time" else 1 / row.time_ratio
        assert claim.stated is not None
        assert claim.stated == pytest.approx(own, rel=1e-3)
        assert claim.low == pytest.approx(0.95 * claim.stated, rel=1e-3)
        assert claim.high == pytest.approx(1.05 * claim.stated, rel=1e-3)
        assert (row.text("subject") or "").removeprefix("Ascend ") == claim.subject.removeprefix("Ascend ")
        assert row.text("reference") == claim.reference
        assert row.size is None or claim.parameters.holds(row.size)
        assert claim.devices.holds(row.number("devices"))
        assert claim.seq_len in (None, row.number("seq_len"))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"quantity": "power"}, "expected time or speed"),
            ({"subject": "910B7"}, "'910B7' is no chip"),
            ({"low": None, "high": None}, "both are null"),
            ({"stated": 2.0}, "not between low and high"),
            ({"margin": 0.1}, "margin: unknown key"),
            ({"low": 2.0, "high": 1.0, "stated": None}, "2.0 is more than 1.0"),
            ({"experiment": "iflytek/card"}, "experiment: found 'iflytek/card', expected a list of strings"),
            ({"parameters_reason": ...}, "parameters, parameters_reason: found one of them"),
            ({"devices": [1, 2, 3]}, "positional arguments"),
            ({"source": ...}, "source is missing"),
        ],
    )
    def test_a_malformed_one_is_named(self, change: dict[str, Any], said: str, tmp_path: Path) -> None:
        entry = yaml.safe_load((Path("configs/claim") / f"{IFLYTEK}.yaml").read_text()) | change
        (tmp_path / "bad.yaml").write_text(
            yaml.safe_dump({key: value for key, value in entry.items() if value is not ...})
        )
        with pytest.raises(ConfigError, match=f"bad.yaml: cannot be read as a claim: .*{said}"):
            load_claims(tmp_path)


class TestCommands:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[str]:
        sides = {"a100": (A100, 1.0), "ascend": (ASCEND, 1.2)}
        return [
            str(write_runs(tmp_path / name, make_records(5, on=on, step_seconds=seconds, **BIG)))
            for name, (on, seconds) in sides.items()
        ]

    def test_compare_adds_the_claim_everywhere(
        self, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "report"
        assert main(["compare", *folders, "--claim", IFLYTEK, "--out", str(out)]) == 0
        said = f"Claim {IFLYTEK}: refuted. Time ratio 1."
        printed = " ".join(capsys.readouterr().out.split())
        assert said in printed
        assert "The claim: iFlytek says" in printed
        assert said in (out / "report.md").read_text()
        assert said in (out / "report.html").read_text()
        found = json.loads((out / "verdict.json").read_text())
        assert (found["claim"]["name"], found["pairs"][0]["claim"]["verdict"]) == (IFLYTEK, "refuted")

    def test_without_a_claim_none_is_mentioned(self, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["compare", *folders]) == 0
        printed = capsys.readouterr().out
        assert "Claim" not in printed
        assert "claim:" not in printed

    def test_mistakes_are_one_line(self, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        for words, said in (
            (["compare", *folders, "--claim", "iflytek"], "did you mean iflytek-ascend910-a100?"),
            (["compare", *folders, "--expect", "supported"], "found no --claim"),
            (["claim", "ifltek-ascend910-a100"], "did you mean iflytek-ascend910-a100?"),
            (["claim", "a", "b"], "unrecognized arguments: b"),
        ):
            assert main(words) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert said in line

    def test_lists_every_claim(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["claim"]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in load_claims())

    @pytest.mark.parametrize("name", load_claims())
    def test_shows_what_would_test_it_and_what_the_rows_say(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["claim", name]) == 0
        printed = capsys.readouterr().out
        assert f"--claim {name}" in printed
        evidence = next(line for line in printed.splitlines() if line.startswith("evidence"))
        assert any(f" {word}: " in evidence for word in CLAIM_VERDICTS)

    def test_for_programs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["claim", IFLYTEK, "--format", "json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert found["evidence"]["verdict"] == INCONCLUSIVE
        assert "telechat-7b-pytorch" in found["evidence"]["rows"]
