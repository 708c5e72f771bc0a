"""Content of every report of a comparison of suites, as plain text that screen, page and Markdown lay out."""

from __future__ import annotations

from collections.abc import Iterator

from harness.analysis.flops import product_intensity
from harness.analysis.format import interval, percent, ratio
from harness.analysis.suite_verdict import Row, SuiteComparison
from harness.config import product_format
from harness.text import printable

MEAN = "geometric mean"
OUTSIDE = "outside the margin"
RATIO = "ratio"
COLUMNS = (("workload", False), ("verdict", False), (RATIO, True), ("95 % interval", True),
           ("repeats", True), ("", False))  # fmt: skip


def claim_sentence(found: SuiteComparison) -> str | None:
    """Return the verdict on the claim in a sentence, or None without a claim."""
    if found.claim is None or found.claim_verdict is None:
        return None
    return printable(f"Claim {found.claim.name}: {found.claim_verdict.verdict}. {found.claim_verdict.summary}")


def ordered_rows(found: SuiteComparison) -> list[Row]:
    """Return the workloads, slowest last, and those without a ratio after them."""
    return [*found.measured, *(row for row in found.rows if row.estimate is None)]


def suite_rows(found: SuiteComparison) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each workload, in the order of `ordered_rows`, and of the mean."""
    for row in ordered_rows(found):
        yield (printable(row.workload.name), *_cells(found, row))
    if found.mean is not None:
        mean = found.mean
        yield MEAN, found.verdict, ratio(mean.estimate), interval(mean.low, mean.high), f"{mean.count}", ""


def _cells(found: SuiteComparison, row: Row) -> tuple[str, ...]:
    if row.pair is None:
        return " and ".join(f"{printable(label)}: {reason.status}" for label, reason in row.not_run), "", "", "", ""
    if row.pair.headline is None:
        return row.pair.verdict, "", "", "", ""
    one = row.pair.headline.ratio
    repeats = " and ".join(map(str, one.repeats))
    outside = "" if found.is_inside(row) else OUTSIDE
    return row.pair.verdict, ratio(one.estimate), interval(one.low, one.high), repeats, outside


def details(found: SuiteComparison) -> list[str]:
    """Return a line for each workload that did not run, or that a gate stopped."""
    lines = []
    for row in found.rows:
        lines += [f"{row.workload.name}: {label} could not run it: {reason.status}: {reason.reason}"
                  for label, reason in row.not_run]  # fmt: skip
        if row.pair is not None and row.pair.headline is None:
            lines.append(f"{row.workload.name}: {row.pair.summary}")
    return list(map(printable, lines))


def note(found: SuiteComparison) -> str:
    """Return what the ratios and the mean are."""
    weights = {row.workload.weight for row in found.rows}
    weighted = ", weighted" if len(weights) > 1 else ""
    return (
        f"A ratio is of the other side's {found.title} to the reference's; the margin is {percent(found.margin)}. The "
        f"interval of the mean{weighted} treats the workloads as a sample of all work like them: it holds their "
        "spread, and the noise of their repeats."
    )


def intensity(row: Row) -> float | None:
    """Return the FLOP per byte of a workload's products (`product_intensity`); None where a side has no record."""
    if row.pair is None:
        return None
    config = row.pair.reference.first["config"]
    shape = config["workload"]
    number_bytes = 4 if product_format(config["precision"]) == "fp32" else 2
    return product_intensity(config["model"], shape["seq_len"], shape["micro_batch_size"], number_bytes)
