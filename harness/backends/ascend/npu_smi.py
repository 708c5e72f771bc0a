"""What `npu-smi info` prints, as values. It has no other output than these tables and lists. No torch, no CANN call.

The layouts differ by chip and by release: columns come and go, values may be `NA` or `-`, a chip's number stands before
or after its values, and the board's management controller (MCU) lists a temperature and a power of its own, which are
not the chip's. What a layout does not say is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

NOTHING = frozenset({"", "-", "--", "NA", "N/A"})
# `npu-smi` fails with one of these codes where it is not let in, or where another container holds the device.
REFUSALS = {
    "-8005": "the device may not be opened from here (its nodes or the driver's folders are not mounted, or the user "
    "is not in the group HwHiAiUser), or another container holds it",
    "-8020": "another container holds the device, or it is not mounted into this one",
}


@dataclass(frozen=True)
class ChipRow:
    """One chip in the table of `npu-smi info`: two lines of it."""

    npu_id: int
    name: str
    health: str | None
    power_watts: float | None
    temperature_celsius: float | None
    chip_id: int | None = None
    bus_id: str | None = None
    aicore_percent: float | None = None
    hbm_used_mb: int | None = None
    hbm_total_mb: int | None = None


@dataclass(frozen=True)
class ChipReading:
    """What `npu-smi info -t TOPIC -i NPU` says of one chip."""

    power_watts: float | None = None
    temperature_celsius: float | None = None
    aicore_percent: float | None = None
    clock_mhz: float | None = None
    rated_clock_mhz: float | None = None
    hbm_total_mb: int | None = None
    hbm_usage_percent: float | None = None
    health: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a chip is: its card's number and its own on the card; and the number by which the runtime counts it."""

    npu_id: int
    chip_id: int
    logic_id: int


def refusal(text: str) -> str | None:
    """Return why npu-smi gave no answer, if that is what it printed."""
    found = re.search(r"\bret is (-\d+)", text)
    if found is None:
        return None
    return f"npu-smi ended with {found[1]}: {REFUSALS.get(found[1], 'see the driver log')}"


def parse_table(text: str) -> list[ChipRow]:
    """Return the chips in the table of `npu-smi info`; of one whose second line is cut off, the first line's values."""
    rows: list[ChipRow] = []
    first: list[str] | None = None
    has_hbm = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.strip().startswith("|") or len(cells) < 3:
            first = _flush(rows, first)
        elif "Process id" in line:
            break
        elif "AICore(%)" in line:
            has_hbm = "HBM-Usage" in line
        elif "Bus-Id" in line or "Power(W)" in line:
            continue
        elif first is None:
            first = cells
        else:
            rows.append(_chip_row(first, cells, has_hbm))
            first = None
    _flush(rows, first)
    return rows


def _flush(rows: list[ChipRow], first: list[str] | None) -> None:
    if first is not None:
        rows.append(_chip_row(first, None, False))


def _chip_row(first: list[str], second: list[str] | None, has_hbm: bool) -> ChipRow:
    number, name = first[0].split(maxsplit=1)
    power, temperature = [*first[2].split(), "", ""][:2]
    known = {
        "npu_id": int(number),
        "name": name,
        "health": _word(first[1]),
        "power_watts": _number(power),
        "temperature_celsius": _number(temperature),
    }
    if second is None:
        return ChipRow(**known)
    # `26838/ 32768` and `3372 / 65536` are one pair each; the last of them is the HBM's where there is such a column.
    pairs = [(int(used), int(total)) for used, total in re.findall(r"(\d+)\s*/\s*(\d+)", second[2])]
    used, total = pairs[-1] if has_hbm and pairs else (None, None)
    numbers = second[0].split()
    return ChipRow(
        **known,
        chip_id=int(numbers[0]) if numbers and numbers[0].isdigit() else None,
        bus_id=_word(second[1]),
        aicore_percent=_number(second[2].split()[0]) if second[2] else None,
        hbm_used_mb=used,
        hbm_total_mb=total,
    )


def parse_places(text: str) -> list[Place]:
    """Return the chips that `npu-smi info -m` lists, without the management controllers, which have no logic id."""
    found = re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+\S", text, re.MULTILINE)
    return [Place(int(npu), int(chip), int(logic)) for npu, chip, logic in found]


def parse_reading(text: str, chip_id: int = 0) -> ChipReading:
    """Return one chip's values from any `npu-smi info -t TOPIC -i NPU`.

    A list without chip numbers is of the only chip that there is.
    """
    values: dict[str, str] = {}
    for group in _groups(text):
        if "mcu" in group.get("chip name", "").lower():
            continue
        number_told = group.get("chip id", "")
        if not number_told.isdigit() or int(number_told) == chip_id:
            values.update(group)

    def number(*names: str) -> float | None:
        return next((value for name in names if (value := _number(values.get(name, ""))) is not None), None)

    total = number("hbm capacity(mb)")
    return ChipReading(
        power_watts=number("npu real-time power(w)", "power dissipation(w)"),
        temperature_celsius=number("npu temperature(c)", "temperature(c)"),
        aicore_percent=number("aicore usage rate(%)"),
        clock_mhz=number("aicore curfreq(mhz)"),
        rated_clock_mhz=number("aicore freq(mhz)"),
        hbm_total_mb=None if total is None else int(total),
        hbm_usage_percent=number("hbm usage rate(%)"),
        health=_word(values.get("health status", values.get("health", ""))),
    )


def _groups(text: str) -> Iterator[Mapping[str, str]]:
    """Yield the `key : value` lines of each chip or controller: up to an empty line, or to where a key comes again."""
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


def _word(text: str) -> str | None:
    return None if text.strip().upper() in NOTHING else text.strip()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
