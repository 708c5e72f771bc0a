"""Parser of what `npu-smi info` prints: lists of `key : value` lines and a table of chips. No torch, no CANN call.

The layouts differ by chip and release: lines come and go, values may be `NA` or `-`, a chip's number stands before or
after its values, and the board's management controller (MCU) lists its own temperature and power, which are not the
chip's. A value that a layout lacks is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.backends.sensors import Reading

# Exit codes of npu-smi without permission, or while another container holds the device.
REFUSALS = {
    "-8005": "the device may not be opened from here (its nodes or the driver's folders are not mounted, or the user "
    "is not in the group HwHiAiUser), or another container holds it",
    "-8020": "another container holds the device, or it is not mounted into this one",
}


# Columns of `npu-smi info -m`: the names of their heads without spaces and hyphens, the preferred one first.
LOGIC_HEADS = ("chiplogicid", "logicid")
COLUMNS = {
    "NPU ID": ("npuid",),
    "Chip ID": ("chipid",),
    "Chip Logic ID or Chip Phy-ID": (*LOGIC_HEADS, "chipphyid", "phyid"),
}


@dataclass(frozen=True)
class Place:
    """Address of a chip: the number of its card, its own on the card, and the one that the runtime gives it."""

    npu_id: int
    chip_id: int
    logic_id: int


def refusal(text: str) -> str | None:
    """Return the reason why npu-smi gave no answer, if its output is such an error."""
    found = re.search(r"\bret is (-\d+)", text)
    if found is None:
        return None
    return f"npu-smi ended with {found[1]}: {REFUSALS.get(found[1], 'see the driver log')}"


def parse_places(text: str) -> list[Place]:
    """Return the chips in the output of `npu-smi info -m`, without management controllers.

    Columns are found by their heads, which differ by chip and release. Where there is no logic id, the runtime numbers
    the chips in the order of their physical ids.

    Raises:
        ValueError: a column is missing.
    """
    heads: dict[str, int] = {}
    numbered: list[tuple[int, int, int]] = []
    for line in text.splitlines():
        cells = re.split(r"\s{2,}|\t", line.strip())
        names = [re.sub(r"[^a-z]", "", cell.lower()) for cell in cells]
        if "npuid" in names:
            heads = {name: number for number, name in enumerate(names)}
        elif heads and "mcu" not in names and (row := _numbers(heads, cells)) is not None:
            numbered.append(row)
    if missing := [name for name, keys in COLUMNS.items() if heads.keys().isdisjoint(keys)]:
        raise ValueError(f"npu-smi info -m: found no column {' and none '.join(missing)}, so its chips are not known")
    if heads.keys().isdisjoint(LOGIC_HEADS):
        order = sorted(number for _, _, number in numbered)
        numbered = [(npu, chip, order.index(number)) for npu, chip, number in numbered]
    return [Place(*row) for row in numbered]


def _numbers(heads: Mapping[str, int], cells: Sequence[str]) -> tuple[int, int, int] | None:
    """Return the ids of a line, or None where one is missing: a controller has a dash in its place."""
    found = []
    for keys in COLUMNS.values():
        column = next((heads[key] for key in keys if key in heads), len(cells))
        if column >= len(cells) or not cells[column].isdecimal():
            return None
        found.append(int(cells[column]))
    return found[0], found[1], found[2]


def parse_reading(text: str, chip_id: int = 0) -> Reading:
    """Return one chip's values from the output of `npu-smi info -t TOPIC -i NPU`.

    A list without chip numbers belongs to the only chip.
    """
    values: dict[str, str] = {}
    for group in _groups(text):
        if "mcu" in group.get("chip name", "").lower():
            continue
        listed_id = group.get("chip id", "")
        if not listed_id.isdecimal() or int(listed_id) == chip_id:
            values.update(group)

    def number(*names: str) -> float | None:
        return next((value for name in names if (value := _number(values.get(name, ""))) is not None), None)

    return Reading(
        power_watts=number("npu real-time power(w)", "power dissipation(w)"),
        temperature_celsius=number("npu temperature(c)", "temperature(c)"),
        clock_mhz=number("aicore curfreq(mhz)"),
        utilization_percent=number("aicore usage rate(%)"),
        clock_limit_mhz=number("aicore freq(mhz)"),
    )


def _groups(text: str) -> Iterator[Mapping[str, str]]:
    """Yield the `key : value` lines of each chip or controller: up to an empty line, or to a repeated key."""
    group: dict[str, str] = {}
    for line in text.splitlines():
        found = re.match(r"\s*([^:]+?)\s*:\s*(.*?)\s*$", line)
        # `NPU Temperature (C)` and `NPU Temperature(C)` are the same.
        key = re.sub(r"\s+\(", "(", found[1]).lower() if found else None
        if key is None or key in group:
            if group:
                yield group
            group = {}
        if found and key:
            group[key] = found[2]
    if group:
        yield group


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
