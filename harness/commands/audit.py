"""`python -m harness audit`: checks of a published table of training speeds."""

from __future__ import annotations

import json
from pathlib import Path

from harness import log
from harness.analysis.audit.reading import read_rows
from harness.analysis.audit.rows import COLUMNS, MEASURED, NUMBERS, TEXTS
from harness.analysis.audit.summary import Audit, audit, to_dict
from harness.analysis.claims import Claim, find_claim
from harness.commands.arguments import Parser, add_expectation, expand_path
from harness.errors import ExitCode, RunFailed
from harness.records.files import check_report_folder, write_atomically

FORMATS = ("table", "json")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "audit",
        "Checks the rows of a published comparison, a YAML or CSV file: model FLOP/s against the chip's peak, the "
        "figures of a row against each other and against the other rows, and what a row leaves out. Each finding is "
        "impossible, inconsistent, suspicious or unproven, or a note of what held. A row with nothing worse than "
        "unproven is sound, or untested if no speed could be compared with a peak. Then the mean over the sound rows "
        "of each pair of chips. A row with a mistake in it is left out and named.",
        "0 ok, 1 --expect does not hold, 2 bad usage or file, 5 the report cannot be written",
        notes=f"columns, all optional, numbers without thousands separators:\n{_columns()}",
    )
    parser.add_argument("file", metavar="FILE", type=expand_path, help="a YAML or CSV file of published rows")
    parser.add_argument("--claim", metavar="NAME", help="a claim to judge by the sound rows")
    parser.add_argument("--out", metavar="DIR", type=expand_path, help="write audit.html and audit.json there")
    add_expectation(parser, ("sound",), "exit 1 if a row is not sound, untested or left out")
    parser.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")
    return parser


def main(argv: list[str]) -> int:
    """Audit, print, write the report, and return the exit code."""
    options = build_parser().parse(argv)
    claim = None if options.claim is None else find_claim(options.claim)
    table = audit(*read_rows(options.file))
    if options.out is not None:
        _write(table, claim, options.out)
    if options.format == "json":
        print(json.dumps(to_dict(table, claim), indent=1))
    else:
        from harness.report.audit_table import print_audit

        print_audit(table, claim)
    if options.junit is not None:
        _write_junit(options.junit, table)
    sound = all(row.sound for row in table.rows) and not table.unread
    return ExitCode.NOT_AS_EXPECTED if options.expect and not sound else ExitCode.OK


def _write(table: Audit, claim: Claim | None, folder: Path) -> None:
    from harness.report.audit_page import render_audit

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"{folder}: cannot be created: {error.strerror or error}; choose another --out") from error
    check_report_folder(folder, ("audit.json", "audit.html"), marker="audit.json", key="rows")
    write_atomically(folder / "audit.json", json.dumps(to_dict(table, claim), indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "audit.html", render_audit(table, claim))
    log.info(f"report: {folder / 'audit.html'}")


def _write_junit(file: Path, table: Audit) -> None:
    from harness.report.junit import TestCase, write_junit

    cases = [
        TestCase(row.row.name, row.sound, f"expected sound: {'shown' if row.sound else 'not shown'}",
                 "\n".join(f"{finding.severity}: {finding.what}; {finding.why}" for finding in row.findings))
        for row in table.rows
    ]  # fmt: skip
    unread = [TestCase(line.split(":", 1)[0], shown=False, message="expected sound: left out", details=line)
              for line in table.unread]  # fmt: skip
    write_junit(file, "audit", [*cases, *unread])


def _columns() -> str:
    measured = {f"subject_{name}, reference_{name}": text for name, text in MEASURED.items()}
    assert {*TEXTS, *NUMBERS} <= COLUMNS.keys()
    return "\n".join(f"  {name}{': ' if text else ''}{text}" for name, text in {**TEXTS, **NUMBERS, **measured}.items())
