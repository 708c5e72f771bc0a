"""LoopObserver: the one interface through which the loop reports, between its timed intervals, never inside one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntervalReport:
    """Results of an interval, already read from the device. Lists hold one value per step."""

    phase: str
    first_step: int
    last_step: int
    steps_planned: int
    losses: list[float]
    """Nats per token."""
    gradient_norms: list[float]
    learning_rates: list[float]
    step_seconds: list[float]
    tokens: int
    """Trained on in this interval, on all devices."""
    seconds: float

    @property
    def loss(self) -> float:
        return self.losses[-1]

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds > 0 else None


class LoopObserver:
    """Observer that the loop calls between its timed intervals. Methods do nothing unless a subclass overrides them."""

    def interval_begins(self, phase: str) -> None:
        """Called before the clock starts."""

    def interval_ended(self) -> None:
        """Called as soon as the clock has stopped, before anything is read from the device."""

    def interval_done(self, report: IntervalReport) -> None:
        """Called once the interval's losses are known."""

    def evaluated(self, step: int, loss: float) -> None:
        """Called after each evaluation, with the mean held-out loss in nats per token."""

    def close(self) -> None:
        """Called once, when the loop has ended, also by an exception."""


class LoopObservers(LoopObserver):
    """Several observers as one, called in the given order."""

    def __init__(self, *observers: LoopObserver) -> None:
        self._observers = observers

    def interval_begins(self, phase: str) -> None:
        for observer in self._observers:
            observer.interval_begins(phase)

    def interval_ended(self) -> None:
        for observer in self._observers:
            observer.interval_ended()

    def interval_done(self, report: IntervalReport) -> None:
        for observer in self._observers:
            observer.interval_done(report)

    def evaluated(self, step: int, loss: float) -> None:
        for observer in self._observers:
            observer.evaluated(step, loss)

    def close(self) -> None:
        for observer in self._observers:
            observer.close()
