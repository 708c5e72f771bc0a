"""`python -m harness bundle`: records in one archive for others, without what is private. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness import log
from harness.analysis.columns import folder_of
from harness.analysis.gates import single_run_problem
from harness.commands.arguments import Parser, expand_path
from harness.commands.many_records import log_left_out
from harness.errors import ExitCode, RecordError, UserError
from harness.records.bundle import BUNDLE_SUFFIX, bundle_content
from harness.records.files import write_with_folders
from harness.records.load import LoadedRecord, load_tree
from harness.records.redaction import Redaction, tag_of

FORMATS = ("table", "json")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "bundle",
        "Reads every record below the folders, however deep, leaves out what is private, and shows what is replaced "
        "and which texts stay. With --out it also writes the records into one archive, which table, history and "
        "compare read. Numbers, digests, versions, names of devices and the settings of a run stay; hosts and GPUs are "
        "numbered; paths, commands, environment variables except for known ones, and everything that this harness does "
        "not know are left out. So are runs that did not finish, or whose times or speed are impossible. Look at what "
        "stays before you add --out.",
        "0 ok, 2 bad usage, or no record to publish, 5 the archive cannot be written",
        usage="%(prog)s DIR ... [options]",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="DIR", type=expand_path, help="folders of runs, of suites, or record.json files")
    add("--out", type=expand_path, metavar="FILE", help=f"new archive to write (NAME{BUNDLE_SUFFIX})")
    add("--keep-labels", action="store_true", help="keep your names of models and workloads, of which only those of "
        "published models stay otherwise")  # fmt: skip
    add("--format", choices=FORMATS, default="table", help="output format; json shows every value (default: table)")
    return parser


def main(argv: list[str]) -> int:
    """Show what is left out and what stays, write the archive, and return the exit code."""
    options = build_parser().parse(argv)
    if options.out is not None:
        _check(options.out)
    runs, problems = load_tree(options.paths)
    redaction = Redaction(options.keep_labels, tag=tag_of([run.record for run in runs]))
    entries = defaultdict[Path, list[dict[str, Any]]](list)
    left: list[tuple[str, str]] = []
    for run in runs:
        try:
            entries[folder_of(run)].append(_public(run, redaction))
        except RecordError as error:
            left.append((str(run.path), str(error)))
    log_left_out(problems, left)
    records = [each for each in entries.values() if each]
    if not records:
        raise UserError(f"bundle: {', '.join(map(str, options.paths))}: no record can be published")
    content = bundle_content(records)
    _show(redaction, sum(map(len, records)), options.format)
    if options.out is None:
        log.info(f"nothing written; if all that stays may be published, add --out NAME{BUNDLE_SUFFIX}")
        return ExitCode.OK
    write_with_folders(options.out, content, "--out")
    log.info(f"written: {options.out} ({len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()})")
    return ExitCode.OK


def _check(file: Path) -> None:
    if file.suffix != BUNDLE_SUFFIX:
        raise UserError(f"bundle: --out: found {file}, expected a name that ends in {BUNDLE_SUFFIX}")
    if os.path.lexists(file):
        raise UserError(f"bundle: --out: {file} exists; choose another name")


def _public(run: LoadedRecord, redaction: Redaction) -> dict[str, Any]:
    if (problem := single_run_problem(run)) is not None:
        raise RecordError(problem)
    return redaction.redact(run.record)


def _show(redaction: Redaction, records: int, form: str) -> None:
    if form == "json":
        kept = {name: sorted(values) for name, values in redaction.kept.items()}
        print(json.dumps({"records": records, "replaced": redaction.replaced, "kept": kept}, indent=1, sort_keys=True))
        return
    # Imported here: only the screen needs rich.
    from harness.report.redaction_table import print_redaction

    print_redaction(redaction, records)
