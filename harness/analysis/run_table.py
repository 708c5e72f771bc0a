"""Many records in groups of what is comparable: ranked, with ratios to a reference, and outliers among peers."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.analysis.columns import COLUMNS, folder_of, row_of
from harness.analysis.gates import mixed_repeats, single_run_problem
from harness.analysis.ratio_statistics import ALPHA, Ratio, outliers
from harness.analysis.run_group import RunGroup
from harness.analysis.verdict import SAME_COMPUTATION, Pair, compare, verdict_of
from harness.records.load import LoadedRecord, get_path
from harness.text import counted

FOLDER = "folder"
# What may name the entries of a table.
LABELS = (FOLDER, "host", "device", "backend", "precision", "micro_batch_size", "git_commit", "torch_version",
          "driver_version")  # fmt: skip
# Fewer peers do not show what is usual among them.
MIN_PEERS = 5
# Error of all outliers that are named in a group together.
FLEET_ALPHA = 0.04
# Most of it is for slow ones, which a fleet is searched for.
SLOW_SHARE = 0.9
# Of step times that hardly scatter, less is unusual too, but nothing to look into.
MIN_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Entry:
    """One line of a table: the repeats of one thing."""

    side: RunGroup
    seconds: float
    """Geometric mean of the repeats' step times."""
    pair: Pair | None
    """Verdict against the group's reference; None for the reference. Its interval is not corrected for many of them."""
    ratio: Ratio | None
    """Step time over the reference's; its interval and its tests are for all comparisons of the group together."""
    usual_ratio: float | None = None
    """Step time over the median of its peers; None unless it is an outlier among them."""

    @property
    def verdict(self) -> str | None:
        """Verdict by the interval for all comparisons of the group together; None of the reference."""
        if self.pair is None or self.ratio is None:
            return None
        return self.pair.verdict if self.ratio.single_run else verdict_of(self.ratio)


@dataclass(frozen=True)
class TableGroup:
    """Entries of the same work, data, track and number of devices, fastest first."""

    title: str
    reference: str
    entries: tuple[Entry, ...]
    excluded: tuple[Pair, ...]
    """Sides of which a gate failed against the reference, and which have no speed here."""

    @property
    def outliers(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.usual_ratio is not None]


@dataclass(frozen=True)
class RunTable:
    """Everything that a table shows."""

    groups: tuple[TableGroup, ...]
    without_speed: tuple[tuple[str, str], ...]
    """Path and reason of the runs that have no step time."""


def make_table(
    runs: Sequence[LoadedRecord], margin: float, label: str = FOLDER, reference: str | None = None
) -> RunTable:
    """Return records in groups, in the order of their first run.

    Args:
        margin: as in `compare`.
        label: one of LABELS, whose value names an entry.
        reference: name of the entry to which ratios are; None: the first of each group.
    """
    groups: dict[tuple[Any, ...], dict[str, list[LoadedRecord]]] = defaultdict(lambda: defaultdict(list))
    left = []
    name_of = _namer(runs, label)
    for run in runs:
        if (reason := no_speed(run)) is not None:
            left.append((str(run.path), reason))
        else:
            groups[work_of(run)][name_of(run)].append(run)
    found = [_group([RunGroup(name, tuple(each)) for name, each in sides.items()], margin, reference)
             for sides in groups.values()]  # fmt: skip
    return RunTable(tuple(found), tuple(left))


def _namer(runs: Sequence[LoadedRecord], label: str) -> Callable[[LoadedRecord], str]:
    """Return a function that names the entry of a run."""
    if label != FOLDER:
        return lambda run: str(get_path(run.record, *COLUMNS[label]))
    folders = {id(run): folder_of(run) for run in runs}
    # Without what all have in common.
    parents = [set(folder.parents) for folder in folders.values()]
    common = max(set.intersection(*parents), key=lambda path: len(path.parts), default=None) if parents else None
    return lambda run: str(folders[id(run)] if common is None else folders[id(run)].relative_to(common))


def no_speed(run: LoadedRecord) -> str | None:
    """Return the reason for which a run has no step time to compare, or None."""
    if run.record["status"] != "ok":
        return f"ended {run.record['status']}"
    if get_path(run.record, "device", "emulated"):
        return "its device is emulated"
    # By the gates that need no second run.
    return single_run_problem(run)


