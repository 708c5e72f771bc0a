"""Memory of a planned run: of the largest rank of each stage, and of the device that it has to fit into."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class PassMemory:
    """Memory of a training step of at most two micro-batches, measured on fake tensors. All in bytes."""

    activations: int
    """Left by a forward pass for its backward pass: of interleaved stages, the mean."""
    first_in_flight: int
    """Forward passes whose activations existed during the first backward pass."""
    peak_of_first: int
    """Most at once until the end of the first backward pass."""
    peak_of_next: int | None
    """Most at once in the passes after that, with one forward pass in flight; None: there were none."""
    peak_of_update: int
    """Most at once during the optimizer's update."""


@dataclass(frozen=True)
class StageMemory:
    """Memory of the largest rank of one place in the pipeline; a model without a pipeline has one place."""

    stage: int
    """The first of its stages, if they are interleaved."""
    blocks: int
    parameters: int
    """Elements on this rank."""
    weight_bytes: int
    gradient_bytes: int
    """After they are summed over the ranks, when the optimizer uses them."""
    moment_bytes: int
    """Optimizer state."""
    passes: PassMemory
    in_flight: int
    """Forward passes whose activations are kept at once: of interleaved stages, each passes a micro-batch."""
    in_flight_later: int
    """The same during the second backward pass, by when the gradients of a micro-batch exist as well."""
    buffer_bytes: int
    """Of a pipeline: buffers for what other stages send, beyond those of the micro-batches that were measured; and what
    PyTorch holds until it is sent."""

    @property
    def activation_bytes(self) -> int:
        return self.in_flight * self.passes.activations

    @property
    def peak_bytes(self) -> int:
        """Most bytes at once, in the passes or in the update."""
        each, passes = self.passes.activations, self.passes
        peaks = [passes.peak_of_update, passes.peak_of_first + (self.in_flight - passes.first_in_flight) * each]
        if passes.peak_of_next is not None:
            peaks.append(passes.peak_of_next + (self.in_flight_later - 1) * each)
        return self.buffer_bytes + max(peaks)

    @property
    def other_bytes(self) -> int:
        """Rest of the peak: weights and gradients that are gathered, buffers, temporary tensors."""
        named = self.weight_bytes + self.gradient_bytes + self.moment_bytes + self.activation_bytes
        return max(0, self.peak_bytes - named)


def passes_in_flight(schedule: str, rank: int, size: int, virtual_stages: int, micro_batches: int) -> int:
    """Return the number of forward passes whose activations a rank of a pipeline keeps at once.

    GPipe keeps all (Huang et al. 2019). 1F1B keeps one for each stage from this one on (Narayanan et al. 2019), zero
    bubble, whose gradients of weights come late, one for each stage (Qi et al. 2023, ZB-H1). A rank with interleaved
    stages first passes a round of micro-batches, about one a rank, through each of its stages but the last. Beside them
    1F1B keeps two for each rank after this one and one more (Narayanan et al. 2021), zero bubble one for each rank.
    """
    if size == 1:
        return 1
    every = virtual_stages * micro_batches
    if virtual_stages > 1:
        rounds = (virtual_stages - 1) * round_size(size, micro_batches)
        most = {"1f1b": rounds + 2 * (size - rank - 1) + 1, "zero_bubble": rounds + size}
    else:
        most = {"1f1b": size - rank, "zero_bubble": size}
    return min(every, most.get(schedule, every))


def round_size(size: int, micro_batches: int) -> int:
    """Return the number of micro-batches that pass one of a rank's interleaved stages before they pass the next."""
    return micro_batches // max(1, micro_batches // size)


@dataclass(frozen=True)
class RunPlan:
    """Planned memory of a run."""

    model: str
    layout: str
    devices: int
    precision: str
    micro_batches: int
    """Of one optimizer step on one device."""
    micro_batch_size: int
    seq_len: int
    recomputed_blocks: int
    """Blocks whose activations are recomputed in the backward pass."""
    device_bytes: int
    """Memory of a device."""
    stages: tuple[StageMemory, ...]
    seconds: float
    """That the planning took."""
    host_bytes: int
    """Memory that the planning took on the host."""

    @property
    def largest_stage(self) -> StageMemory:
        """The stage whose rank needs most."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)

    @property
    def free_bytes(self) -> int:
        """Memory of the device that the largest rank leaves; negative: that it lacks."""
        return self.device_bytes - self.largest_stage.peak_bytes

    @property
    def fits(self) -> bool:
        return self.free_bytes >= 0
