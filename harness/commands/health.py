"""`python -m harness health`: is a run on this host making progress? For health checks and liveness probes. No torch.

Every process that trains writes a heartbeat file on this host and renews it as its steps are done. A run is hung when
it has been silent for ten times its longest pause so far; a slow run is not.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from harness.commands.arguments import Parser
from harness.errors import ExitCode
from harness.training.monitoring.heartbeat import heartbeat_folder, read_heartbeats


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "health",
        "Prints, for every run of this user on this host or in this container, the time since its last progress and "
        "the limit. A run is hung when it has made no progress for parallel.timeout_seconds and for ten times its "
        "longest pause so far; before the end of the first step, which may be compiled, when it made none for an hour.",
        "0 every run makes progress, or none is running, or heartbeats cannot be read; 1 a run is hung; 2 bad usage",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object for each run")
    return parser


def main(argv: list[str]) -> int:
    """Print a line for each run, and return the exit code."""
    options = build_parser().parse(argv)
    try:
        heartbeats = read_heartbeats(heartbeat_folder())
    except OSError as error:
        # A run cannot have written its heartbeat there either, and has warned. That is no reason to restart it.
        print(
            f"heartbeats cannot be read: {error}; name a folder of this user in TMPDIR (in a container: --tmpfs /tmp)"
        )
        return ExitCode.OK
    now = time.monotonic()
    if options.json:
        print(
            json.dumps(
                [
                    {**asdict(each), "silent_seconds": each.silence_seconds(now), "hung": each.is_hung(now)}
                    for each in heartbeats
                ]
            )
        )
    elif not heartbeats:
        print("no run is running")
    else:
        for each in heartbeats:
            state = "HUNG" if each.is_hung(now) else each.phase
            where = f"{each.folder or 'a run without a folder yet'} (pid {each.pid})"
            print(
                f"{state}: {where}, last progress {each.silence_seconds(now):.0f} s ago "
                f"(limit {each.allowed_silence_seconds:.0f} s)"
            )
    return ExitCode.NOT_AS_EXPECTED if any(each.is_hung(now) for each in heartbeats) else ExitCode.OK