def work_of(run: LoadedRecord) -> tuple[Any, ...]:
    """Return what the runs of a group have in common; the gates check it again, and the batches as far as both ran."""
    record = run.record
    return (record["workload_id"], get_path(record, "digests", "init"), get_path(record, "config", "track", "name"),
            record["world_size"])  # fmt: skip


def title_of(record: Mapping[str, Any]) -> str:
    """Return a line about the work of a run."""
    config = record["config"]
    shape = config["workload"]
    devices = counted(record["world_size"], "device")
    return (
        f"{config['model']['name']}, {config['precision']}, {shape['global_batch_size']} x {shape['seq_len']} tokens a "
        f"step, track {config['track']['name']}, {devices}, workload {record['workload_id']}"
    )


def _group(sides: Sequence[RunGroup], margin: float, reference: str | None) -> TableGroup:
    # One whose repeats are of several things is compared with nothing, and would keep out all others.
    of_one_thing = [side for side in sides if not any(mixed_repeats(side))]
    first = next((side for side in sides if side.label == reference), [*of_one_thing, *sides][0])
    others = [side for side in sides if side is not first]
    pairs = list(compare([first, *others], margin).pairs) if others else []
    measured = [pair for pair in pairs if pair.headline is not None]
    entries = [Entry(first, _mean_seconds(first), None, None)]
    for pair in measured:
        assert pair.headline is not None
        ratio = corrected(pair.headline.ratio, pair.headline.reference, pair.headline.other, margin, len(measured))
        entries.append(Entry(pair.other, _mean_seconds(pair.other), pair, ratio))
    excluded = tuple(pair for pair in pairs if pair.headline is None and pair.verdict != SAME_COMPUTATION)
    ranked = sorted(_with_outliers(entries), key=lambda entry: entry.seconds)
    return TableGroup(title_of(first.first), first.label, tuple(ranked), excluded)


def _mean_seconds(side: RunGroup) -> float:
    return statistics.geometric_mean(side.values("timing", "mean_step_seconds"))


def corrected(found: Ratio, reference: Sequence[float], other: Sequence[float], margin: float, count: int) -> Ratio:
    """Return a ratio with interval and tests at ALPHA / count: of `count` of them all hold with 95 % (Bonferroni).

    One of single processes has no variance between processes, and stays as it is.
    """
    if found.single_run or count < 2:
        return found
    from harness.analysis.ratio_statistics import ratio_of

    return replace(ratio_of(reference, other, margin, plan=False, alpha=ALPHA / count), repeats_needed=None)


def _with_outliers(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries, those marked that lie outside of what is usual among the entries of the same device."""
    by_device: dict[Any, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        by_device[get_path(entry.side.first, "device", "name")].append(place)
    found = list(entries)
    for places in by_device.values():
        if len(places) <= MIN_PEERS:
            continue
        logarithms = [math.log(entries[place].seconds) for place in places]
        for odd in outliers(logarithms, FLEET_ALPHA, SLOW_SHARE):
            usual = statistics.median(logarithms[:odd] + logarithms[odd + 1 :])
            ratio = math.exp(logarithms[odd] - usual)
            if abs(ratio - 1) > MIN_DIFFERENCE:
                found[places[odd]] = replace(entries[places[odd]], usual_ratio=ratio)
    return found


def table_rows(table: RunTable) -> list[dict[str, Any]]:
    """Return a row for each run with a speed: its figures, its entry, and the entry's ratio and rank in its group."""
    rows = []
    for number, group in enumerate(table.groups, 1):
        for rank, entry in enumerate(group.entries, 1):
            ratio = entry.ratio
            of_entry = {
                "group": number,
                "rank": rank,
                "entry": entry.side.label,
                "reference": group.reference,
                "step_time_ratio": 1.0 if ratio is None else ratio.estimate,
                "step_time_ratio_low": None if ratio is None else ratio.low,
                "step_time_ratio_high": None if ratio is None else ratio.high,
                "verdict": entry.verdict,
                "outlier": entry.usual_ratio is not None,
            }
            rows += [{**of_entry, **row_of(run)} for run in entry.side.runs]
    return rows
