"""Write tests/cann_emulator/TABLES.md: injected failures and nulled kernels of the emulated NPU, and their detection.

scripts/emulated_npu.sh python scripts/ascend_tables.py > tests/cann_emulator/TABLES.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from tests.emulated.failures import CASES, Case  # noqa: E402
from tests.emulated.test_nulled_kernels import SETUPS, STEPS  # noqa: E402


def main() -> None:
    print("# Failures and nulled kernels of the emulated NPU")
    print("\nWritten by `scripts/emulated_npu.sh python scripts/ascend_tables.py`.")
    print("\n## Failures\n\nA short run on a device with each failure.\n")
    print("| failure | exit code | status | error message |\n|---|---|---|---|")
    for name, case in CASES.items():
        print("| " + " | ".join(cell(text) for text in (name, *failure(case))) + " |", flush=True)
    print("\n## Nulled kernels\n")
    print(
        f"Each kernel that training launches does nothing in turn, over {STEPS} steps of up to {len(SETUPS)} trainings"
    )
    print(f"({', '.join(SETUPS)}). Unchanged, all of them equal the CPU's to the bit.\n")
    print("| kernel | detected in | by |\n|---|---|---|")
    for kernel, results in nulled().items():
        name, value = list(results.items())[-1]
        shown = value if isinstance(value, str) else f"a relative difference of {value:.1e}"
        print(f"| {kernel} | {name} | {cell('NOT DETECTED' if value == 0.0 else shown)} |")


def failure(case: Case) -> tuple[str, str, str]:
    """Run on a device with a failure and return exit code, status and error line."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "harness", *case.overrides, "out=run"]
        environment = {**os.environ, **case.variables}
        done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        record = Path(folder) / "run" / "record.json"
        status = json.loads(record.read_text())["status"] if record.exists() else "not run"
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return str(done.returncode), status, lines[-1] if lines else "nothing"


def nulled() -> dict[str, dict[str, Any]]:
    """Return the outcome of each nulled kernel, by setup."""
    from tests.emulated.training import Setup, train

    reference = {name: train("cpu", Setup(*name.split("-")), STEPS) for name in SETUPS}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(reference, file)
        file.flush()
        argv = [sys.executable, "-m", "tests.emulated.programs.nulled", file.name, str(STEPS), *SETUPS]
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def cell(text: str) -> str:
    """Return text escaped for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
