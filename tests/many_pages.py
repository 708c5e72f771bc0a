"""Pages about many records, with hostile text wherever one shows text from records: a suite, a table, a history."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness.analysis.run_history import make_history
from harness.analysis.run_table import make_table
from harness.analysis.suite_verdict import Row, judge_rows
from harness.analysis.verdict import compare
from harness.records.load import LoadedRecord
from harness.records.suite_folder import OUT_OF_MEMORY, NotRun
from harness.report.history_page import render_history_page
from harness.report.run_table_files import render_table_page
from harness.report.suite_page import render_suite_page
from harness.suites import Suite, Workload
from tests.comparisons import HOSTILE
from tests.records import A100, ASCEND, make_record, make_side, merged

STRANGE = {
    "device": {"name": HOSTILE},
    "backend": {"versions": {HOSTILE: HOSTILE, "driver": HOSTILE}},
    "environment": {"host": HOSTILE, "git": {"commit": HOSTILE}},
}
# The names of workloads are those of folders, and of a fixed form.
RATIOS = {"dense": 1.0, "long-sequences": 0.81, "large-vocabulary": 1.07, "wide": 0.93, "tiny-batch": 1.18}


def suite() -> str:
    rows = []
    for number, (name, ratio) in enumerate(RATIOS.items()):
        config = {"workload": {"seq_len": 128 * 2**number}, "model": {"max_position_embeddings": 8192}}
        sides = [
            make_side(label, [make_record(on=merged(on, changes), config=config, process=first + index,
                                          step_seconds=seconds) for index in range(3)])
            for label, on, changes, first, seconds in (
                ("a100", A100, {}, 10 * number, 0.25), (HOSTILE, ASCEND, STRANGE, 1000 + 10 * number, 0.25 * ratio)
            )
        ]  # fmt: skip
        rows.append(Row(Workload(name, ("experiment=smoke",), f"a reason {HOSTILE}", 1.0), compare(sides)))
    missing = Workload("half", ("precision=fp16",), "fp16", 1.0)
    rows.append(Row(missing, None, ((HOSTILE, NotRun(OUT_OF_MEMORY, HOSTILE)),)))
    workloads = tuple(row.workload for row in rows)
    return render_suite_page(judge_rows(Suite("card", HOSTILE, workloads), ("a100", HOSTILE), rows, 0.05), [HOSTILE])


def table() -> str:
    runs = [loaded(f"fleet/node{host}/{repeat}", on=merged(A100, {"environment": {"host": f"node{host}"}}),
                   process=10 * host + repeat, step_seconds=0.25 * (1.06 if host == 5 else 1.0))
            for host in range(12) for repeat in (1, 2, 3)]  # fmt: skip
    strange = HOSTILE.replace("/", "")
    runs += [loaded(f"{strange}/{repeat}", on=merged(A100, STRANGE), process=900 + repeat) for repeat in (1, 2, 3)]
    runs.append(loaded(strange, on=A100, process=990, status="oom", error=HOSTILE, finished_steps=5))
    return render_table_page(make_table(runs, 0.05))


def history() -> str:
    runs = [loaded(f"nightly/{day}", on=A100, process=day, step_seconds=0.25) for day in range(40)]
    changed = merged(A100, {key: value for key, value in STRANGE.items() if key != "device"})
    runs += [loaded(f"{HOSTILE.replace('/', '')}/{day}", on=changed, process=day, step_seconds=0.27)
             for day in range(40, 60)]  # fmt: skip
    runs.append(loaded("nightly/x", on=A100, process=99, status="oom", error=HOSTILE, finished_steps=5))
    return render_history_page(*make_history(runs))


def loaded(folder: str, **arguments: Any) -> LoadedRecord:
    return LoadedRecord(Path(folder) / "record.json", make_record(**arguments))


PAGES: dict[str, Callable[[], str]] = {each.__name__: each for each in (suite, table, history)}


@cache
def many_page(name: str) -> str:
    """Return a page by name, cached."""
    return PAGES[name]()
