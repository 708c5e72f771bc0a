"""Is a run that goes on here getting further? For container health checks and liveness probes. No torch.

Every process that trains leaves a heartbeat: a small file on this host, renewed while its steps go on. A run is hung
when its heartbeat is ten times older than its longest pause so far explains; a slow one is not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from harness.errors import ExitCode, UserError
from harness.training.monitoring.heartbeat import heartbeat_folder, read_heartbeats

HUNG = 1
HELP = """\
usage: python -m harness health [--json]

Says of every run of this user on this host, or in this container, whether it still gets further. A run counts as hung
when nothing has advanced for parallel.timeout_seconds and for ten times its longest pause so far; before the end of its
first step, which may have to be compiled, after an hour.

exit codes: 0 every run gets further, or there is none, or it cannot be told; 1 one is hung; 2 bad usage\
"""


def main(words: list[str], clock: Callable[[], float] = time.monotonic) -> int:
    """Print a line a run, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    if set(words) - {"--json"}:
        raise UserError(f"health: cannot read {' '.join(words)!r}, expected [--json]")
    try:
        heartbeats = read_heartbeats(heartbeat_folder())
    except OSError as error:
        # A run can have left no sign there either, and said so. Not to be able to tell is no reason to end it.
        print(f"cannot tell: {error}; name a folder of this user in TMPDIR (in a container: --tmpfs /tmp)")
        return ExitCode.OK
    now = clock()
    if "--json" in words:
        print(
            json.dumps(
                [{**asdict(each), "silent_seconds": each.silence(now), "hung": each.hung(now)} for each in heartbeats]
            )
        )
    elif not heartbeats:
        print("no run under way")
    else:
        for each in heartbeats:
            state = "HUNG" if each.hung(now) else each.phase
            where = f"{each.folder or 'a run without a folder yet'} (pid {each.pid})"
            print(
                f"{state}: {where}, advanced {each.advances} times, the last {each.silence(now):.0f} s ago; "
                f"{each.allowed_silence_seconds:.0f} s are allowed"
            )
    return HUNG if any(each.hung(now) for each in heartbeats) else ExitCode.OK
