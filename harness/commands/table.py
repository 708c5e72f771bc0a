"""`python -m harness table`: many records as one ranked table. No torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness import log
from harness.analysis.run_table import FOLDER, LABELS, RunTable, make_table, table_rows
from harness.analysis.verdict import DEFAULT_MARGIN
from harness.commands.arguments import Parser, expand_path
from harness.commands.many_records import log_left_out
from harness.errors import ExitCode, UserError
from harness.records.load import load_tree
from harness.text import did_you_mean

FORMATS = ("table", "json", "csv")
FILES = (".html", ".csv", ".parquet", ".json")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "table",
        "Reads every record below the folders, however deep, and ranks what is comparable: runs of the same work, "
        "data, track and number of devices share a group. Ratios are to the group's reference, with intervals that "
        "hold for all of a group together. Entries whose step time is unusual among those of the same device are "
        "named. What is unfinished or damaged is left out, with a line that says so.",
        "0 ok, 2 bad usage, or no record to use",
        usage="%(prog)s DIR ... [options]",
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="DIR",
        type=expand_path,
        help="folders of runs, record.json files, or bundles",
    )
    by = f"what names an entry: {', '.join(LABELS)} (default: its folder, without the repeat)"
    add("--by", choices=LABELS, default=FOLDER, metavar="WHAT", help=by)
    add("--reference", metavar="NAME", help="the entry to which ratios are (default: the first of each group)")
    add("--margin", type=float, default=DEFAULT_MARGIN, metavar="FRACTION", help="as of compare")
    add("--out", action="append", default=[], type=expand_path, metavar="FILE",
        help="also write a page (.html), or a row for each run (.csv, .parquet, .json); may be repeated")  # fmt: skip
    add("--format", choices=FORMATS, default="table", help="output format (default: table)")
    return parser


def main(argv: list[str]) -> int:
    """Print the table, write the files, and return the exit code."""
    options = build_parser().parse(argv)
    _check(options)
    runs, problems = load_tree(options.paths)
    table = make_table(runs, options.margin, options.by, options.reference)
    names = [entry.side.label for group in table.groups for entry in group.entries]
    if options.reference is not None and options.reference not in names:
        hint = did_you_mean(options.reference, names)
        raise UserError(f"table: --reference: found {options.reference!r}, expected the name of an entry{hint}")
    log_left_out(problems, table.without_speed)
    for file in options.out:
        _write(table, file)
        log.info(f"written: {file}")
    _print(table, options.format)
    return ExitCode.OK


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.margin < 1:
        raise UserError(f"table: --margin: found {options.margin:g}, expected a fraction between 0 and 1, such as 0.05")
    for file in options.out:
        if file.suffix not in FILES:
            raise UserError(f"table: --out: found {file}, expected a name that ends in {', '.join(FILES)}")


def _write(table: RunTable, file: Path) -> None:
    # Imported here: each needs packages of its own.
    from harness.report.run_table_files import write_table

    write_table(table, file)


def _print(table: RunTable, form: str) -> None:
    if form == "json":
        print(json.dumps(table_rows(table), indent=1, allow_nan=False))
    elif form == "csv":
        from harness.report.run_table_files import csv_text

        print(csv_text(table), end="")
    else:
        from harness.report.run_table import print_run_table

        print_run_table(table)
