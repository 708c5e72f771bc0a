"""`project --check RECORD`: the step of a recorded run, by a hand-made peak record; its payloads, by real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.analysis.projection.assumptions import Assumptions, Range
from harness.analysis.projection.exchanges import Exchange, exchanges_of
from harness.analysis.projection.links import MeasuredCollectives, MeasuredLinks, interpolated_seconds
from harness.analysis.projection.recorded import RunCheck, check_run, plan_of_run
from harness.analysis.stages import longest_rank
from harness.records.load import LoadedRecord
from harness.records.peak import COLLECTIVES, PEAK_FILE
from harness.records.record import write_record
from tests.layouts import TIMEOUT_SECONDS, WORK
from tests.ranks import end_ranks, record, start_ranks
from tests.records import CPU, make_record, merged, write_runs

AXES = ("pipeline", "data", "shard", "context", "tensor")
# Without chance: compute by half of the peak's products, and nothing hidden.
FIXED = replace(Assumptions(), efficiency_of_products=Range(0.5, 0.5, 0.5), hiding_compute=Range(0, 0, 0))
ONE_GB, LATENCY = 1e9, 1e-3
# A model of 4 layers of width 100 with tied embeddings of 1,000 words: 8 sequences of 64 tokens a step.
MODEL = {"name": "hand", "vocab_size": 1000, "num_hidden_layers": 4, "hidden_size": 100, "num_attention_heads": 4,
         "tie_word_embeddings": True}  # fmt: skip
PARAMETERS = 500_000
BLOCKS, OUTER = 400_000, 100_000
DEVICE = merged(CPU, {"effective_settings": {"threads": 1}})


def run_record(layout: dict[str, int], **changes: Any) -> dict[str, Any]:
    whole = {axis: layout.get(axis, 1) for axis in AXES}
    size = 1
    for parts in whole.values():
        size *= parts
    ranks = [{"rank": rank, "host": "a", "device": "AMD EPYC", "device_index": None, "peak_allocated_bytes": None,
              "step_seconds": 0.25, "payload_bytes_per_step": 0.0, "exposed_communication_seconds": None,
              "busy_seconds_per_step": None} for rank in range(size)]  # fmt: skip
    own = {
        "config": {
            "model": MODEL,
            "precision": "bf16",
            "workload": {"seq_len": 64, "global_batch_size": 8, "micro_batch_size": 2},
            "parallel": {"name": "mesh"},
        },
        "model": {"parameters": PARAMETERS},
        "world_size": size,
        "parallel": {"layout": whole, "ranks": ranks, "stragglers": [], "scaling": None},
    }
    return make_record(on=DEVICE, noise=0.0, process_noise=0.0, **merged(own, changes))


def loaded(layout: dict[str, int], **changes: Any) -> LoadedRecord:
    return LoadedRecord(Path("run/record.json"), run_record(layout, **changes))


def peak_record(ranks: int, **changes: Any) -> dict[str, Any]:
    """Return a peak whose collectives take a millisecond, and a second for every 10^9 bytes of message."""
    sweep = [{"bytes": size, "seconds": LATENCY + size / ONE_GB, "algorithm_bytes_per_second": 1.0,
              "bus_bytes_per_second": 1.0} for size in (1 << 10, 1 << 28)]  # fmt: skip
    collective = {"latency_seconds": sweep[0]["seconds"], "sweep": sweep}
    peak = {
        "schema_version": 3,
        "kind": "peak",
        "finished_at": "2026-11-25T10:00:00+00:00",
        "backend": DEVICE["backend"],
        "device": DEVICE["device"],
        "effective_settings": {"threads": 1},
        "world_size": ranks,
        "matrix_products": {"fp32": {"best_flops": 1e10}, "bf16": {"best_flops": 2e10}, "fp16": None},
        "memory": {"best_bytes_per_second": 1e9},
        "contention": {"other_processes_cpu_fraction": 0.0},
        "collectives": {"asynchronous": False, "ranks_per_host": ranks, "missing_reasons": {},
                        **dict.fromkeys(COLLECTIVES, collective)},
    }  # fmt: skip
    return merged(peak, changes)


def check(layout: dict[str, int], alone: tuple[LoadedRecord, ...] = (), **changes: Any) -> RunCheck:
    ranks = 1
    for parts in layout.values():
        ranks *= parts
    return check_run(loaded(layout, **changes), peak_record(ranks), alone, FIXED)


def part(found: RunCheck, name: str) -> float:
    [one] = [each for each in found.parts if each.name.strip() == name]
    return one.predicted.median


def cost(message_bytes: float) -> float:
    return LATENCY + message_bytes / ONE_GB


# 3 x (2 x matrix weights + 4 layers x 4 x 100 x 65 / 2), of 4 x 12 x 100^2 weights and the head's.
FLOPS = 3 * (2 * (4 * 12 * 100**2 + 100_000) + 4 * 4 * 100 * 65 / 2) * 8 * 64


class TestByHand:
    def test_compute_is_by_the_peak_of_the_runs_precision_and_an_assumed_efficiency(self) -> None:
        found = check({"shard": 2})
        optimizer = 28 * PARAMETERS / 2 / 1e9
        assert part(found, "compute and optimizer") == pytest.approx(FLOPS / 2 / (0.5 * 2e10) + optimizer)
        assert found.step.measured == pytest.approx(0.25)
        assert found.ratio.median == pytest.approx(found.step.predicted.median / 0.25)

    def test_shards(self) -> None:
        # Two micro-batches: the blocks' weights of 2 bytes twice each, the others' of 4 once; gradients of 4 once.
        expected = 4 * cost(2 * BLOCKS) + 2 * cost(4 * OUTER) + cost(4 * PARAMETERS)
        assert part(check({"shard": 2}), "shard") == pytest.approx(expected, rel=1e-3)

    def test_replicas_of_shards(self) -> None:
        found = check({"shard": 2, "data": 2})
        # One micro-batch. Two of four ranks have 2/3 of the traffic for a message, and half the hops.
        two = lambda size, factor: cost(size * factor) - LATENCY / 2  # noqa: E731
        expected = 2 * two(2 * BLOCKS, 2 / 3) + two(4 * OUTER, 2 / 3) + two(4 * PARAMETERS, 2 / 3)
        assert part(found, "shard") == pytest.approx(expected, rel=1e-2)
        assert part(found, "data") == pytest.approx(two(4 * PARAMETERS / 2, 2 / 3), rel=1e-2)

    def test_replicas(self) -> None:
        found = check({"data": 2}, config={"parallel": {"name": "ddp"}})
        assert part(found, "data") == pytest.approx(cost(4 * PARAMETERS), rel=1e-3)

    def test_tensor_parallel_activations(self) -> None:
        # Four micro-batches of 2 x 64 positions: per layer two gathers and two scatters each of 4 bytes and of 2, and
        # around the layers two of each in 4 bytes.
        wide, narrow = cost(4 * 2 * 64 * 100), cost(2 * 2 * 64 * 100)
        expected = 4 * (4 * (4 * wide + 4 * narrow) + 4 * wide)
        assert part(check({"tensor": 2}), "tensor") == pytest.approx(expected, rel=1e-3)

    def test_parts_of_sequences(self) -> None:
        # Queries, keys, values and output, there and back, four layers and micro-batches; 32 positions in 2 bytes.
        found = check({"context": 2})
        assert part(found, "context") == pytest.approx(4 * 4 * 8 * cost(2 * 2 * 32 * 100), rel=1e-3)
        assert part(found, "shard") > 0, "parts of a sequence share the weights"
        grouped = check({"context": 2}, config={"model": {"num_key_value_heads": 2}})
        queries, keys = cost(2 * 2 * 32 * 100), cost(2 * 32 * 100)
        assert part(grouped, "context") == pytest.approx(4 * 4 * 4 * (queries + keys), rel=1e-3)

    def test_stages(self) -> None:
        found = check({"pipeline": 2})
        # Four micro-batches there and back, and once the tied embedding's gradient.
        transfers = 8 * cost(4 * 2 * 64 * 100) + cost(4 * OUTER)
        # Blocks of 12 x 100^2 weights and attention; the head is 0.8 of one. Two and 2.8, of 2.4 on average.
        block, head = 2 * 12 * 100**2 + 4 * 100 * 65 / 2, 2 * 100 * 1000
        longest = (2 * block + head) * 2 / (4 * block + head)
        compute = FLOPS / 2 / 1e10 * longest
        assert part(found, "its bubble") == pytest.approx((compute + transfers) / 4, rel=1e-3)
        both = transfers + (compute + transfers) / 4
        assert part(found, "pipeline, with its bubble") == pytest.approx(both, rel=1e-3)

    def test_a_device_that_queues_its_work_hides_collectives(self) -> None:
        hiding = replace(FIXED, hiding_compute=Range(1, 1, 1))
        slow = {"matrix_products": {"bf16": {"best_flops": 1e7}}}
        run = loaded({"shard": 2})
        both = [check_run(run, peak_record(2, **slow, collectives={"asynchronous": each}), (), hiding)
                for each in (False, True)]  # fmt: skip
        assert part(both[0], "shard") == pytest.approx(part(check({"shard": 2}), "shard"))
        assert part(both[1], "shard") == pytest.approx(0.0)

    def test_speed_of_a_run_on_one_device(self) -> None:
        work = {"seq_len": 64, "global_batch_size": 8, "micro_batch_size": 2}
        alone = make_record(on=DEVICE, step_seconds=1.0, noise=0.0, process_noise=0.0,
                            model={"parameters": PARAMETERS}, config={"model": MODEL, "workload": work})  # fmt: skip
        found = check({"shard": 2}, (LoadedRecord(Path("alone"), alone),))
        # A second a step is half of one on two devices, and so is its optimizer's share of it.
        assert part(found, "compute and optimizer") == pytest.approx(0.5, rel=1e-6)
        assert found.step.predicted.low is None, "one run has no interval"
        assert found.assumptions == {}

    def test_recomputation_repeats_the_forward_passs_collectives(self) -> None:
        once, again, half = (
            check({"tensor": 2}, config={"model": {"activation_checkpointing": each,
                                                   "activation_checkpointing_blocks": blocks}})
            for each, blocks in ((False, None), (True, None), (True, 2))
        )  # fmt: skip
        more = 4 * 4 * (2 * cost(4 * 2 * 64 * 100) + 2 * cost(2 * 2 * 64 * 100))
        assert part(again, "tensor") - part(once, "tensor") == pytest.approx(more, rel=1e-3)
        assert part(half, "tensor") - part(once, "tensor") == pytest.approx(more / 2, rel=1e-3)


class TestMeasured:
    RANKS = (
        {"exposed_communication_seconds": 0.10, "axes": {"shard": {"payload_bytes_per_step": 3_000_000,
                                                                  "exposed_communication_seconds": 0.10}}},
        {"exposed_communication_seconds": 0.06, "axes": {"shard": {"payload_bytes_per_step": 3_000_004,
                                                                  "exposed_communication_seconds": None}}},
    )  # fmt: skip

    def with_ranks(self, *, axis_is_known: bool) -> RunCheck:
        run = run_record({"shard": 2})
        known = {"axes": {"shard": {"exposed_communication_seconds": 0.06}}}
        for rank, own in zip(run["parallel"]["ranks"], self.RANKS, strict=True):
            rank.update(merged(own, known if axis_is_known else {}))
        return check_run(LoadedRecord(Path("run"), run), peak_record(2), (), FIXED)

    def test_parts_are_means_over_the_ranks(self) -> None:
        found = self.with_ranks(axis_is_known=True)
        measured = {each.name.strip(): each.measured for each in found.parts}
        assert measured["compute and optimizer"] == pytest.approx(0.25 - 0.08)
        assert measured["exposed communication"] == pytest.approx(0.08)
        assert measured["shard"] == pytest.approx(0.06)
        # What a rank puts in: half of what is gathered, and all that is scattered.
        [payload] = found.payloads
        assert payload.predicted == 4 * BLOCKS * 2 / 2 + 2 * OUTER * 4 / 2 + 4 * PARAMETERS
        assert payload.measured == 3_000_004

    def test_of_a_single_axis_is_the_total(self) -> None:
        """Records from before `axes`; a total of 0 bytes is one that nobody has counted."""
        run = run_record({"shard": 2})
        for rank in run["parallel"]["ranks"]:
            rank.update(payload_bytes_per_step=2_000.0, exposed_communication_seconds=0.05)
        found = check_run(LoadedRecord(Path("run"), run), peak_record(2), (), FIXED)
        assert found.payloads[0].measured == 2_000
        assert {each.name.strip(): each.measured for each in found.parts}["shard"] == pytest.approx(0.05)
        assert check({"shard": 2}).payloads[0].measured is None

    def test_what_one_rank_does_not_know_is_unknown(self) -> None:
        measured = {each.name.strip(): each.measured for each in self.with_ranks(axis_is_known=False).parts}
        assert measured["shard"] is None


class TestLinks:
    SWEEP = ({"bytes": 1000, "seconds": 0.1}, {"bytes": 3000, "seconds": 0.3}, {"bytes": 5000, "seconds": 0.4})

    @pytest.mark.parametrize(
        ("size", "expected"), [(1, 0.1), (1000, 0.1), (2000, 0.2), (4000, 0.35), (5000, 0.4), (10_000, 0.8)]
    )
    def test_between_the_sizes_that_were_measured(self, size: float, expected: float) -> None:
        assert interpolated_seconds(self.SWEEP, size) == pytest.approx(expected)

    def test_ranks_of_one_host_say_nothing_about_the_network(self) -> None:
        collectives = peak_record(8)["collectives"]
        inside, outside = (Exchange("tensor", "all_gather", 8, 1e6, 1, span) for span in (8, 16))
        rest = MeasuredLinks(MeasuredCollectives(collectives, 8), 8)
        one_host = MeasuredLinks(MeasuredCollectives(collectives, 8), 8, rest)
        assert (one_host.covers(inside), one_host.covers(outside)) == (True, False)
        two_hosts = MeasuredLinks(MeasuredCollectives({**collectives, "ranks_per_host": 4}, 8), 8, rest)
        assert (two_hosts.covers(inside), two_hosts.covers(outside)) == (False, True)


def test_longest_rank() -> None:
    model = {**MODEL, "num_key_value_heads": None, "intermediate_size": None, "activation": "gelu_tanh"}
    assert longest_rank(model, 64, 1) == 1.0
    assert longest_rank({**model, "vocab_size": 0}, 64, 2) == pytest.approx(1.0)
    assert longest_rank({**model, "vocab_size": 0}, 64, 3) == pytest.approx(2 * 3 / 4)
    assert longest_rank(model, 64, 5) == 1.0
    # Two stages of each rank: blocks 0 and 2-4, and 1 and 5.
    assert longest_rank({**model, "vocab_size": 0, "num_hidden_layers": 6}, 64, 2, 2, "1-1-3-1") == 4 * 2 / 6


class TestCommand:
    def check(self, folder: Path, run: dict[str, Any], peak: dict[str, Any] | None, *more: str) -> int:
        write_runs(folder / "run", [run])
        if peak is not None:
            (folder / "peaks" / "a").mkdir(parents=True)
            write_record(folder / "peaks" / "a", peak, PEAK_FILE)
        argv = ["project", "--check", str(folder / "run" / "1"), "--peak", str(folder / "peaks")]
        return main([*argv, *more])

    def test_prints_the_ratio_in_a_sentence(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(tmp_path, run_record({"shard": 2}), peak_record(2)) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "layout shard 2" in printed
        assert "measured 250 ms: ratio 0." in printed
        assert "The record has no axes" in printed

    def test_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(tmp_path, run_record({"tensor": 2}), peak_record(2), "--format", "json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["ratio"]["median"] == pytest.approx(found["step"]["predicted"]["median"] / 0.25)
        names = [each["name"] for each in found["step_parts"]]
        assert names == [
            "compute and optimizer",
            "exposed communication",
            "tensor",
        ]

    @pytest.mark.parametrize(
        ("run", "peak", "said"),
        [
            ({}, {"device": {"name": "AMD EPYC 2"}}, "on another device (AMD EPYC 2) than the run's (AMD EPYC)"),
            ({}, {"effective_settings": {"threads": 2}}, "on another threads (2) than the run's (1)"),
            ({}, {"world_size": 4}, "was measured by 4 ranks, expected 2; measure these: python -m harness torchrun"),
            ({}, {"world_size": 1, "collectives": None}, "was measured by 1 rank, expected 2"),
            (
                {},
                {"collectives": None},
                "has no collectives by size: it is of an earlier version of the harness; ",
            ),
            (
                {},
                None,
                "peaks: found no peak record; measure these: python -m harness torchrun --standalone",
            ),
            ({}, {"matrix_products": {"bf16": None}}, "has no matrix products in bf16"),
            (
                {},
                {"collectives": {"all_gather": None, "missing_reasons": {"all_gather": "not supported"}}},
                "has no all-gather that parallel.tensor needs: it lacks it (not supported); measure again",
            ),
            (
                {},
                {"collectives": {"all_gather": {"latency_seconds": 0.1, "sweep": [{"bytes": 1024, "seconds": 0.1}]}}},
                "it measured messages up to 1 KiB, which are mostly latency, and this layout's have 50 KiB",
            ),
            ({"status": "oom", "error": "no memory", "finished_steps": 40}, {}, "the run ended oom"),
            ({"device": {"emulated": True}}, {}, "its device is emulated"),
            ({"world_size": 1, "parallel": None}, {}, "it ran on one device, so that there is no layout to check"),
            ({"parallel": {"layout": None}}, {}, "has no parallel.layout"),
            ({"world_size": 4}, {}, "has a parallel.layout of 2 ranks, and 4 ranks"),
        ],
    )
    def test_what_is_missing_is_one_line(
        self,
        run: dict[str, Any],
        peak: dict[str, Any] | None,
        said: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        broken = run_record({"tensor": 2}, **run)
        if run.get("parallel") == {"layout": None}:
            del broken["parallel"]["layout"]
        peak = None if peak is None else {**peak_record(2), **merged(peak_record(2), peak)}
        assert self.check(tmp_path, broken, peak) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line

    def test_several_runs_are_one_too_many(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_runs(tmp_path / "a", [run_record({"shard": 2}), run_record({"shard": 2}, process=2)])
        assert main(["project", "--check", str(tmp_path / "a")]) == 2
        assert "holds 2 runs, expected one" in capsys.readouterr().err

    def test_an_assumption_that_changes_nothing_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.check(tmp_path, run_record({"shard": 2}), peak_record(2), "--assume", "hiding-compute=0") == 2
        assert "hiding-compute: this check does not use it" in capsys.readouterr().err

    def test_other_options_do_not_belong_to_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["project", "--check", "run", "--tensor", "2"]) == 2
        assert "--tensor: found beside --check, which takes everything from the run's record" in capsys.readouterr().err


@pytest.mark.parametrize(
    "layout",
    ["shard=2", "context=2", "tensor=2", "pipeline=2", "pipeline=2 pipeline_virtual_stages=2", "data=2"],
)
def test_payloads_are_those_of_the_engine(layout: str, tmp_path: Path) -> None:
    """Every byte that a rank hands to a collective in a step is of a term of the model, but for scalars and norms."""
    axes = [f"parallel.{part}" for part in layout.split()]
    own = ["precision=bf16", "parallel=mesh", *axes, "out=run", "workload.steps=3", "fingerprint=false",
           "workload.timing_warmup_steps=1", "workload.lr_warmup_steps=0", "workload.eval_every=0"]  # fmt: skip
    words = [word for word in WORK if word.split("=")[0] not in {each.split("=")[0] for each in own}]
    ended = end_ranks(start_ranks(2, [*words, *own], tmp_path), TIMEOUT_SECONDS)
    assert [each.code for each in ended] == [0, 0], ended[0].err + ended[1].err
    plan = plan_of_run(record(tmp_path / "run"), asynchronous=False)
    predicted = sum(each.payload_bytes for each in exchanges_of(plan, regathers=plan.pipeline == 1))
    exchanged = record(tmp_path / "run")["parallel"]["ranks"][0]["axes"]
    metered = sum(found["payload_bytes_per_step"] for axis, found in exchanged.items() if axis != "all")
    assert predicted == pytest.approx(metered, rel=0.01)
