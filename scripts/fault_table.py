"""Writes tests/integration/FAULTS.md: the outcome of every fault of tests/faults.py.

    python scripts/fault_table.py > tests/integration/FAULTS.md

tests/integration/test_faults.py checks the same outcomes.
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
# Faults and their outcomes

Written by `python scripts/fault_table.py`; `tests/integration/test_faults.py` checks the outcomes. Of several processes
rank 0's exit code is shown; the others end with the same one and print nothing. Lines end after 240 characters.

| fault | exit code | record's status | seconds | message |
|---|---|---|---|---|"""
MAX_MESSAGE_CHARACTERS = 240


def main() -> None:
    print(HEAD)
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            ended = fault.run(Path(folder))
            seconds = time.monotonic() - began
            record = Path(folder) / "run" / "record.json"
            status = json.loads(record.read_text())["status"] if fault.status and record.exists() else "no record"
            text = message(fault, ended).replace(folder, "")
        print(f"| {name} | {ended[0].code} | {status} | {seconds:.0f} | {text} |", flush=True)


def message(fault: Fault, ended: list[Ended]) -> str:
    """Return the line that a user reads, without the port number."""
    errors = [line for one in ended for line in one.errors]
    lines = errors or [line for one in ended for line in (one.out + one.err).splitlines() if fault.message in line]
    line = next((line for line in lines if fault.message in line), lines[0] if lines else "nothing")
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", " ".join(line.split()))
    end = "..." if len(line) > MAX_MESSAGE_CHARACTERS else ""
    return (line[:MAX_MESSAGE_CHARACTERS] + end).replace("|", "\\|")


if __name__ == "__main__":
    main()
