"""Table of the texts that a bundle leaves out of records and of those that stay, on the terminal."""

from __future__ import annotations

from harness.records.redaction import REDACTED, Redaction
from harness.report.console import WIDTH, PlainConsole, key_value_table
from harness.text import counted, shortened

MAX_VALUES, MAX_CHARACTERS = 4, 60


def print_redaction(redaction: Redaction, records: int) -> None:
    """Print by field what was replaced, then the texts that stay: some values of each, and the number of the others."""
    console = PlainConsole(WIDTH)
    replaced = [
        (name, _listed([f"{_short(old)} -> {_short(new)}" if new != REDACTED else _short(old)
                        for old, new in values.items()]))
        for name, values in sorted(redaction.replaced.items())
    ]  # fmt: skip
    console.print(key_value_table(replaced, f"left out of {counted(records, 'record')}, or replaced:"))
    console.print()
    kept = [(name, _listed([_short(value) for value in sorted(values)]))
            for name, values in sorted(redaction.kept.items())]  # fmt: skip
    console.print(key_value_table(kept, "texts that stay, beside times, digests and settings with fixed words:"))


def _listed(texts: list[str]) -> str:
    more = len(texts) - MAX_VALUES
    return "; ".join(texts[:MAX_VALUES]) + (f"; and {more} more" if more > 0 else "")


def _short(text: str) -> str:
    return shortened(text, MAX_CHARACTERS)
