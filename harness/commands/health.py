"""Is a run that goes on here getting further? For container health checks and liveness probes. No torch.

Every process that trains leaves a pulse: a small file on this host, renewed while its steps go on. A run is hung when
its pulse is older than anything that it has shown so far can explain, ten times over; a slow one is not.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import ExitCode, UserError

# Of the longest pause so far, how many times as long a silence may be.
PATIENCE = 10.0
HUNG = 1
HELP = """\
usage: python -m harness health [--json]

Says of every run of this user on this host, or in this container, whether it still gets further. A run counts as hung
when nothing has advanced for parallel.timeout_seconds and for ten times its longest pause so far; before the end of its
first step, which may have to be compiled, after an hour.

exit codes: 0 every run gets further, or there is none, or it cannot be told; 1 one is hung; 2 bad usage\
"""


@dataclass(frozen=True)
class Pulse:
    """The state of one process that trains, as it last said it."""

    pid: int
    started: str
    """When the process began, as the kernel counts: numbers of processes are used again."""
    folder: str
    phase: str
    advances: int
    """Steps, evaluations and other stages that it has got through."""
    advanced_at: float
    """When it last did, seconds on the host's steady clock."""
    allowed_silence_seconds: float

    def silence(self, now: float) -> float:
        """Return for how long nothing has been heard."""
        return max(0.0, now - self.advanced_at)

    def hung(self, now: float) -> bool:
        return self.silence(now) > self.allowed_silence_seconds


def pulse_folder() -> Path:
    """Return where this user's runs leave their pulses, made if need be.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"training-harness-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # In a folder that all may write to, anybody could have been first.
    found = folder.lstat()
    if found.st_uid != os.getuid() or folder.is_symlink() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not this user's own")
    return folder


def started(pid: int) -> str | None:
    """Return when a process began, in the kernel's words, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything; the 22nd field is the time.
    return text.rpartition(")")[2].split()[19]


def living_pulses(folder: Path) -> list[Pulse]:
    """Return the pulses of processes that are there still, by number."""
    found = []
    for file in folder.glob("*.json"):
        try:
            pulse = Pulse(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if started(pulse.pid) == pulse.started:
            found.append(pulse)
        else:
            with suppress(OSError):
                file.unlink()
    return sorted(found, key=lambda pulse: pulse.pid)


def main(words: list[str], clock: Callable[[], float] = time.monotonic) -> int:
    """Print a line a run, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    if set(words) - {"--json"}:
        raise UserError(f"health: cannot read {' '.join(words)!r}, expected [--json]")
    try:
        pulses = living_pulses(pulse_folder())
    except OSError as error:
        # A run can have left no sign there either, and said so. Not to be able to tell is no reason to end it.
        print(f"cannot tell: {error}; name a folder of this user in TMPDIR (in a container: --tmpfs /tmp)")
        return ExitCode.OK
    now = clock()
    if "--json" in words:
        print(
            json.dumps(
                [{**asdict(each), "silent_seconds": each.silence(now), "hung": each.hung(now)} for each in pulses]
            )
        )
    elif not pulses:
        print("no run under way")
    else:
        for each in pulses:
            state = "HUNG" if each.hung(now) else each.phase
            where = f"{each.folder or 'a run without a folder yet'} (pid {each.pid})"
            print(
                f"{state}: {where}, advanced {each.advances} times, the last {each.silence(now):.0f} s ago; "
                f"{each.allowed_silence_seconds:.0f} s are allowed"
            )
    return HUNG if any(each.hung(now) for each in pulses) else ExitCode.OK
