"""Search for the fastest settings: candidates, what their runs show, and the answer. No torch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from harness.errors import RunFailed

# Smallest ratio of two micro-batch sizes: closer ones differ by less than the noise.
MIN_RATIO = 1.5
# Relative difference of speed between fresh processes that do the same.
NOISE = 0.05


@dataclass
class Candidate:
    """One value of a setting and the results of its runs."""

    value: Any
    fits: bool = True
    """False if a run ran out of memory."""
    exit_code: int | None = None
    """Of a run that failed for another reason."""
    tokens_per_second: list[float] = field(default_factory=list)
    peak_allocated_bytes: int | None = None
    other_processes_cpu_fraction: float = 0.0
    """The largest of its runs."""

    @property
    def runs_well(self) -> bool:
        return self.fits and self.exit_code is None

    @property
    def speed(self) -> float | None:
        """The median of its runs, in tokens/s; None without one."""
        return statistics.median(self.tokens_per_second) if self.runs_well and self.tokens_per_second else None

    def is_slower(self, best: Candidate) -> bool:
        """Return whether all its runs are slower than all of the best one's, by more than noise."""
        both = (self.tokens_per_second, best.tokens_per_second)
        return min(map(len, both)) > 1 and max(both[0]) < (1 - NOISE) * min(both[1])


@dataclass
class Question:
    """Which value of a setting is fastest, with the answers to the questions before it."""

    key: str
    candidates: list[Candidate]
    has_default: bool = True
    """True if the first candidate is in use unless another one is clearly faster."""

    @property
    def name(self) -> str:
        """The setting as folders and tables have it."""
        return self.key.split(".")[-1].replace("_size", "").replace("_", "-")

    @property
    def measured(self) -> list[Candidate]:
        return [each for each in self.candidates if each.speed is not None]

    def fastest(self) -> Candidate:
        """Return the candidate with the highest median speed.

        Raises:
            RunFailed: none fits.
        """
        fitting = [(each.speed, each) for each in self.candidates if each.speed is not None]
        if not fitting:
            raise RunFailed(
                f"autotune: no value of {self.key} lets a run fit into the device's memory; set "
                "model.activation_checkpointing=true, shorten workload.seq_len or choose a smaller model",
                status="oom",
            )
        return max(fitting, key=lambda pair: pair[0])[1]

    def close(self) -> list[Candidate]:
        """Return the candidates whose runs do not show that they are slower than the fastest."""
        best = self.fastest()
        return [each for each in self.measured if each is not best and not each.is_slower(best)]

    def answer(self) -> Candidate:
        """Return the fastest candidate, or the default if nothing shows that it is slower."""
        best, default = self.fastest(), self.candidates[0]
        keep = self.has_default and default.speed is not None and not default.is_slower(best)
        return default if keep else best


def micro_batch_sizes(global_batch_size: int) -> list[int]:
    """Return the divisors of the global batch, smallest first, without those too close to the one before."""
    found: list[int] = []
    for size in range(1, global_batch_size + 1):
        whole = global_batch_size % size == 0
        if whole and (not found or size >= MIN_RATIO * found[-1] or size == global_batch_size):
            found.append(size)
    return found
