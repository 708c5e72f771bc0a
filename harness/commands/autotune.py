"""`experiment=autotune`: search for the micro-batch size that is fastest for a fixed global batch. No torch.

The micro-batch size is not part of the work: runs of two devices, each with its own best, are comparable.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness import log
from harness.analysis.cautions import MAX_OTHER_CPU_FRACTION
from harness.analysis.format import gibibytes, tokens_per_second
from harness.config import Config
from harness.errors import BackendUnavailable, ExitCode, Interrupted, RunFailed
from harness.records.record import RECORD_FILE, SCHEMA_VERSION, write_record
from harness.records.run_folder import AUTOTUNE_FILE, create_run_folder
from harness.report.console import WIDTH, PlainConsole
from harness.text import override_key, shell_join

# Smallest ratio of two candidates: closer ones differ by less than the noise.
MIN_RATIO = 1.5
# Relative difference of speed between fresh processes that do the same.
NOISE = 0.05
KILLED = 137
OWN_KEYS = ("autotune", "profile", "repeats", "out", "workload.micro_batch_size")


@dataclass
class Candidate:
    """One micro-batch size and the results of its runs."""

    micro_batch_size: int
    accumulation: int
    """Micro-batches in one global batch."""
    fits: bool = True
    """False if a run ran out of memory."""
    tokens_per_second: list[float] = field(default_factory=list)
    peak_allocated_bytes: int | None = None
    other_processes_cpu_fraction: float = 0.0
    """The largest of its runs."""

    @property
    def speed(self) -> float | None:
        """The median of its runs, in tokens/s; None without one."""
        return statistics.median(self.tokens_per_second) if self.fits and self.tokens_per_second else None

    def is_slower(self, best: Candidate) -> bool:
        """Return whether all its runs are slower than all of the best one's, by more than noise."""
        both = (self.tokens_per_second, best.tokens_per_second)
        return min(map(len, both)) > 1 and max(both[0]) < (1 - NOISE) * min(both[1])


