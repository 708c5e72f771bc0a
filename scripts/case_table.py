"""Runs the situations of tests/cases and prints a table of them: what a user types and what comes of it.

    python scripts/case_table.py > cases.md    # all; exit code 1 if one ends otherwise than expected
    python scripts/case_table.py tokens text   # those whose group or name begins with one of these

Each file of tests/cases holds cases of this form; all but `name` and `run` may be left out:

    - name: pointer file of Git LFS        # unique in its group, which is the file's name
      setup: printf 'version https://git-lfs...' > train.bin        # bash, in the case's own empty folder
      run: python -m harness $SMOKE data=tokens data.path=train.bin # bash, after it; its exit code and words are judged
      exit: 2                              # 0 if left out; a list allows several
      says: [train.bin, Git LFS]           # all have to occur in what `run` prints
      silent: [Traceback]                  # none may; Traceback never may
      check: test ! -e outputs             # bash, after it; has to exit with 0
      seconds: 60                          # allowed for `run`
      test: tests/test_data_tokens.py      # where the suite holds the same

$SMOKE is a CPU run of a few seconds, $ROOT the checkout. `python`, `torchrun` are those of this environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
SMOKE = "experiment=smoke backend.threads=1 workload.steps=6 workload.lr_warmup_steps=2 workload.timing_warmup_steps=2"
HEAD = """\
# Situations and their outcomes

Written by `python scripts/case_table.py`, which runs every command below in a folder of its own; the files beside this
one say what lies in that folder and what is expected.

| group | situation | command | exit code | seconds | it says | test |
|---|---|---|---|---|---|---|"""
MAX_CELL_CHARACTERS = 240


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    run: str
    setup: str = ""
    exit: int | list[int] = 0
    says: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    check: str = ""
    seconds: float = 60.0
    test: str = ""


@dataclass(frozen=True)
class Ended:
    code: int | None
    output: str
    seconds: float
    problems: list[str]


def main() -> None:
    cases = [case for case in load_cases() if chosen(case, sys.argv[1:])]
    print(HEAD)
    failed = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for case, ended in zip(cases, pool.map(run_case, cases), strict=True):
            row = [case.group, case.name, f"`{cell(case.run)}`", str(ended.code), f"{ended.seconds:.0f}",
                   cell(telling_line(case, ended)), case.test]  # fmt: skip
            print(f"| {' | '.join(row)} |", flush=True)
            failed += bool(ended.problems)
            for problem in ended.problems:
                print(f"{case.group}, {case.name}: {problem}", file=sys.stderr, flush=True)
            if ended.problems:
                print(ended.output[-3000:], file=sys.stderr, flush=True)
    print(f"{len(cases) - failed} of {len(cases)} end as expected", file=sys.stderr)
    sys.exit(failed > 0)


def load_cases() -> list[Case]:
    loaded: list[Case] = []
    for file in sorted((PROJECT / "tests" / "cases").glob("*.yaml")):
        rows: list[dict[str, Any]] = yaml.safe_load(file.read_text())
        loaded += [Case(group=file.stem, **row) for row in rows]
    return loaded


def chosen(case: Case, patterns: list[str]) -> bool:
    return not patterns or any(case.group.startswith(one) or case.name.startswith(one) for one in patterns)


def run_case(case: Case) -> Ended:
    """Run one case in an empty folder, which is removed."""
    folder = tempfile.mkdtemp(prefix="case-")
    try:
        environment = {
            **os.environ, "ROOT": str(PROJECT), "SMOKE": SMOKE, "PYTHONPATH": str(PROJECT), "COLUMNS": "200",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        }  # fmt: skip
        code, output, _ = bash(case.setup, folder, environment, 120)
        if code != 0:
            return Ended(None, output, 0, [f"its setup exits with {code}: {output[-500:]}"])
        code, output, seconds = bash(case.run, folder, environment, case.seconds)
        output = output.replace(f"{folder}/", "").replace(str(PROJECT), "$ROOT")
        problems = list(judge(case, code, output))
        if case.check:
            checked, text, _ = bash(case.check, folder, environment, 60)
            problems += [f"its check exits with {checked}: {text[-500:]}"] if checked != 0 else []
        return Ended(code, output, seconds, problems)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bash(script: str, folder: str, environment: dict[str, str], seconds: float) -> tuple[int | None, str, float]:
    """Return the exit code, None after `seconds`, what it printed and how long it took. What it started is killed."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=environment, start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        code = None
    return code, output, time.monotonic() - began


def judge(case: Case, code: int | None, output: str) -> list[str]:
    """Return how an outcome differs from what the case expects."""
    expected = case.exit if isinstance(case.exit, list) else [case.exit]
    problems = [] if code in expected else [f"exit code {code}, expected {case.exit}"]
    problems += [f"does not say {text!r}" for text in case.says if text not in output]
    return problems + [f"says {text!r}" for text in [*case.silent, "Traceback"] if text in output]


def telling_line(case: Case, ended: Ended) -> str:
    """Return the line that says most of what is expected, or the last one."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()] or ["nothing"]
    return max(reversed(lines), key=lambda line: sum(text in line for text in case.says))


def cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= MAX_CELL_CHARACTERS else f"{text[:MAX_CELL_CHARACTERS]}..."


if __name__ == "__main__":
    main()
