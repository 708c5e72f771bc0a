"""`python -m harness audit`: is a published table of training speeds possible, consistent, and what does it show?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from harness.analysis.audit.reading import read_rows
from harness.analysis.audit.rows import COLUMNS, MEASURED, NUMBERS, TEXTS
from harness.analysis.audit.summary import Audit, audit, to_dict
from harness.analysis.claims import Claim, find_claim
from harness.commands.arguments import Parser, expand_path
from harness.errors import ExitCode, RunFailed
from harness.records.files import refuse_foreign_report, write_atomically

FORMATS = ("table", "json")
NOT_SOUND = 1
HELP = """\
usage: python -m harness audit FILE [options]

Checks the rows of a published comparison, a YAML or CSV file: model FLOP/s against the chip's peak, the row's figures
against each other and against the other rows, what it leaves out. Each finding is impossible, inconsistent, suspicious
or unproven; a row with nothing worse than unproven is sound, or untested where no speed could be held against a peak.
Then the mean over the sound rows of each pair of chips.

options:
  --claim NAME       a claim to hold the sound rows against; python -m harness claim lists them
  --out DIR          write audit.html and audit.json there
  --expect sound     exit 1 if a row is not
  --format FORMAT    table (default) or json

columns, each of them optional; numbers without thousands separators:
{columns}

exit codes: 0 ok, 1 --expect does not hold, 2 bad usage or file, 5 the report cannot be written\
"""


def main(words: list[str]) -> int:
    """Audit, print, write the report, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP.format(columns=_columns()))
        return ExitCode.OK
    parser = Parser("audit")
    parser.add_argument("file")
    parser.add_argument("--claim")
    parser.add_argument("--out")
    parser.add_argument("--expect", choices=("sound",))
    parser.add_argument("--format", choices=FORMATS, default="table")
    options: argparse.Namespace = parser.parse_args(words)
    claim = None if options.claim is None else find_claim(options.claim)
    table = audit(read_rows(expand_path(options.file)))
    if options.out is not None:
        _write(table, claim, expand_path(options.out))
    if options.format == "json":
        print(json.dumps(to_dict(table, claim), indent=1))
    else:
        from harness.report.audit_table import print_audit

        print_audit(table, claim)
    return NOT_SOUND if options.expect and not all(row.sound for row in table.rows) else ExitCode.OK


def _write(table: Audit, claim: Claim | None, folder: Path) -> None:
    from harness.report.audit_page import render_audit

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"{folder}: cannot be made: {error.strerror or error}; choose another folder") from error
    refuse_foreign_report(folder, ("audit.json", "audit.html"), marker="audit.json", key="rows")
    write_atomically(folder / "audit.json", json.dumps(to_dict(table, claim), indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "audit.html", render_audit(table, claim))
    print(f"report: {folder / 'audit.html'}", file=sys.stderr)


def _columns() -> str:
    measured = {f"subject_{name}, reference_{name}": text for name, text in MEASURED.items()}
    assert {*TEXTS, *NUMBERS} <= COLUMNS.keys()
    return "\n".join(f"  {name}{': ' if text else ''}{text}" for name, text in {**TEXTS, **NUMBERS, **measured}.items())
