"""Content of every report of a comparison, as plain text that screen, page and Markdown lay out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from harness.analysis.cautions import Caution
from harness.analysis.format import interval, percent, ratio, scaled
from harness.analysis.ratio_statistics import Ratio, outliers
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import Comparison, Pair, Quantity
from harness.records.load import get_path
from harness.text import name_in_sentence, printable

PASS, FAIL, NOT_CHECKED = "pass", "FAIL", "not checked"
REFERENCE, OTHER = "reference", "other"
SINGLE_RUN = "single run"
SINGLE_RUN_NOTE = "Single run: one process on a side cannot estimate run-to-run variance."
OUTLIER_NOTE = "Outliers are marked; they count like every other process."
GATES_STOP = "Gates after a failed one are not checked, and no speed is stated."
# Cautions about speed are left out where no speed is stated, since they would reveal one.
ABOUT_SPEED = ("drift", "data wait", "outliers")


@dataclass(frozen=True)
class GateRow:
    """One gate; `details` are the lines that its summary does not repeat."""

    name: str
    state: str
    summary: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Test:
    """One test of the gate *same computation*, for the worst of all runs."""

    measures: str
    measured: str
    allowed: str
    state: str
    where: str


@dataclass(frozen=True)
class Value:
    """Value of one process."""

    text: str
    outlier: bool


@dataclass(frozen=True)
class NumberRow:
    """One quantity of a pair: means over processes with their unit, the ratio, and every process's value."""

    title: str
    unit: str
    reference_mean: str
    other_mean: str
    ratio: str
    interval: str
    repeats: str
    strength: str
    reference: tuple[Value, ...]
    other: tuple[Value, ...]


@dataclass(frozen=True)
class SideRow:
    """One side in the summary of a comparison of more than two."""

    label: str
    verdict: str
    ratio: str
    interval: str
    repeats: str


def all_sides(comparison: Comparison) -> list[RunGroup]:
    """Return the reference and every other side, in order."""
    return [comparison.reference, *(pair.other for pair in comparison.pairs)]


def measured_sides(comparison: Comparison) -> dict[int, RunGroup]:
    """Return the sides whose speed may be stated, by number: the reference is 0, if any other side has a ratio."""
    others = {number: pair.other for number, pair in enumerate(comparison.pairs, 1) if pair.quantities}
    return {0: comparison.reference, **others} if others else {}


def title(comparison: Comparison) -> str:
    """Return the report's title."""
    reference = printable(name_in_sentence(comparison.reference.label))
    if len(comparison.pairs) == 1:
        pair = comparison.pairs[0]
        return f"{pair.verdict.capitalize()}: {printable(name_in_sentence(pair.other.label))} against {reference}"
    return f"{len(comparison.pairs)} sides against {reference}"


def describe(side: RunGroup) -> str:
    """Return one line about a side: device, precision, number of processes."""
    first = side.first
    count = len(side.runs)
    emulated = ", emulated" if side.emulated else ""
    device = get_path(first, "device", "name") or f"unnamed {get_path(first, 'device', 'kind')}"
    return printable(f"{device}{emulated}, {first['config']['precision']}, {count} process{'' if count == 1 else 'es'}")


def work(comparison: Comparison) -> str:
    """Return one line about the reference's workload."""
    config = comparison.reference.first["config"]
    shape = config["workload"]
    return printable(
        f"{get_path(config, 'model', 'name')}, {config['precision']}, {shape['global_batch_size']} x "
        f"{shape['seq_len']} tokens a step, track {config['track']['name']}"
    )


def claim_sentence(comparison: Comparison, pair: Pair) -> str | None:
    """Return a pair's verdict on the claim in a sentence, or None without a claim."""
    if comparison.claim is None or pair.claim is None:
        return None
    return printable(f"Claim {comparison.claim.name}: {pair.claim.verdict}. {pair.claim.summary}")


def claim_statement(comparison: Comparison) -> str | None:
    """Return the claim with its source, or None without a claim."""
    return None if comparison.claim is None else printable(comparison.claim.citation)


def gate_rows(pair: Pair) -> list[GateRow]:
    """Return the gates that were checked."""
    return [
        GateRow(
            gate.name,
            _state(gate.passed),
            printable(gate.summary),
            tuple(printable(detail) for detail in gate.details if detail != gate.summary),
        )
        for gate in pair.gates
    ]


def _state(passed: bool | None) -> str:
    return NOT_CHECKED if passed is None else PASS if passed else FAIL


