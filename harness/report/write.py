"""Writer of the files of a report, each atomically, the page last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.analysis.verdict import Comparison, to_dict
from harness.errors import RunFailed
from harness.records.files import check_report_folder, write_atomically
from harness.report.markdown import render_markdown
from harness.report.page import render_page
from harness.report.plots import figures
from harness.report.svg import standalone

PAGE_FILE, MARKDOWN_FILE, VERDICT_FILE = "report.html", "report.md", "verdict.json"


def write_report(comparison: Comparison, folder: Path, commands: Sequence[str]) -> list[Path]:
    """Write the page, the Markdown with its pictures, and verdict.json; return their paths.

    An older report in the folder is replaced file by file.

    Raises:
        ConfigError: the folder holds somebody else's files of the same names.
        RunFailed: the folder cannot be created, or the disk is full or not writable.
    """
    create_report_folder(folder)
    pictures = figures(comparison)
    # First, since it marks the other files as ours for a later report.
    texts = {VERDICT_FILE: json.dumps(to_dict(comparison), indent=1, allow_nan=False) + "\n"}
    texts |= {f"{name}.svg": standalone(svg) for name, svg in pictures.items()}
    texts[MARKDOWN_FILE] = render_markdown(comparison, commands, pictures)
    texts[PAGE_FILE] = render_page(comparison, commands, pictures)
    check_report_folder(folder, texts, marker=VERDICT_FILE, key="pairs")
    return [write_atomically(folder / name, text) for name, text in texts.items()]


def create_report_folder(folder: Path) -> None:
    """Create the folder of a report, if it does not exist.

    Raises:
        RunFailed: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"{folder}: cannot be created: {error.strerror or error}; choose another folder") from error
