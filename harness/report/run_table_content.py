"""Content of a table of many records, as plain text that screen and page lay out."""

from __future__ import annotations

from harness.analysis.format import amount, interval, ratio, significant
from harness.analysis.run_table import Entry, TableGroup
from harness.records.load import get_path
from harness.text import counted, printable

COLUMNS = (("", True), ("entry", False), ("device", False), ("runs", True), ("step time", True), ("tokens/s", True),
           ("ratio", True), ("interval", True), ("verdict", False))  # fmt: skip


def cells(group: TableGroup, entry: Entry, rank: int) -> tuple[str, ...]:
    """Return the cells of an entry, in the order of COLUMNS."""
    side, found = entry.side, entry.ratio
    tokens = get_path(side.first, "timing", "tokens_per_step")
    return (
        str(rank),
        printable(side.label),
        printable(get_path(side.first, "device", "name") or "unnamed"),
        str(len(side.runs)),
        amount(entry.seconds, "s"),
        "" if tokens is None else f"{tokens / entry.seconds:,.0f}",
        "reference" if found is None else ratio(found.estimate),
        "" if found is None else interval(found.low, found.high),
        entry.verdict or "",
    )


def outlier_sentences(group: TableGroup) -> list[str]:
    """Return a sentence for each entry that is unusual among its peers."""
    found = []
    for entry in group.outliers:
        assert entry.usual_ratio is not None
        device = get_path(entry.side.first, "device", "name")
        peers = sum(get_path(other.side.first, "device", "name") == device for other in group.entries) - 1
        share, word = abs(entry.usual_ratio - 1), "slower" if entry.usual_ratio > 1 else "faster"
        among = f"{counted(peers, 'peer')} ({device or 'unnamed device'})"
        percent = significant(float(f"{100 * share:.2g}"))
        found.append(printable(f"{entry.side.label} is {percent} % {word} than its {among}"))
    return found


def notes(group: TableGroup) -> list[str]:
    """Return what the ratios of a group are, and which sides a gate kept out."""
    count = sum(entry.ratio is not None for entry in group.entries)
    lines = []
    if count:
        together = "" if count == 1 else f" for all {count} together (Bonferroni)"
        lines.append(f"Ratios are of step times, to {printable(group.reference)}; intervals hold with 95 %{together}.")
    if any(entry.ratio is not None and entry.ratio.single_run for entry in group.entries):
        lines.append("Intervals of single runs leave out run-to-run variance.")
    lines += [f"left out: {printable(pair.summary)}" for pair in group.excluded]
    return lines
