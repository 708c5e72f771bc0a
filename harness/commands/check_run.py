"""`python -m harness project --check RECORD`: the projection against a recorded run in its own layout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.analysis.cautions import MOVES_TIMES, cautions_about
from harness.analysis.projection.assumptions import Assumptions
from harness.analysis.projection.recorded import check_recorded, check_run
from harness.analysis.run_group import load_run_groups
from harness.commands.arguments import expand_path
from harness.errors import ExitCode, RecordError, UserError
from harness.records.load import load_runs
from harness.records.peak import find_collectives


def check_record(options: argparse.Namespace, assumed: Assumptions) -> int:
    """Check the record that `--check` names, print the result, and return the exit code.

    Raises:
        RecordError: record or peak record lack something; the message says what, and how to get it.
    """
    from harness.report.run_check_table import print_run_check, run_check_to_dict
    from harness.report.summary import other_load

    path = expand_path(options.check)
    run, *others = load_runs(path)
    if others:
        raise RecordError(f"{path}: holds {len(others) + 1} runs, expected one; give the folder of one of them")
    check_recorded(run)
    peak_path = options.peak or Path(run.record["config"]["peak_dir"]).expanduser()
    peak = find_collectives(peak_path, run.record, run.record["world_size"])
    alone = load_runs(options.records) if options.records is not None else ()
    found = check_run(run, peak, alone, assumed)
    for name in (text.partition("=")[0] for text in options.assume):
        if name.replace("-", "_") not in found.assumptions:
            raise UserError(f"assume: {name}: this check does not use it; leave it out")
    sides = load_run_groups([path, *([options.records] if options.records is not None else [])])
    cautions = [
        f"{side.label}: {each.text}" for side in sides for each in cautions_about(side) if each.name in MOVES_TIMES
    ]
    cautions += [f"the peak record: {text}" for _, text in other_load(peak)]
    if options.format == "json":
        print(json.dumps(run_check_to_dict(found, cautions), indent=1))
    else:
        print_run_check(found, cautions)
    return ExitCode.OK
