"""`experiment=autotune`: which micro-batch size trains a fixed global batch fastest on one device. No torch.

The micro-batch size is no part of the work, so two devices may each use their own best, and are then still comparable.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from harness import log
from harness.config import Config
from harness.errors import BackendUnavailable, ExitCode, Interrupted, RunFailed
from harness.records.record import RECORD_FILE, SCHEMA_VERSION, write_record
from harness.records.run_folder import AUTOTUNE_FILE, create_run_folder
from harness.report.console import WIDTH, PlainConsole
from harness.analysis.format import gibibytes, tokens_per_second

# Candidates lie at least so far apart: closer ones differ by less than the noise.
STEP = 1.5
# Fresh processes that do the same differ by as much.
NOISE = 0.05
KILLED = 137
OWN_WORDS = ("autotune", "profile", "repeats", "out", "workload.micro_batch_size")


@dataclass
class Candidate:
    """One micro-batch size, and what its runs gave."""

    micro_batch_size: int
    accumulation: int
    """Micro-batches for one global batch."""
    fits: bool = True
    """False if a run of it ended for want of memory."""
    tokens_per_second: list[float] = field(default_factory=list)
    peak_allocated_bytes: int | None = None

    @property
    def speed(self) -> float | None:
        """The median over its runs, in tokens/s; None if it has none."""
        return statistics.median(self.tokens_per_second) if self.fits and self.tokens_per_second else None


def candidates(global_batch_size: int) -> list[Candidate]:
    """Return the divisors of the global batch, smallest first, those too close to the one before left out."""
    found: list[Candidate] = []
    for size in range(1, global_batch_size + 1):
        whole = global_batch_size % size == 0
        if whole and (not found or size >= STEP * found[-1].micro_batch_size or size == global_batch_size):
            found.append(Candidate(size, global_batch_size // size))
    return found


def run_autotune(config: Config, overrides: list[str], run_job: Callable[[list[str], Path], int]) -> int:
    """Run every candidate `repeats` times, in turn and in fresh processes; print the table and the fastest one's words.

    Args:
        run_job: runs `python -m harness` with the words and the run's folder that it is given; returns the exit code.

    Raises:
        ConfigError: the folder holds another search.
        RunFailed: no candidate fits into the memory.
        BackendUnavailable: the device is an emulation, which has no speed.
    """
    folder = create_run_folder(config.out, f"autotune-{config.backend.name}-{config.model.name}")
    words = [word for word in overrides if _key(word) not in OWN_WORDS]
    tried = candidates(config.workload.global_batch_size)
    try:
        code = _try_all(tried, config.repeats, words, folder, run_job)
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
    }
    write_record(folder, result, AUTOTUNE_FILE)
    _print_table(tried, folder)
    own = [word for word in words if word != "experiment=autotune"]
    command = ["python", "-m", "harness", *own, f"workload.micro_batch_size={best.micro_batch_size}"]
    print(f"fastest: {shlex.join(command)}")
    return ExitCode.OK


def _try_all(
    tried: list[Candidate], repeats: int, words: list[str], folder: Path, run_job: Callable[[list[str], Path], int]
) -> int:
    """Run every candidate so often, in turn. Return OK, or the exit code of a run that failed otherwise than for want
    of memory.
    """
    for number in range(1, repeats + 1):
        for candidate in tried:
            if not candidate.fits:
                continue
            size = candidate.micro_batch_size
            run = folder / f"micro-batch-{size}" / str(number)
            log.info(f"micro-batch size {size}, run {number} of {repeats}")
            job = ["autotune=false", "profile=false", "repeats=1", f"workload.micro_batch_size={size}"]
            code = run_job([*words, *job], run)
            if not _take(candidate, code, run / RECORD_FILE):
                said = f"autotune: the run with a micro-batch size of {size} ended with exit code {code}"
                log.error(f"{said}; the rest is not run")
                return code
            if not candidate.fits:
                # What is larger needs more.
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


def _key(word: str) -> str:
    return word.lstrip("+").split("=", 1)[0]


def _take(candidate: Candidate, code: int, path: Path) -> bool:
    """Note what a run gave; False if it ended otherwise than well or for want of memory."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if code == ExitCode.OK and record is not None:
        if record["device"]["emulated"]:
            raise BackendUnavailable("autotune: the device is an emulation, whose speed says nothing of any device")
        candidate.tokens_per_second.append(record["timing"]["tokens_per_second"])
        candidate.peak_allocated_bytes = (record["memory"] or {}).get("peak_allocated_bytes")
        return True
    # A host that runs out of memory kills the process, which then leaves no record; nobody else does, as a rule.
    if (record is not None and record["status"] == "oom") or (record is None and code == KILLED):
        candidate.fits = False
        return True
    return False


def _print_table(tried: list[Candidate], folder: Path) -> None:
    """Print what every candidate gave, however far the search came."""
    console = PlainConsole(WIDTH)
    most = max((each.speed for each in tried if each.speed is not None), default=0.0)
    table = Table(title=f"autotune {folder}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("micro-batch size", "accumulation", "speed", "of the fastest", "peak memory"):
        table.add_column(name, justify="right")
    close = []
    for each in tried:
        sizes = (str(each.micro_batch_size), str(each.accumulation))
        if each.speed is None:
            table.add_row(*sizes, "not run" if each.fits else "out of memory", "", "")
            continue
        peak = "unknown" if each.peak_allocated_bytes is None else gibibytes(each.peak_allocated_bytes)
        table.add_row(*sizes, tokens_per_second(each.speed), f"{each.speed / most:.3f}", peak)
        if most > each.speed >= (1 - NOISE) * most:
            close.append(str(each.micro_batch_size))
    console.print(table)
    if close:
        said = f"within {100 * NOISE:.0f} % of the fastest, which is noise: {', '.join(close)}; repeats=5 tells more"
        console.print(said)