def list_candidates(global_batch_size: int) -> list[Candidate]:
    """Return the divisors of the global batch, smallest first, without those too close to the one before."""
    found: list[Candidate] = []
    for size in range(1, global_batch_size + 1):
        whole = global_batch_size % size == 0
        if whole and (not found or size >= MIN_RATIO * found[-1].micro_batch_size or size == global_batch_size):
            found.append(Candidate(size, global_batch_size // size))
    return found


def run_autotune(config: Config, overrides: list[str], run_job: Callable[[list[str], Path], int]) -> int:
    """Run every candidate `repeats` times, in turn and in fresh processes; print a table and the fastest's command.

    Args:
        overrides: the command line's settings.
        run_job: runs `python -m harness` with the given overrides and run folder; returns the exit code.

    Raises:
        ConfigError: the folder holds another search.
        RunFailed: no candidate fits into the device's memory.
        BackendUnavailable: the device is an emulation, which has no speed.
    """
    folder = create_run_folder(config.out, f"autotune-{config.backend.name}-{config.model.name}")
    kept = [override for override in overrides if override_key(override) not in OWN_KEYS]
    tried = list_candidates(config.workload.global_batch_size)
    try:
        code = _try_all(tried, config.repeats, kept, folder, run_job)
    except Interrupted:
        _print_table(tried, folder)
        raise
    if code != ExitCode.OK:
        _print_table(tried, folder)
        return code
    best = fastest(tried)
    result = {
        "schema_version": SCHEMA_VERSION,
        "kind": "autotune",
        "global_batch_size": config.workload.global_batch_size,
        "candidates": [asdict(each) for each in tried],
        "fastest": best.micro_batch_size,
        "not_told_apart": [each.micro_batch_size for each in close_to(best, tried)],
    }
    write_record(folder, result, AUTOTUNE_FILE)
    _print_table(tried, folder)
    own = [override for override in kept if override != "experiment=autotune"]
    command = ["python", "-m", "harness", *own, f"workload.micro_batch_size={best.micro_batch_size}"]
    print(f"{'highest median' if close_to(best, tried) else 'fastest'}: {shell_join(command)}")
    return ExitCode.OK


def _try_all(
    tried: list[Candidate], repeats: int, overrides: list[str], folder: Path, run_job: Callable[[list[str], Path], int]
) -> int:
    """Run every candidate `repeats` times, in turn. Return OK, or the exit code of a run that failed for another reason
    than memory.
    """
    for number in range(1, repeats + 1):
        # Back and forth, so that a load that grows or fades does not favor one end.
        for candidate in tried if number % 2 else reversed(tried):
            if not candidate.fits:
                continue
            size = candidate.micro_batch_size
            run = folder / f"micro-batch-{size}" / str(number)
            log.info(f"micro-batch size {size}, run {number} of {repeats}")
            job = ["autotune=false", "profile=false", "repeats=1", f"workload.micro_batch_size={size}"]
            code = run_job([*overrides, *job], run)
            if not _add_result(candidate, code, run / RECORD_FILE):
                ended = f"autotune: the run with a micro-batch size of {size} ended with exit code {code}"
                log.error(f"{ended}; the rest is not run")
                return code
            if not candidate.fits:
                # Larger sizes need more memory.
                for larger in tried:
                    larger.fits = larger.fits and larger.micro_batch_size < size
    return ExitCode.OK


def fastest(tried: list[Candidate]) -> Candidate:
    """Return the candidate with the highest median speed.

    Raises:
        RunFailed: none fits.
    """
    fitting = [(each.speed, each) for each in tried if each.speed is not None]
    if not fitting:
        raise RunFailed(
            "autotune: not even a micro-batch size of 1 fits into the device's memory; set "
            "model.activation_checkpointing=true, shorten workload.seq_len or choose a smaller model",
            status="oom",
        )
    return max(fitting, key=lambda pair: pair[0])[1]


def close_to(best: Candidate, tried: list[Candidate]) -> list[Candidate]:
    """Return the other candidates whose runs do not show that they are slower."""
    return [each for each in tried if each is not best and each.speed is not None and not each.is_slower(best)]


def _add_result(candidate: Candidate, code: int, path: Path) -> bool:
    """Add the result of a run to its candidate; return False if the run failed for another reason than memory."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if code == ExitCode.OK and record is not None:
        if record["device"]["emulated"]:
            raise BackendUnavailable("autotune: the device is an emulation, which has no speed; run on a real device")
        candidate.tokens_per_second.append(record["timing"]["tokens_per_second"])
        candidate.peak_allocated_bytes = (record["memory"] or {}).get("peak_allocated_bytes")
        used = (record.get("contention") or {}).get("other_processes_cpu_fraction") or 0.0
        candidate.other_processes_cpu_fraction = max(candidate.other_processes_cpu_fraction, used)
        return True
    # A host that runs out of memory kills the process, which then leaves no record.
    if (record is not None and record["status"] == "oom") or (record is None and code == KILLED):
        candidate.fits = False
        return True
    return False


def _print_table(tried: list[Candidate], folder: Path) -> None:
    """Print the results of every candidate, also of an unfinished search."""
    console = PlainConsole(WIDTH)
    most = max((each.speed for each in tried if each.speed is not None), default=0.0)
    table = Table(title=f"autotune {folder}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("micro-batch size", "accumulation", "median speed", "slowest to fastest run", "of the best", "memory"):
        table.add_column(name, justify="right")
    for each in tried:
        sizes = (str(each.micro_batch_size), str(each.accumulation))
        if each.speed is None:
            table.add_row(*sizes, "not run" if each.fits else "out of memory", "", "", "")
            continue
        peak = "unknown" if each.peak_allocated_bytes is None else gibibytes(each.peak_allocated_bytes)
        spread = f"{min(each.tokens_per_second):,.0f} to {max(each.tokens_per_second):,.0f}"
        spread = "one run" if len(each.tokens_per_second) == 1 else spread
        table.add_row(*sizes, tokens_per_second(each.speed), spread, f"{each.speed / most:.3f}", peak)
    console.print(table)
    _print_doubts(tried, console)


def _print_doubts(tried: list[Candidate], console: Console) -> None:
    """Print which sizes cannot be told apart, and whether other processes took part of the host."""
    measured = [each for each in tried if each.speed is not None]
    if not measured:
        return
    best = fastest(tried)
    if close := close_to(best, tried):
        sizes = ", ".join(str(each.micro_batch_size) for each in close)
        reason = f"their runs overlap, or are within {100 * NOISE:.0f} %"
        if any(len(each.tokens_per_second) < 2 for each in (best, *close)):
            reason = "one run cannot estimate run-to-run variance"
        console.print(
            f"inconclusive between {best.micro_batch_size} and {sizes}: {reason}; try repeats=5 on an idle host"
        )
    busy = max(each.other_processes_cpu_fraction for each in measured)
    if busy > MAX_OTHER_CPU_FRACTION:
        console.print(f"caution: other processes used up to {busy:.0%} of the CPU cores during the runs")
