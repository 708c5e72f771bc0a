"""Sensor of an Ascend chip's power, temperature and clock by npu-smi. Each reading starts a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from harness.backends.ascend import npu_smi
from harness.backends.ascend.host import VISIBLE_DEVICES, visible_devices_problem
from harness.backends.sensors import READ_BY_ANOTHER, Reading
from harness.text import shortened

ANSWER_TIMEOUT_SECONDS = 10.0

Ask = Callable[..., str]


def ask_npu_smi(*arguments: str) -> str:
    """Return the output of `npu-smi info ARGUMENTS`.

    Raises:
        OSError: it is not installed, does not answer, or refuses; the message says which.
    """
    try:
        done = subprocess.run(
            ["npu-smi", "info", *arguments],
            capture_output=True,
            # Its numbers are ASCII, whatever the language of its words.
            encoding="ascii",
            errors="replace",
            timeout=ANSWER_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npu-smi did not answer within {ANSWER_TIMEOUT_SECONDS:g} s") from error
    refused = npu_smi.refusal(done.stdout + done.stderr)
    if refused is None and done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        refused = (
            f"npu-smi info {' '.join(arguments)} ended with code {done.returncode}: {' '.join(last) or 'no message'}"
        )
    if refused is not None:
        raise OSError(refused)
    return done.stdout


class NpuSmi:
    """Sensor of one chip."""

    source = "npu-smi"
    period_seconds = 2.0

    def __init__(self, place: npu_smi.Place, ask: Ask = ask_npu_smi, scope: str = "the chip") -> None:
        self._place, self._ask, self.scope = place, ask, scope

    def read(self) -> Reading:
        # Without -c, which some boards reject: the list has all chips of the card.
        text = self._ask("-t", "common", "-i", str(self._place.npu_id))
        return npu_smi.parse_reading(text, self._place.chip_id)

    def close(self) -> None:
        """No resource is held."""


def _logic_id(device_index: int, visible: str | None) -> int:
    """Return the runtime's number of a device.

    Args:
        visible: the list of visible devices, if there is one.

    Raises:
        ValueError: the list cannot be read, or has fewer devices.
    """
    if not visible:
        return device_index
    if (flaw := visible_devices_problem(visible)) is not None:
        raise ValueError(f"{VISIBLE_DEVICES}={shortened(visible)!r} {flaw}")
    numbers = visible.split(",")
    if device_index >= len(numbers):
        raise ValueError(f"{VISIBLE_DEVICES}={shortened(visible)!r} has no device {device_index}")
    return int(numbers[device_index])


def open_npu_smi(device_index: int, variables: Mapping[str, str] = os.environ, ask: Ask = ask_npu_smi) -> NpuSmi | str:
    """Return the sensor of torch's device `device_index`, or the reason why there is none.

    npu-smi numbers cards and ignores the list of visible devices. That list maps torch's index to the runtime's logic
    id, and `npu-smi info -m` maps the logic id to card and chip.
    """
    try:
        logic_id = _logic_id(device_index, variables.get(VISIBLE_DEVICES))
        places = npu_smi.parse_places(ask("-m"))
    except FileNotFoundError:
        return "npu-smi is not on the PATH; in a container pass -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi"
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    place = next((place for place in places if place.logic_id == logic_id), None)
    if place is None:
        return f"npu-smi info -m lists no chip with the logic id {logic_id}"
    return _of_place(place, places, variables.get(VISIBLE_DEVICES), ask)


def _of_place(place: npu_smi.Place, places: Sequence[npu_smi.Place], visible: str | None, ask: Ask) -> NpuSmi | str:
    # The power of a package of several dies, as of the Ascend 910C, stands at its first one.
    dies = sorted((each for each in places if each.npu_id == place.npu_id), key=lambda each: each.chip_id)
    if place != dies[0]:
        if visible and str(dies[0].logic_id) not in visible.split(","):
            return f"the power of NPU {place.npu_id} stands at its first die, which {VISIBLE_DEVICES} leaves out"
        return READ_BY_ANOTHER
    sensor = NpuSmi(place, ask, "the chip" if len(dies) == 1 else f"the package of {len(dies)} dies")
    try:
        first = sensor.read()
    except OSError as error:
        return str(error)
    if first == Reading():
        return f"npu-smi info -t common -i {place.npu_id} has no values for chip {place.chip_id}"
    return sensor
