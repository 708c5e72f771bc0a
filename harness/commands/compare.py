"""`python -m harness compare`: what the records of two or more devices allow to be said. Needs no torch."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from harness.analysis.claim_verdict import judge_claim
from harness.analysis.claims import SUPPORTED, find_claim
from harness.analysis.run_group import RunGroup, load_run_groups
from harness.analysis.verdict import DEFAULT_MARGIN, EXPECTATIONS, Comparison, compare, exit_code, to_dict
from harness.commands.arguments import Parser, expand_path
from harness.errors import ExitCode, UserError

FORMATS = ("table", "json")
HELP = """\
usage: python -m harness compare REFERENCE OTHER ... [options]
       python -m harness compare --run 'SETTINGS' --run 'SETTINGS' ... [--repeats 5] [options]

Judges every side against the first one: is it the same work, is it the same computation, is the speed possible, how
much faster, and what may be said. A side is a run's folder, a folder of repeats, or a record.json; records may come
from other machines. With --run the harness makes the runs itself, here, in fresh processes and in a balanced random
order; interrupted, the same command goes on where it stopped.

options:
  --run 'SETTINGS'   settings of a side to run, as on the command line of a run; two or more
  --repeats N        processes a side with --run (default 5)
  --out DIR          write report.html, report.md, verdict.json and the pictures there; with --run the runs as well
                     (default for --run: runs/<UTC time>-comparison)
  --margin FRACTION  how far apart step times may be and still be the same (default 0.05)
  --label NAME       name of a side, in order; once for each
  --claim NAME       a published claim to hold the records against, supported, refuted, inconclusive or not tested;
                     python -m harness claim lists them
  --expect WHAT      equivalent, faster, not-slower, or with --claim supported: exit 0 if the records show it, 1 if not
  --format FORMAT    table (default) or json

words: equivalent, faster, slower, inconclusive, not comparable, different computation, implausible, failed,
       same computation (emulated devices: no speed)
exit codes: 0 ok, 1 --expect does not hold, 2 bad usage or record, 4 not comparable, different computation or
            implausible, 5 a run failed\
"""


def main(words: list[str]) -> int:
    """Compare, print, write the report, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    options = _parse(words)
    out = expand_path(options.out) if options.out is not None else None
    claim = find_claim(options.claim) if options.claim is not None else None
    if options.run:
        # Here, because running needs torch and Hydra, and judging does not.
        from harness.commands.interleaved_runs import run_side_by_side, side_folders

        folder = run_side_by_side(options.run, options.repeats, out)
        out = folder
        paths = [folder / name for name in side_folders(len(options.run))]
        labels = options.label or options.run
        commands = [f"python -m harness compare {shlex.join(words)}"]
    else:
        paths = [expand_path(word) for word in options.sides]
        labels = options.label or None
        commands = []
    sides = load_run_groups(paths, labels)
    comparison = compare(sides, options.margin)
    if claim is not None:
        comparison = judge_claim(comparison, claim)
    commands = [*commands, *(reproduction(side) for side in sides)]
    if out is not None:
        from harness.report.write import write_report

        # Before anything is printed: a reader of the output who leaves early (| head) must not cost the report.
        write_report(comparison, out, commands)
        print(f"report: {out / 'report.html'}", file=sys.stderr)
    _print(comparison, options.format)
    return exit_code(comparison, options.expect)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser("compare")
    parser.add_argument("sides", nargs="*")
    parser.add_argument("--run", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    parser.add_argument("--margin", type=float, default=DEFAULT_MARGIN)
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--claim")
    parser.add_argument("--expect", choices=EXPECTATIONS)
    parser.add_argument("--format", choices=FORMATS, default="table")
    options = parser.parse_args(words)
    if options.run and options.sides:
        raise UserError(f"compare: found both --run and the path {options.sides[0]!r}, expected one or the other")
    given = options.run or options.sides
    if len(given) < 2:
        raise UserError(
            f"compare: found {len(given)} side(s), expected a reference and one or more others; "
            "python -m harness compare --help"
        )
    if options.label and len(options.label) != len(given):
        raise UserError(f"compare: found {len(options.label)} --label for {len(given)} sides, expected one for each")
    if not 0 < options.margin < 1:
        raise UserError(
            f"compare: --margin: found {options.margin:g}, expected a fraction between 0 and 1, such as 0.05"
        )
    if options.expect == SUPPORTED and options.claim is None:
        raise UserError("compare: --expect supported: found no --claim, expected the claim that is meant")
    if options.repeats < 1:
        raise UserError(f"compare: --repeats: found {options.repeats}, expected at least 1")
    return options


def reproduction(side: RunGroup) -> str:
    """Return the command that ran a side, as its first record has it."""
    command = side.first["environment"].get("command")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        return f"{side.label}: its record does not hold the command"
    return shlex.join(command)


def _print(comparison: Comparison, form: str) -> None:
    if form == "json":
        print(json.dumps(to_dict(comparison), indent=1))
    else:
        from harness.report.verdict_table import print_comparison

        print_comparison(comparison)