def tests(pair: Pair) -> list[Test]:
    """Return every test of the gate *same computation*."""
    return [
        Test(
            printable(finding.measures),
            "not in all records" if finding.value is None else f"{abs(finding.value):.2g}",
            f"{finding.limit:.2g}",
            _state(finding.passed),
            printable(finding.where.strip(" ()")),
        )
        for finding in pair.findings
    ]


def details_beyond_tests(pair: Pair, row: GateRow) -> list[str]:
    """Return a gate's details without those that are in the table of tests."""
    tested = {printable(finding.text) for finding in pair.findings}
    return [detail for detail in row.details if detail not in tested]


def number_rows(pair: Pair) -> list[NumberRow]:
    """Return the quantities of a pair; none where no speed may be stated."""
    return [_number_row(quantity) for quantity in pair.quantities]


def _number_row(quantity: Quantity) -> NumberRow:
    one, two = quantity.reference, quantity.other
    # Geometric means, so that their quotient is the ratio.
    means = [statistics.geometric_mean(one), statistics.geometric_mean(two)]
    texts, unit = scaled([*means, *one, *two], quantity.unit)
    odd = {*outliers(one), *(len(one) + index for index in outliers(two))}
    values = [Value(text, index in odd) for index, text in enumerate(texts[2:])]
    return NumberRow(
        quantity.title,
        unit,
        texts[0],
        texts[1],
        ratio(quantity.ratio.estimate),
        interval(quantity.ratio.low, quantity.ratio.high),
        _repeats(quantity.ratio),
        SINGLE_RUN if quantity.ratio.single_run else "",
        tuple(values[: len(one)]),
        tuple(values[len(one) :]),
    )


def _repeats(found: Ratio) -> str:
    return " and ".join(str(count) for count in found.repeats)


def notes(pair: Pair, margin: float) -> list[str]:
    """Return the notes that explain a pair's numbers."""
    rows, headline = number_rows(pair), pair.headline
    same = "time" if headline is None or headline.key == "step_time" else headline.title
    lines = [
        "Means are geometric, over processes; a ratio is the other side over the reference.",
        f"The same {same}: a ratio from {ratio(1 / (1 + margin))} to {ratio(1 + margin)} (margin {percent(margin)}).",
    ]
    if any(quantity.key == "energy_per_token" for quantity in pair.quantities):
        lines.append(f"Energy: reference {_energy_method(pair.reference)}; other {_energy_method(pair.other)}.")
    if any(value.outlier for row in rows for value in (*row.reference, *row.other)):
        lines.append(OUTLIER_NOTE)
    if any(row.strength == SINGLE_RUN for row in rows):
        lines.append(SINGLE_RUN_NOTE)
    return lines


def _energy_method(side: RunGroup) -> str:
    """Return method, source and scope of a side's energy: different methods give different figures."""
    found = [
        tuple(get_path(run.record, "telemetry", key) for key in ("method", "source", "scope")) for run in side.runs
    ]
    return " or ".join(printable(f"{method} ({source}: {scope})") for method, source, scope in dict.fromkeys(found))


def side_rows(comparison: Comparison) -> list[SideRow]:
    """Return the summary of a comparison: the reference first, then a row a side."""
    reference = comparison.reference
    rows = [SideRow(printable(reference.label), REFERENCE, "", "", str(len(reference.runs)))]
    for pair in comparison.pairs:
        found = pair.headline.ratio if pair.headline is not None else None
        rows.append(
            SideRow(
                printable(pair.other.label),
                pair.verdict + (f" ({SINGLE_RUN})" if found is not None and found.single_run else ""),
                ratio(found.estimate) if found is not None else "",
                interval(found.low, found.high) if found is not None else "",
                str(len(pair.other.runs)),
            )
        )
    return rows


def cautions(comparison: Comparison) -> list[Caution]:
    """Return every caution once, ready to print: all pairs repeat the reference's."""
    measured = {side.label for side in measured_sides(comparison).values()}
    found = dict.fromkeys(caution for pair in comparison.pairs for caution in pair.cautions)
    return [
        Caution(caution.name, printable(caution.side), printable(caution.text))
        for caution in found
        if caution.side in measured or caution.name not in ABOUT_SPEED
    ]


def processes(side: RunGroup) -> list[str]:
    """Return a short name of every process of a side: its folder's, or its whole path where those are not unique."""
    names = [run.path.parent.name for run in side.runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in side.runs]
    return [printable(name) for name in names]
