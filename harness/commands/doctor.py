"""`python -m harness doctor`: which backends can run here; for the others, what is missing and how to fix it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.table import Table

import harness
from harness import backends, environment
from harness.analysis.format import UNKNOWN
from harness.commands.arguments import Parser
from harness.config import BackendConfig
from harness.errors import BackendUnavailable, ExitCode, UserError
from harness.report.console import PlainConsole
from harness.text import utc_now

PROBE_TIMEOUT_SECONDS = 120


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "doctor",
        "Prints, for every registered backend or for BACKEND, whether it can run here, its devices and versions; for "
        "one that cannot run, what is missing and the command that fixes it.",
        "0 BACKEND is ready, or without BACKEND at least one is; 3 not ready; 2 bad usage",
    )
    parser.add_argument("backend", nargs="?", metavar="BACKEND", help="one registered backend")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with host and software")
    return parser


def main(argv: list[str]) -> int:
    """Print the table, or JSON, and return the exit code."""
    options = build_parser().parse(argv)
    environment.check_working_directory()
    registered = list(backends.registered())
    if options.backend not in (None, *registered):
        raise UserError(f"doctor: no backend {options.backend!r}, expected one of: {', '.join(registered)}")
    names = registered if options.backend is None else [options.backend]
    reports = [examine(name) for name in names]
    if options.json:
        print(json.dumps(inventory(reports), indent=1))
    else:
        _print_table(reports)
    return ExitCode.OK if any(report["ready"] for report in reports) else ExitCode.BACKEND_UNAVAILABLE


def inventory(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the reports with their host's name, hardware and software, for a fleet's inventory."""
    return {
        "schema_version": 1,
        "time": utc_now(),
        "host": environment.host_name(),
        "harness_version": harness.__version__,
        "environment": environment.describe_host(),
        "backends": reports,
    }


def examine(name: str) -> dict[str, Any]:
    """Return one backend's state: keys `name`, `ready`, `problems` [{what, remedy}], `device`, `versions`.

    A child process imports torch and opens the device: a plug-in that hangs or crashes there, or two plug-ins that
    conflict, cannot affect the other backends' reports.
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
    except Exception as error:  # noqa: BLE001 (a backend whose check fails must not affect the others)
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
            "remedy": f"run this to see where it hangs: {' '.join(command)}",
        }
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        errors = done.stderr.strip().splitlines()
        reason = errors[-1] if errors else "no message"
        return {
            "problem": f"opening the device ended with exit code {done.returncode}: {reason}",
            "remedy": f"run this to see the whole message: {' '.join(command)}",
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
        ("device and versions, or problems", 5),
        ("remedy", 4),
    ):
        table.add_column(heading, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
        if report["ready"]:
            device = report["device"]
            memory = f", {device['memory_bytes'] / 2**30:.1f} GiB" if device["memory_bytes"] else ""
            count = f"{device['count']} x " if device.get("count") else ""
            what = f"{count}{device['name'] or UNKNOWN}{memory}\n{versions}"
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
