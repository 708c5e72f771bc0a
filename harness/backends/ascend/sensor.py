"""An Ascend chip's power, temperature and clock, by npu-smi: every look is a process, so not too many of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping

from harness.backends.ascend import npu_smi
from harness.backends.ascend.host import VISIBLE_DEVICES
from harness.backends.sensors import Reading

SECONDS_TO_ANSWER = 10.0

Ask = Callable[..., str]


def ask_npu_smi(*words: str) -> str:
    """Return what `npu-smi info WORDS` prints.

    Raises:
        OSError: it is not there, does not answer, or refuses; saying which.
    """
    try:
        done = subprocess.run(
            ["npu-smi", "info", *words], capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npu-smi did not answer within {SECONDS_TO_ANSWER:g} s") from error
    refused = npu_smi.refusal(done.stdout + done.stderr)
    if refused is None and done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        refused = f"npu-smi info {' '.join(words)} ended with code {done.returncode}: {' '.join(last) or 'no message'}"
    if refused is not None:
        raise OSError(refused)
    return done.stdout


class NpuSmi:
    """One chip."""

    source = "npu-smi"
    scope = "the chip"
    period_seconds = 2.0

    def __init__(self, place: npu_smi.Place, ask: Ask = ask_npu_smi) -> None:
        self._place, self._ask = place, ask

    def read(self) -> Reading:
        # Without -c, which not every board takes: the list has all chips of the card.
        text = self._ask("-t", "common", "-i", str(self._place.npu_id))
        found = npu_smi.parse_reading(text, self._place.chip_id)
        return Reading(
            power_watts=found.power_watts,
            temperature_celsius=found.temperature_celsius,
            clock_mhz=found.clock_mhz,
            utilization_percent=found.aicore_percent,
        )

    def close(self) -> None:
        """Nothing is held open."""


def open_npu_smi(device_index: int, variables: Mapping[str, str] = os.environ, ask: Ask = ask_npu_smi) -> NpuSmi | str:
    """Return the sensor of the device that torch counts as `device_index`, or why there is none.

    npu-smi counts cards, and does not heed the list of visible devices: torch's number leads by way of that list to the
    runtime's own number, and from there by `npu-smi info -m` to card and chip.
    """
    visible = variables.get(VISIBLE_DEVICES)
    try:
        logic_id = int(visible.split(",")[device_index]) if visible else device_index
        places = npu_smi.parse_places(ask("-m"))
    except FileNotFoundError:
        return "npu-smi is not on the PATH; in a container pass -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi"
    except (OSError, ValueError, IndexError) as error:
        return str(error) or type(error).__name__
    place = next((place for place in places if place.logic_id == logic_id), None)
    if place is None:
        return f"npu-smi info -m lists no chip with the logic id {logic_id}"
    sensor = NpuSmi(place, ask)
    try:
        first = sensor.read()
    except OSError as error:
        return str(error)
    if first == Reading():
        return f"npu-smi info -t common -i {place.npu_id} tells nothing of chip {place.chip_id}"
    return sensor
