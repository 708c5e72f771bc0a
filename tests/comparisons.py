"""Comparisons of artificial records, one for each verdict and special case of a report."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from harness.analysis.claim_verdict import judge_claim
from harness.analysis.claims import find_claim
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import Comparison, compare
from harness.report.plots import figures
from tests.records import A100, ASCEND, make_record, make_records, make_side, merged

# Text that tries to break out of a report, as a foreign record or label can hold it.
HOSTILE = (
    "<script>alert(1)</script>&\"'`|*_[x](http://evil.example)$x^$ :warning: {{ 7*7 }} \x1b[31m\u202e\ud800 --> ]]>"
)
EMULATED = merged(ASCEND, {"device": {"emulated": True, "name": "Ascend910B2 (emulated)"},
                           "backend": {"peak_lookup_key": None}})  # fmt: skip


def a100(count: int = 5, **changes: Any) -> RunGroup:
    return make_side("A100", make_records(count, on=A100, **changes))


def ascend(count: int = 5, **changes: Any) -> RunGroup:
    return make_side("Ascend 910B", make_records(count, **{"on": ASCEND, **changes}))


def equivalent() -> Comparison:
    return compare([a100(), ascend(step_seconds=0.2515)])


def slower() -> Comparison:
    """With an outlier, a drifting process, and the time to a target."""
    target = {"target_loss": 4.0}
    other = [
        make_record(on=ASCEND, config=target, process=number, step_seconds=0.36 if number == 4 else 0.3)
        for number in range(1, 8)
    ]
    return compare([a100(7, config=target), make_side("Ascend 910B", other)])


def faster() -> Comparison:
    """With the optional energy, power and phases."""
    sides = []
    for side, watts in ((a100(step_seconds=0.250), 380.0), (ascend(step_seconds=0.225), 310.0)):
        sides.append(
            RunGroup(side.label, tuple(type(run)(run.path, _with_energy(run.record, watts)) for run in side.runs))
        )
    return compare(sides)


def _with_energy(record: dict[str, Any], watts: float) -> dict[str, Any]:
    timing = record["timing"]
    mean = timing["mean_step_seconds"]
    seconds = range(int(timing["training_seconds"]))
    samples = [[float(second), watts * (0.5 if second < 4 else 1.0 + 0.02 * (second % 3 - 1))] for second in seconds]
    telemetry = {
        "joules_per_token": watts * mean / timing["tokens_per_step"],
        "samples": samples,
        "method": "counter" if watts > 350 else "sampled",
        "source": "NVML" if watts > 350 else "npu-smi",
        "scope": "the board" if watts > 350 else "the chip",
    }
    shares = {"forward": 0.3, "backward": 0.58, "optimizer": 0.08}
    phases = {"host_to_device": None, "communication": None, **{name: share * mean for name, share in shares.items()}}
    return {**record, "telemetry": telemetry, "profile": {"phases": phases}}


def inconclusive() -> Comparison:
    return compare([a100(3, process_noise=0.08), ascend(3, process_noise=0.08)])


def single_run() -> Comparison:
    return compare([a100(1), ascend(1, step_seconds=0.3)])


def not_comparable() -> Comparison:
    return compare([a100(2), ascend(2, config={"seed": 2, "workload": {"learning_rate": 1e-3}})])


def different() -> Comparison:
    return compare([a100(2), ascend(2, loss_noise=0.01)])


def implausible() -> Comparison:
    return compare([a100(2), ascend(2, step_seconds=0.01)])


def failed() -> Comparison:
    broken = make_record(on=ASCEND, process=3, status="oom", finished_steps=45,
                         error="the device ran out of memory; lower workload.micro_batch_size")  # fmt: skip
    return compare([a100(3), make_side("Ascend 910B", [*make_records(2, on=ASCEND), broken])])


def emulated() -> Comparison:
    # One process far out of line, so that a caution could give a speed away.
    records = [make_record(on=EMULATED, process=number, step_seconds=9.0 if number == 4 else 3.0)
               for number in range(1, 6)]  # fmt: skip
    return compare([a100(), make_side("emulated 910B", records)])


def three_sides() -> Comparison:
    reference = a100(environment={"git": {"dirty": True}})
    return compare([reference, ascend(step_seconds=0.3), make_side("emulated 910B", make_records(2, on=EMULATED))])


def claimed() -> Comparison:
    """With a published claim, which one side refutes and an emulated one does not test."""
    big: dict[str, Any] = {"model": {"parameters": 1_557_611_200}}
    sides = [a100(**big), ascend(step_seconds=0.3, **big),
             make_side("emulated 910B", make_records(2, on=EMULATED, **big))]  # fmt: skip
    return judge_claim(compare(sides), find_claim("iflytek-ascend910-a100"))


def hostile() -> Comparison:
    """With hostile text wherever a report shows text from records, in runs that have a ratio."""
    strange = {
        "device": {"name": HOSTILE},
        "backend": {"versions": {HOSTILE: HOSTILE}, "peak_lookup_key": HOSTILE},
        "environment": {"host": HOSTILE, "os": HOSTILE, "git": {"commit": HOSTILE, "dirty": True}},
        "contention": {"device_processes": [HOSTILE]},
    }
    # A record's text goes through JSON, where a lone surrogate is allowed.
    records = make_records(3, on=merged(ASCEND, strange))
    return compare([a100(3), make_side(HOSTILE, records, f"runs/{HOSTILE.replace('/', '')}")])


def hostile_failure() -> Comparison:
    broken = make_record(on=ASCEND, status="failed", error=HOSTILE, finished_steps=0)
    return compare([a100(1), make_side(HOSTILE, [broken])])


CASES: dict[str, Callable[[], Comparison]] = {
    case.__name__: case
    for case in (equivalent, slower, faster, inconclusive, single_run, not_comparable, different, implausible, failed,
                 emulated, three_sides, claimed, hostile, hostile_failure)
}  # fmt: skip


@cache
def case(name: str) -> Comparison:
    """Return a comparison by name, cached; nothing changes it."""
    return CASES[name]()


@cache
def pictures_of(name: str) -> dict[str, str]:
    """Return the pictures of a case, cached, since drawing is slow."""
    return figures(case(name))


def masked(text: str, comparison: Comparison) -> str:
    """Return a report without the digests that any new setting would change, for golden files."""
    sides = [comparison.reference, *(pair.other for pair in comparison.pairs)]
    for side_number, side in enumerate(sides):
        for run_number, run in enumerate(side.runs, 1):
            names = {
                f"<content of {side_number}/{run_number}>": run.record["content_sha256"],
                f"<workload of {side_number}>": run.record["workload_id"],
                f"<weights of {side_number}>": run.record["digests"]["init"],
                f"<batches of {side_number}>": run.record["digests"]["batches"],
            }
            for name, digest in names.items():
                text = text.replace(digest, name) if digest is not None else text
                text = text.replace(digest[:16], name) if digest is not None else text
    return re.sub(r"[ \t]+\n", "\n", text)
