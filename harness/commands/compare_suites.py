"""`python -m harness compare` of two suites."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness import log
from harness.analysis.claim_verdict import judge_suite
from harness.analysis.claims import SUPPORTED, find_claim
from harness.analysis.suite_verdict import SuiteComparison, compare_suites, holds, to_dict
from harness.analysis.unit import Unit
from harness.analysis.verdict import (
    DIFFERENT,
    FAILED,
    IMPLAUSIBLE,
    NOT_COMPARABLE,
)
from harness.errors import ExitCode, UserError
from harness.records.suite_folder import SuiteFolder, is_suite_folder, read_suite_folder
from harness.suites import suite_names
from harness.text import counted, printable, shell_join


def are_suites(paths: Sequence[Path]) -> bool:
    """Return whether the sides of a comparison are suites.

    Raises:
        UserError: only some are.
    """
    found = [path for path in paths if is_suite_folder(path)]
    if found and len(found) < len(paths):
        alone = next(path for path in paths if path not in found)
        raise UserError(f"compare: {found[0]} holds a suite, and {alone} does not; give two suites, or two runs")
    return bool(found)


def judge_suites(options: argparse.Namespace, argv: Sequence[str], unit: Unit | None) -> int:
    """Compare two suites, print the verdict, write the report, and return the exit code."""
    if len(options.sides) != 2:
        raise UserError(f"compare: found {counted(len(options.sides), 'suite')}, expected a reference and one other")
    labels = options.label or [str(path) for path in options.sides]
    sides = [read_suite_folder(path) for path in options.sides]
    found = compare_suites(sides, labels, options.margin, options.calibration, unit)
    if options.claim is not None:
        claim = find_claim(options.claim)
        found = replace(found, claim=claim, claim_verdict=judge_suite(claim, found))
    if options.out is not None:
        from harness.report.suite_page import write_suite_report

        again = [_command(side) for side in sides]
        write_suite_report(found, options.out, [*again, f"python -m harness compare {shell_join(argv)}"])
        log.info(f"report: {options.out / 'report.html'}")
    if options.format == "json":
        print(json.dumps(to_dict(found), indent=1, allow_nan=False))
    else:
        # Imported here: only the screen needs rich.
        from harness.report.suite_verdict_table import print_suite_comparison

        print_suite_comparison(found)
    shown = True
    if options.expect is not None:
        shown = holds(found, options.expect)
        claimed = found.claim_verdict if options.expect == SUPPORTED else None
        verdict = found.verdict if claimed is None else claimed.verdict
        line = f"expected {options.expect}: {'shown' if shown else 'not shown'} ({verdict})"
        (log.info if shown else log.error)(printable(line))
        if options.junit is not None:
            from harness.report.junit import TestCase, write_junit

            rows = [f"{row.workload.name}: {row.pair.summary}" for row in found.rows if row.pair is not None]
            details = "\n".join([found.summary, *rows])
            write_junit(options.junit, "compare", [TestCase(found.title, shown, line, details)])
    return _exit_code(found, shown=shown)


def _command(side: SuiteFolder) -> str:
    launcher = [f"launcher={shlex.join(side.launcher)}"] if side.launcher else []
    words = ["suite", side.suite.name, *side.settings, *launcher, f"repeats={side.repeats}", f"out={side.path}"]
    command = f"python -m harness {shell_join(words)}"
    return command if side.suite.name in suite_names() else f"{command}  # with its own file in place of its name"


def _exit_code(found: SuiteComparison, *, shown: bool) -> int:
    if found.verdict == FAILED:
        return ExitCode.RUN_FAILED
    if found.verdict in (DIFFERENT, IMPLAUSIBLE, NOT_COMPARABLE):
        return ExitCode.NOT_COMPARABLE
    return ExitCode.OK if shown else ExitCode.NOT_AS_EXPECTED
