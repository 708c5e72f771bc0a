"""`python -m harness compare`: compares recorded runs of two or more devices. No torch."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from harness import log
from harness.analysis.claim_verdict import judge_claim
from harness.analysis.claims import SUPPORTED, find_claim
from harness.analysis.run_group import RunGroup, load_run_groups
from harness.analysis.unit import COST, UNITS, Unit
from harness.analysis.verdict import (
    DEFAULT_MARGIN,
    EXPECTATIONS,
    Comparison,
    compare,
    exit_code,
    expectation_lines,
    to_dict,
)
from harness.commands.arguments import Parser, add_expectation, expand_path
from harness.commands.compare_suites import are_suites, judge_suites
from harness.errors import UserError
from harness.text import counted, printable, shell_join

FORMATS = ("table", "json")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "compare",
        "Judges every side against the first: the same work? the same computation? a plausible speed? how much faster? "
        "A side is a run's folder, a folder of repeats, a record.json, a bundle, or a suite's folder, of any host. "
        "With --run, compare runs the sides itself, in fresh processes and in a balanced random order; after an "
        "interruption the same command resumes.",
        "0 ok, 1 --expect does not hold, 2 bad usage or record, 4 not comparable, different computation or "
        "implausible, 5 a run failed",
        usage="%(prog)s REFERENCE OTHER ... [options]\n       %(prog)s --run 'SETTINGS' --run 'SETTINGS' ... [options]",
        notes="verdicts: equivalent, faster, slower, inconclusive, not comparable, different computation, implausible, "
        "failed, same computation (emulated devices have no speed)",
    )
    _add_options(parser)
    return parser


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("sides", nargs="*", metavar="SIDE", type=expand_path, help="the reference, then one or more others")
    add(
        "--run",
        action="append",
        default=[],
        metavar="'SETTINGS'",
        help="settings of a side to run, as on the command line of a run; two or more",
    )
    add("--repeats", type=int, default=5, metavar="N", help="processes per side with --run (default: 5)")
    add(
        "--out",
        type=expand_path,
        metavar="DIR",
        help="write report.html, report.md, verdict.json and the plots there; "
        "with --run the runs as well (default with --run: runs/<UTC time>-comparison)",
    )
    add(
        "--margin",
        type=float,
        default=DEFAULT_MARGIN,
        metavar="FRACTION",
        help=f"largest relative difference of equivalent step times (default: {DEFAULT_MARGIN:g})",
    )
    add(
        "--calibration",
        action="append",
        default=[],
        type=expand_path,
        metavar="FILE",
        help="measured differences between honest runs of your devices (scripts/bench_parity.py), which widen the "
        "limits of the same computation",
    )
    add(
        "--per",
        choices=UNITS,
        metavar="UNIT",
        help=f"{', '.join(UNITS)}: compare unequal systems by what a step takes of it; world sizes may then differ",
    )
    price = "of a device-hour, for each side (--per cost)"
    add("--price", action="append", default=[], type=float, metavar="P", help=price)
    add("--price-date", default="", metavar="DATE", help="of the prices, as in 2026-11-30")
    _add_judging_options(parser)


def _add_judging_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--label", action="append", default=[], metavar="NAME", help="name of a side, in order; one for each side")
    add(
        "--claim",
        metavar="NAME",
        help="judge a published claim by the records: supported, refuted, inconclusive or not "
        "tested; python -m harness claim lists the claims",
    )
    add_expectation(parser, EXPECTATIONS, "exit 0 if the records show it, 1 if not; supported needs --claim")
    add("--format", choices=FORMATS, default="table", help="output format (default: table)")


def main(argv: list[str]) -> int:
    """Compare, print, write the report, and return the exit code."""
    options = _parse(argv)
    if are_suites(options.sides):
        return judge_suites(options, argv, unit_of(options, len(options.sides)))
    out, paths, labels, commands = options.out, options.sides, options.label or None, []
    claim = find_claim(options.claim) if options.claim is not None else None
    if options.run:
        # Imported here, because running needs torch and Hydra, and judging does not.
        from harness.commands.interleaved_runs import run_side_by_side, side_folders

        out = run_side_by_side(options.run, options.repeats, out)
        paths = [out / name for name in side_folders(len(options.run))]
        labels = options.label or options.run
        commands = [f"python -m harness compare {shell_join(argv)}"]
    sides = load_run_groups(paths, labels)
    comparison = compare(sides, options.margin, options.calibration, unit_of(options, len(sides)))
    if claim is not None:
        comparison = judge_claim(comparison, claim)
    commands = [*commands, *(reproduction(side) for side in sides)]
    if out is not None:
        from harness.report.write import write_report

        # Before anything is printed: a reader of the output that leaves early (| head) must not prevent the report.
        write_report(comparison, out, commands)
        log.info(f"report: {out / 'report.html'}")
    _print(comparison, options.format)
    if options.expect is not None:
        results = list(expectation_lines(comparison, options.expect))
        for shown, line in results:
            # On standard error, since standard output may be JSON.
            (log.info if shown else log.error)(printable(line))
        if options.junit is not None:
            _write_junit(options.junit, comparison, results)
    return exit_code(comparison, options.expect)


def _parse(argv: list[str]) -> argparse.Namespace:
    options = build_parser().parse(argv)
    if options.run and options.sides:
        raise UserError(f"compare: found both --run and the path {str(options.sides[0])!r}, expected only one of them")
    given = options.run or options.sides
    if len(given) < 2:
        raise UserError(
            f"compare: found {counted(len(given), 'side')}, expected a reference and one or more others; "
            "python -m harness compare --help"
        )
    if options.label and len(options.label) != len(given):
        raise UserError(
            f"compare: found {len(options.label)} --label for {len(given)} sides, expected one for each side"
        )
    if (twice := next((name for name in options.label if options.label.count(name) > 1), None)) is not None:
        raise UserError(f"compare: --label: found {twice!r} twice, expected another name for each side")
    if not 0 < options.margin < 1:
        raise UserError(
            f"compare: --margin: found {options.margin:g}, expected a fraction between 0 and 1, such as 0.05"
        )
    if options.expect == SUPPORTED and options.claim is None:
        raise UserError("compare: --expect supported: found no --claim; add --claim NAME")
    if options.repeats < 1:
        raise UserError(f"compare: --repeats: found {options.repeats}, expected at least 1")
    return options


def unit_of(options: argparse.Namespace, sides: int) -> Unit | None:
    """Return the unit of `--per`.

    Raises:
        UserError: prices are missing, or belong to no unit.
    """
    if options.per is not None and options.claim is not None:
        raise UserError("compare: --per: found with --claim, which is about step times; leave one of them out")
    if options.per != COST:
        if options.price or options.price_date:
            raise UserError("compare: --price, --price-date: found without --per cost; add that, or leave them out")
        return None if options.per is None else Unit(options.per)
    known = len(options.price) == sides and all(0 < price < math.inf for price in options.price)
    if not known or not options.price_date:
        raise UserError(
            f"compare: --per cost: found {counted(len(options.price), 'price')}, dated {options.price_date!r}, "
            f"expected --price P above 0 for each of the {sides} sides, and --price-date, since prices change"
        )
    return Unit(COST, tuple(options.price), options.price_date)


def reproduction(side: RunGroup) -> str:
    """Return the command that ran a side, from its first record."""
    if "redacted" in side.first:
        return f"{side.label}: its command is not published"
    command = side.first["environment"].get("command")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        return f"{side.label}: its record holds no command"
    return shell_join(command)


def _write_junit(file: Path, comparison: Comparison, results: Sequence[tuple[bool, str]]) -> None:
    from harness.report.junit import TestCase, write_junit

    cases = [
        TestCase(f"{pair.other.label} against {pair.reference.label}", shown, line,
                 "\n".join([pair.summary, *(f"{gate.name}: {gate.summary}" for gate in pair.gates)]))
        for pair, (shown, line) in zip(comparison.pairs, results, strict=True)
    ]  # fmt: skip
    write_junit(file, "compare", cases)


def _print(comparison: Comparison, form: str) -> None:
    if form == "json":
        print(json.dumps(to_dict(comparison), indent=1))
    else:
        from harness.report.verdict_table import print_comparison

        print_comparison(comparison)
