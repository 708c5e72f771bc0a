"""The Python API, which `from harness import ...` offers: records, comparisons and tables, without torch.

from harness import compare, load_records

a100, ascend = load_records("a100"), load_records("ascend")
found = compare(a100, ascend)
print(found.pairs[0].verdict, found.pairs[0].headline.ratio)
a100.to_pandas()[["host", "mean_step_seconds"]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.columns import row_of
from harness.analysis.run_group import RunGroup, check_each_once, load_run_groups
from harness.analysis.run_table import FOLDER, RunTable, make_table
from harness.analysis.verdict import DEFAULT_MARGIN, Comparison
from harness.analysis.verdict import compare as compare_groups
from harness.records.load import LoadedRecord, load_tree

if TYPE_CHECKING:
    import pandas

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Records(Sequence[LoadedRecord]):
    """Records of runs: a sequence of `LoadedRecord`, each with `path` and `record`, the content of its record.json."""

    label: str
    runs: tuple[LoadedRecord, ...]

    def __getitem__(self, place: Any) -> Any:
        return self.runs[place]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[LoadedRecord]:
        return iter(self.runs)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each run: its figures by name, with units in the names; None where a record has none."""
        return [row_of(run) for run in self.runs]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a data frame.

        Raises:
            ModuleNotFoundError: pandas is missing.
        """
        import pandas

        return pandas.DataFrame(self.rows())


def load_records(path: AnyPath, label: str | None = None) -> Records:
    """Read one side of a comparison: a run's folder, a folder of repeats, a record.json, or a bundle.

    Args:
        label: its name in verdicts; None: its path.

    Raises:
        RecordError: it holds no run, an unfinished one, or a damaged or edited record.
    """
    [group] = load_run_groups([Path(path)], None if label is None else [label])
    return Records(group.label, group.runs)


def load_all_records(*paths: AnyPath) -> Records:
    """Read every record below some folders, however deep; what is unfinished or damaged is left out.

    Raises:
        RecordError: a path does not exist, or there is no record below any.
    """
    runs, _ = load_tree([Path(path) for path in paths])
    return Records(", ".join(map(str, paths)), tuple(runs))


def compare(
    reference: Records, *others: Records, margin: float = DEFAULT_MARGIN, calibrations: Sequence[AnyPath] = ()
) -> Comparison:
    """Judge every other side against the reference, as `python -m harness compare` does.

    Args:
        margin: largest relative difference of step times that counts as the same.
        calibrations: files that widen the limits of the same computation.

    Raises:
        ConfigError: a calibration file cannot be used.
        RecordError: a record is given twice.
        ValueError: there is no other side, or a margin that is none.
    """
    if not others or not 0 < margin < 1:
        raise ValueError("compare: expected one or more other sides, and a margin between 0 and 1")
    sides = [RunGroup(side.label, side.runs) for side in (reference, *others)]
    check_each_once(sides)
    return compare_groups(sides, margin, [Path(path) for path in calibrations])


def table(records: Records, margin: float = DEFAULT_MARGIN, by: str = FOLDER, reference: str | None = None) -> RunTable:
    """Return records in groups of what is comparable, ranked, as `python -m harness table` does."""
    return make_table(records.runs, margin, by, reference)
