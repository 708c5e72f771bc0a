"""Files of a table of many records: a page that can be sorted, and a row for each run as CSV, Parquet or JSON."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

import harness
from harness.analysis.columns import COLUMNS as RECORD_COLUMNS
from harness.analysis.columns import FIRST_COLUMN, LAST_LOSS
from harness.analysis.run_table import RunTable, TableGroup, table_rows
from harness.errors import UserError
from harness.records.files import write_with_folders
from harness.report.page import template
from harness.report.run_table_content import COLUMNS, cells, notes, outlier_sentences
from harness.text import counted, printable

TEMPLATE, SCRIPT = "run_table.html.j2", "sort.js"


def write_table(table: RunTable, file: Path) -> None:
    """Write a file in the form that its name asks for: .html, .csv, .parquet or .json.

    Raises:
        UserError: pyarrow is missing.
        RunFailed: the disk is full or not writable.
    """
    contents: dict[str, Callable[[RunTable], bytes]] = {
        ".html": lambda found: render_table_page(found).encode(),
        ".csv": lambda found: csv_text(found).encode(),
        ".json": lambda found: (json.dumps(table_rows(found), indent=1, allow_nan=False) + "\n").encode(),
        ".parquet": lambda found: _parquet(found, file),
    }
    write_with_folders(file, contents[file.suffix](table), "--out")


def csv_text(table: RunTable) -> str:
    """Return a row for each run, with a heading."""
    rows = table_rows(table)
    stream = io.StringIO()
    names = list(rows[0]) if rows else [FIRST_COLUMN, *RECORD_COLUMNS, LAST_LOSS]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A spreadsheet takes what begins so for a formula.
    return printable(f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value)


def _parquet(table: RunTable, file: Path) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{file}: writing Parquet needs pyarrow; pip install pyarrow, or write .csv") from error
    content = io.BytesIO()
    rows = [{name: printable(value) if isinstance(value, str) else value for name, value in row.items()}
            for row in table_rows(table)]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    return content.getvalue()


def render_table_page(table: RunTable) -> str:
    """Return the page. The template escapes everything from records; its only script sorts tables."""
    script = files("harness.report").joinpath(SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = sum(len(entry.side.runs) for group in table.groups for entry in group.entries)
    return template(TEMPLATE).render(
        title=f"{counted(runs, 'run')} in {counted(len(table.groups), 'group')}",
        groups=[_group(group) for group in table.groups],
        columns=COLUMNS,
        left_out=[printable(f"{path}: {reason}") for path, reason in table.without_speed],
        script=Markup(script),
        script_digest=digest,
        version=harness.__version__,
    )


def _group(group: TableGroup) -> dict[str, Any]:
    odd = {id(entry) for entry in group.outliers}
    return {
        "title": printable(group.title),
        "outliers": outlier_sentences(group),
        "notes": notes(group),
        # What a column is sorted by, beside what it shows.
        "rows": [
            (
                [(text, key) for text, key in zip(cells(group, entry, rank), _keys(entry, rank), strict=True)],
                id(entry) in odd,
            )
            for rank, entry in enumerate(group.entries, 1)
        ],
    }


def _keys(entry: Any, rank: int) -> tuple[float | None, ...]:
    found = entry.ratio
    ratio = 1.0 if found is None else found.estimate
    speed = -entry.seconds
    return rank, None, None, len(entry.side.runs), entry.seconds, speed, ratio, ratio, None
