"""Writes tests/integration/FAULTS.md: what was done to runs, and what came of it.

    python scripts/fault_table.py > tests/integration/FAULTS.md

tests/integration/test_faults.py brings about the same faults and holds the outcome fast; this shows it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from tests.faults import FAULTS, Fault  # noqa: E402
from tests.ranks import Ended  # noqa: E402

HEAD = """\
# What was done to runs, and what came of it

Written by `python scripts/fault_table.py`; `tests/integration/test_faults.py` holds it fast. Of several processes rank
0's exit code is shown; the others end with the same one and say nothing. Long lines are cut at 240 characters.

| fault | exit code | record's status | seconds | what the user is told |
|---|---|---|---|---|"""
LONGEST = 240


def main() -> None:
    print(HEAD)
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            ended = fault.bring_about(Path(folder))
            seconds = time.monotonic() - began
            record = Path(folder) / "run" / "record.json"
            status = json.loads(record.read_text())["status"] if fault.status and record.exists() else "no record"
            said = told(fault, ended).replace(folder, "")
        print(f"| {name} | {ended[0].code} | {status} | {seconds:.0f} | {said} |", flush=True)


def told(fault: Fault, ended: list[Ended]) -> str:
    """Return the line that a user reads, without what differs from host to host."""
    errors = [line for one in ended for line in one.errors]
    lines = errors or [line for one in ended for line in (one.out + one.err).splitlines() if fault.said in line]
    said = next((line for line in lines if fault.said in line), lines[0] if lines else "nothing")
    said = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", " ".join(said.split()))
    return (said if len(said) <= LONGEST else said[:LONGEST] + "...").replace("|", "\\|")


if __name__ == "__main__":
    main()
