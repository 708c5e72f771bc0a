"""Seconds of collectives: estimated from bandwidth and latency, or taken from the measurements of a peak record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from harness.analysis.format import byte_size
from harness.analysis.projection.assumptions import DRAWS, Draws
from harness.analysis.projection.exchanges import Exchange
from harness.records.peak import bus_factor

# Beyond the largest message, seconds grow with the size if that one took at least this many times the latency.
MIN_LATENCIES = 4


class Links(Protocol):
    """Source of the seconds of collectives."""

    def covers(self, exchange: Exchange) -> bool:
        """Return whether the seconds are measured."""
        ...

    def seconds(self, exchange: Exchange) -> Draws:
        """Return the seconds of one call."""
        ...


@dataclass(frozen=True)
class MeasuredCollectives:
    """The section `collectives` of a peak record."""

    collectives: Mapping[str, Any]
    ranks: int

    @property
    def on_one_host(self) -> bool:
        return self.ranks <= self.collectives["ranks_per_host"]


@dataclass(frozen=True)
class EstimatedLinks:
    """By bandwidth, in bytes/s of a device in one direction, and the latency of a hop."""

    within_node: Draws
    across_nodes: Draws
    latency_seconds: Draws
    devices_per_node: int

    def covers(self, exchange: Exchange) -> bool:
        return False

    def seconds(self, exchange: Exchange) -> Draws:
        bandwidth = self.within_node if exchange.span <= self.devices_per_node else self.across_nodes
        if exchange.collective == "send_receive":
            return exchange.message_bytes / bandwidth + self.latency_seconds
        formula = all_reduce_seconds if exchange.collective == "all_reduce" else all_gather_seconds
        return formula(exchange.ranks, exchange.message_bytes, bandwidth, self.latency_seconds)


@dataclass(frozen=True)
class MeasuredLinks:
    """By the collectives of a peak record where they apply, else as `rest` estimates.

    Those of one host apply within a node, those of several hosts across nodes. Between other numbers of ranks, a
    collective takes as long as one with the same traffic on a rank's link (nccl-tests' bus bandwidth), and its latency
    is that of as many hops.
    """

    measured: MeasuredCollectives
    devices_per_node: int
    rest: Links | None = None
    """None: the measurements apply everywhere."""

    def covers(self, exchange: Exchange) -> bool:
        within_node = exchange.span <= self.devices_per_node
        applies = self.rest is None or within_node == self.measured.on_one_host
        return applies and self.problem(exchange) is None

    def problem(self, exchange: Exchange) -> str | None:
        """Return why the measurements do not give the seconds of a collective, or None."""
        found = self.measured.collectives[exchange.collective]
        if found is None:
            return f"lacks it ({self.measured.collectives['missing_reasons'].get(exchange.collective)})"
        last, message_bytes = found["sweep"][-1], self._message_bytes(exchange)
        if message_bytes > last["bytes"] and last["seconds"] < MIN_LATENCIES * found["latency_seconds"]:
            return (
                f"measured messages up to {byte_size(last['bytes'])}, which are mostly latency, and this layout's have "
                f"{byte_size(message_bytes)}"
            )
        return None

    def _message_bytes(self, exchange: Exchange) -> float:
        """Return the message with the same traffic between as many ranks as were measured."""
        name = exchange.collective
        return exchange.message_bytes * bus_factor(name, exchange.ranks) / bus_factor(name, self.measured.ranks)

    def seconds(self, exchange: Exchange) -> Draws:
        if not self.covers(exchange):
            assert self.rest is not None
            return self.rest.seconds(exchange)
        name, ranks = exchange.collective, self.measured.ranks
        found = self.measured.collectives[name]
        more_hops = 0.0 if name == "send_receive" else hops(exchange.ranks) / hops(ranks) - 1
        seconds = interpolated_seconds(found["sweep"], self._message_bytes(exchange))
        return np.full(DRAWS, seconds + more_hops * min(seconds, found["latency_seconds"]))


def interpolated_seconds(sweep: Sequence[Mapping[str, Any]], message_bytes: float) -> float:
    """Return the seconds of a message from those of the nearest sizes that were measured, on a straight line.

    A message below the smallest size takes as long as that; one above the largest is scaled in proportion to its size.
    """
    sizes, seconds = ([entry[key] for entry in sweep] for key in ("bytes", "seconds"))
    if message_bytes > sizes[-1]:
        return seconds[-1] * message_bytes / sizes[-1]
    return float(np.interp(message_bytes, sizes, seconds))


def hops(ranks: int) -> int:
    """Return the hops of a tree over a number of ranks."""
    return math.ceil(math.log2(ranks))


def all_reduce_seconds(count: int, size_bytes: float, bytes_per_second: Draws, latency_seconds: Draws) -> Draws:
    """Return the time of an all-reduce over `count` devices: the faster of a ring and of two trees."""
    if count < 2:
        return np.zeros(np.broadcast(bytes_per_second, latency_seconds).shape)
    ring = 2 * (count - 1) / count * size_bytes / bytes_per_second + 2 * (count - 1) * latency_seconds
    tree = 2 * size_bytes / bytes_per_second + 2 * hops(count) * latency_seconds
    return np.minimum(ring, tree)


def all_gather_seconds(count: int, size_bytes: float, bytes_per_second: Draws, latency_seconds: Draws) -> Draws:
    """Return the time of an all-gather to `size_bytes`, of a reduce-scatter from them, or of an all-to-all of them."""
    if count < 2:
        return np.zeros(np.broadcast(bytes_per_second, latency_seconds).shape)
    return (count - 1) / count * size_bytes / bytes_per_second + hops(count) * latency_seconds
