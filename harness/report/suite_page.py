"""Report of a comparison of suites: one HTML page, verdict.json, and a report of each workload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

import harness
from harness.analysis import suite_verdict
from harness.analysis.cautions import Caution
from harness.analysis.suite_verdict import Row, SuiteComparison, to_dict
from harness.records.files import check_report_folder, write_atomically
from harness.records.load import get_path
from harness.report import content
from harness.report.draw_suite import CAPTIONS, suite_figures
from harness.report.page import CLAIM_TONES, TONES, template
from harness.report.suite_content import claim_sentence, details, intensity, note, ordered_rows, suite_rows
from harness.report.write import PAGE_FILE, VERDICT_FILE, create_report_folder, write_report
from harness.text import printable

TEMPLATE = "suite.html.j2"


def write_suite_report(found: SuiteComparison, folder: Path, commands: Sequence[str]) -> None:
    """Write the page, verdict.json, and a report of each workload that both sides ran, in folders of their names.

    Raises:
        ConfigError: the folder holds somebody else's files of the same names.
        RunFailed: the folder cannot be created, or the disk is full or not writable.
    """
    create_report_folder(folder)
    texts = {
        VERDICT_FILE: json.dumps(to_dict(found), indent=1, allow_nan=False) + "\n",
        PAGE_FILE: render_suite_page(found, commands),
    }
    check_report_folder(folder, texts, marker=VERDICT_FILE, key="workloads")
    write_atomically(folder / VERDICT_FILE, texts[VERDICT_FILE])
    for row in found.rows:
        if row.comparison is not None:
            write_report(row.comparison, folder / row.workload.name, commands)
    # Last, when everything that it refers to is there.
    write_atomically(folder / PAGE_FILE, texts[PAGE_FILE])


def render_suite_page(found: SuiteComparison, commands: Sequence[str]) -> str:
    """Return the page. The template escapes everything from records and from the command line."""
    cells = list(suite_rows(found))
    return template(TEMPLATE).render(
        title=f"{found.verdict.capitalize()}: suite {found.suite.name}",
        suite=found.suite.name,
        verdict=found.verdict,
        tone=_tone(found.verdict),
        summary=printable(found.summary).replace(" %", "\N{NO-BREAK SPACE}%"),
        sides=_sides(found),
        rows=[_row(row, each) for row, each in zip(ordered_rows(found), cells, strict=False)],
        mean=cells[-1] if found.mean is not None else None,
        note=note(found),
        details=details(found),
        pictures=[(name, *CAPTIONS[name], Markup(svg)) for name, svg in suite_figures(found).items()],
        cautions=_cautions(found),
        commands=[printable(command) for command in commands],
        version=harness.__version__,
        schema_version=suite_verdict.SCHEMA_VERSION,
        claim=claim_sentence(found),
        claim_statement=None if found.claim is None else printable(found.claim.citation),
        claim_verdict=None if found.claim_verdict is None else found.claim_verdict.verdict,
        claim_tone=None if found.claim_verdict is None else CLAIM_TONES[found.claim_verdict.verdict],
    )


def _row(row: Row, cells: Sequence[str]) -> dict[str, Any]:
    found = intensity(row)
    return {
        "name": cells[0],
        "page": f"{row.workload.name}/{PAGE_FILE}" if row.comparison is not None else None,
        "verdict": cells[1],
        "tone": _tone(cells[1]) if row.pair is not None else "care",
        "ratio": cells[2],
        "interval": cells[3],
        "repeats": cells[4],
        "intensity": "" if found is None else f"{found:,.0f}",
        "reason": printable(row.workload.reason),
    }


def _tone(verdict: str) -> str:
    return TONES.get(verdict.removesuffix(f" {suite_verdict.ON_AVERAGE}"), "bad")


def _sides(found: SuiteComparison) -> list[tuple[str, str]]:
    """Return label and device of both sides, from the first workload that both ran."""
    both = next((row.comparison for row in found.rows if row.comparison is not None), None)
    labels = (printable(found.reference), printable(found.other))
    if both is None:
        return [(label, "no workload that the other side ran too") for label in labels]
    devices = [printable(get_path(side.first, "device", "name") or "unnamed device") + ", emulated" * side.emulated
               for side in content.all_sides(both)]  # fmt: skip
    return list(zip(labels, devices, strict=True))


def _cautions(found: SuiteComparison) -> list[tuple[str, Caution]]:
    return [(row.workload.name, caution) for row in found.rows if row.comparison is not None
            for caution in content.cautions(row.comparison)]  # fmt: skip
