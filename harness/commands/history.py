"""`python -m harness history`: records over time, the steps in them, and what changed at each. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness import log
from harness.analysis.run_history import MIN_RECORDS, NO_REGRESSION, Series, history_to_dict, make_history
from harness.commands.arguments import Parser, add_expectation, expand_path
from harness.commands.many_records import log_left_out
from harness.errors import ExitCode, UserError
from harness.records.load import load_tree

FORMATS = ("table", "json")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "history",
        "Reads every record below the folders, however deep, and puts those of the same work, data, track, number of "
        "devices and device in the order of their start. Where the level of the step time changes, it names the step, "
        "and what the records know to have changed there: packages, driver, commit, host, settings in effect. A level "
        "that lasts for fewer than five records is taken for a burst.",
        "0 ok, 1 --expect does not hold, 2 bad usage, or no record to use",
        usage="%(prog)s DIR ... [options]",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="DIR", type=expand_path, help="folders of runs, record.json files, or bundles")
    add_expectation(parser, (NO_REGRESSION,), "exit 0 if no series ends on a level slower than the one before it")
    add("--out", type=expand_path, metavar="FILE", help="also write a page (.html) with a picture of each series")
    add("--format", choices=FORMATS, default="table", help="output format (default: table)")
    return parser


def main(argv: list[str]) -> int:
    """Print the series and their steps, and return the exit code."""
    options = build_parser().parse(argv)
    if options.out is not None and options.out.suffix != ".html":
        raise UserError(f"history: --out: found {options.out}, expected a name that ends in .html")
    runs, problems = load_tree(options.paths)
    series, left = make_history(runs)
    log_left_out(problems, left)
    if not series:
        raise UserError(f"history: {', '.join(map(str, options.paths))}: no run has a speed")
    if options.out is not None:
        # Imported here: it needs matplotlib.
        from harness.report.history_page import write_history_page

        write_history_page(series, left, options.out)
        log.info(f"written: {options.out}")
    if options.format == "json":
        print(json.dumps(history_to_dict(series), indent=1, allow_nan=False))
    else:
        # Imported here: only the screen needs rich.
        from harness.report.history_table import print_history

        print_history(series)
    slower = [each for each in series if each.is_regression]
    if options.expect is None:
        return ExitCode.OK
    shown = "not shown" if slower else "shown"
    found = f"{len(slower)} of {len(series)} series ended slower{_too_short(series)}"
    line = f"expected {options.expect}: {shown} ({found})"
    (log.error if slower else log.info)(line)
    if options.junit is not None:
        _write_junit(options.junit, series)
    return ExitCode.NOT_AS_EXPECTED if slower else ExitCode.OK


def _too_short(series: Sequence[Series]) -> str:
    """Return how many series are too short to show a step, which is no evidence of a regression."""
    count = sum(not each.is_long_enough for each in series)
    return f"; {count} not judged, with fewer than {MIN_RECORDS} records" if count else ""


def _write_junit(file: Path, series: Sequence[Series]) -> None:
    from harness.report.history_table import step_lines
    from harness.report.junit import TestCase, write_junit

    cases = [
        TestCase(f"{each.title}, {each.device}", not each.is_regression,
                 f"expected {NO_REGRESSION}: {'not shown' if each.is_regression else 'shown'}",
                 "\n".join(line for step in each.steps for line in step_lines(step)))
        for each in series
    ]  # fmt: skip
    write_junit(file, "history", cases)
