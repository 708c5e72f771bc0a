"""`python -m harness doctor`: what can run here, and for the rest what is missing and what would mend it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from typing import Any

from rich.table import Table

import harness
from harness import backends, environment
from harness.config import BackendConfig
from harness.errors import BackendUnavailable, ExitCode, UserError
from harness.report.console import PlainConsole

PROBE_TIMEOUT_SECONDS = 120
HELP = """\
usage: python -m harness doctor [BACKEND] [--json]

Prints, for every registered backend or for the one named, whether it can run here, its devices and versions, and
for one that cannot what is missing and the command that would help. With --json: one object, host and software
included, to be collected from many hosts.

exit codes: 0 the named backend (or, if none is named, at least one) is ready; 3 it is not; 2 bad usage\
"""


def main(words: list[str]) -> int:
    """Print the table, or JSON, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    names = [word for word in words if not word.startswith("-")]
    unknown = [word for word in words if word.startswith("-") and word != "--json"]
    if unknown or len(names) > 1:
        raise UserError(f"doctor: cannot read {' '.join(unknown or names)!r}, expected [BACKEND] [--json]")
    registered = list(backends.registered())
    if names and names[0] not in registered:
        raise UserError(f"doctor: no backend {names[0]!r}, expected one of: {', '.join(registered)}")
    reports = [examine(name) for name in names or registered]
    if "--json" in words:
        print(json.dumps(inventory(reports), indent=1))
    else:
        _print_table(reports)
    return ExitCode.OK if any(report["ready"] for report in reports) else ExitCode.BACKEND_UNAVAILABLE


def inventory(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the reports with what a fleet's inventory has to know of the host that they are of."""
    return {
        "schema_version": 1,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": environment.host_name(),
        "harness_version": harness.__version__,
        "environment": environment.host_facts(),
        "backends": reports,
    }


def examine(name: str) -> dict[str, Any]:
    """Return one backend's state: keys `name`, `ready`, `problems` [{what, remedy}], `device`, `versions`.

    What needs torch or the device is asked of a process of its own: a plug-in that hangs or crashes there, or
    two plug-ins that cannot live together, cannot spoil the other answers.
    """
    report: dict[str, Any] = {"name": name, "ready": False, "problems": [], "device": None, "versions": {}}
    try:
        backend = backends.create(BackendConfig(name=name))
    except BackendUnavailable as error:
        report["problems"] = [{"what": str(error), "remedy": "reinstall or remove the package that registers it"}]
        return report
    try:
        report["versions"] = backend.versions()
        problems = backend.preflight()
    except Exception as error:  # noqa: BLE001 (a backend that fails when asked must not cost the others their answers)
        report["problems"] = [
            {"what": f"its check failed: {type(error).__name__}: {error}", "remedy": "report it to its maintainers"}
        ]
        return report
    if problems:
        report["problems"] = [{"what": problem.what, "remedy": problem.remedy} for problem in problems]
        return report
    found = _probe_in_fresh_process(name)
    if "problem" in found:
        report["problems"] = [{"what": found["problem"], "remedy": found["remedy"]}]
    else:
        report.update(ready=True, device=found["device"])
    return report


def _probe_in_fresh_process(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "harness.commands.doctor", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {
            "problem": f"opening the device took more than {PROBE_TIMEOUT_SECONDS} s",
            "remedy": f"see where it hangs: {' '.join(command)}",
        }
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        said = done.stderr.strip().splitlines()
        return {
            "problem": f"opening the device ended with code {done.returncode}: {said[-1] if said else 'no message'}",
            "remedy": f"see the whole message: {' '.join(command)}",
        }


def _probe(name: str) -> dict[str, Any]:
    backend = backends.create(BackendConfig(name=name))
    try:
        backend.load()
        backend.synchronize()
        return {"device": backend.describe()}
    except UserError as error:
        return {"problem": str(error), "remedy": f"python -m harness backend={name} shows the same"}
    finally:
        backend.close()


def _print_table(reports: list[dict[str, Any]]) -> None:
    table = Table(show_lines=True)
    for heading, ratio in (
        ("backend", None),
        ("ready", None),
        ("what is there, or what is missing", 5),
        ("what would help", 4),
    ):
        table.add_column(heading, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
        if report["ready"]:
            device = report["device"]
            memory = f", {device['memory_bytes'] / 2**30:.1f} GiB" if device["memory_bytes"] else ""
            count = f"{device['count']} x " if device.get("count") else ""
            what = f"{count}{device['name']}{memory}\n{versions}"
            table.add_row(report["name"], "yes", what, "")
        else:
            problems = report["problems"]
            what = "\n".join(f"{number}. {problem['what']}" for number, problem in enumerate(problems, 1))
            remedies = "\n".join(f"{number}. {problem['remedy']}" for number, problem in enumerate(problems, 1))
            table.add_row(report["name"], "no", f"{what}\n{versions}", remedies)
    PlainConsole().print(table)


if __name__ == "__main__":
    # The child of `_probe_in_fresh_process`.
    import os

    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    print(json.dumps(_probe(sys.argv[1])))
