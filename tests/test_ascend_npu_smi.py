"""Output of npu-smi on different boards and releases. The numbers are invented; the layouts are those of real ones."""

from __future__ import annotations

import pytest

from harness.backends.ascend.npu_smi import Place, parse_places, parse_reading, refusal
from harness.backends.sensors import Reading


class TestReading:
    def test_a_chips_number_after_its_values(self) -> None:
        text = """\
        NPU ID                         : 3
        Chip Count                     : 1

        NPU Real-time Power(W)         : 104.5
        Chip ID                        : 0
"""
        assert parse_reading(text) == Reading(power_watts=104.5)
        assert parse_reading(text, chip_id=1) == Reading()

    def test_a_chips_number_before_its_values_and_the_boards_power_below(self) -> None:
        text = """\
        NPU ID                         : 0
        Chip Count                     : 1

        Chip ID                        : 0
        NPU Real-time Power(W)         : 9.3
        \t
        Power Dissipation(W)           : 17.1
        Chip Name                      : MCU
"""
        assert parse_reading(text) == Reading(power_watts=9.3)

    def test_the_controllers_temperature_and_power_are_not_the_chips(self) -> None:
        text = """\
NPU ID                         : 0
Chip Count                     : 1

Chip ID                        : 0
Memory Usage Rate(%)           : 6
HBM Usage Rate(%)              : 4
Aicore Usage Rate(%)           : 88
Aicore Freq(MHZ)               : 1000
Aicore curFreq(MHZ)            : 900
Aicore Count                   : 32
Temperature(C)                 : 47
NPU Real-time Power(W)         : 70.5

Chip Name                      : mcu
Temperature(C)                 : 49
NPU Real-time Power(W)         : 44.1
"""
        expected = Reading(70.5, None, 47.0, 900.0, 88.0, None, 1000.0)
        assert parse_reading(text) == expected
        # And where the controller comes first.
        head, chip, controller = text.split("\n\n")
        assert parse_reading(f"{head}\n\n{controller}\n\n{chip}\n") == expected

    def test_temperature_with_a_space_before_its_unit(self) -> None:
        text = """\
        NPU ID                         : 0
        Chip Count                     : 1

        NPU Temperature (C)            : 38
        Chip ID                        : 0

        LM75A_TE (C)                   : 35
        LM75B_TE (C)                   : 35
        Chip Name                      : MCU
"""
        assert parse_reading(text) == Reading(temperature_celsius=38.0)

    @pytest.mark.parametrize("numbered", ["first", "last"])
    def test_two_chips_of_a_card_without_an_empty_line_between(self, numbered: str) -> None:
        chips = [["Chip ID : 0", "NPU Real-time Power(W) : 80.0"], ["Chip ID : 1", "NPU Real-time Power(W) : 95.0"]]
        lines = [line for chip in chips for line in (chip if numbered == "first" else chip[::-1])]
        text = "NPU ID : 0\nChip Count : 2\n\n" + "\n".join(lines) + "\n"
        assert parse_reading(text, 0).power_watts == 80.0
        assert parse_reading(text, 1).power_watts == 95.0

    def test_usages(self) -> None:
        text = """\
        NPU ID                         : 0
        Chip Count                     : 1

        DDR Capacity(MB)               : 0
        HBM Capacity(MB)               : 65536
        HBM Usage Rate(%)              : 5
        Aicore Usage Rate(%)           : 31
        NPU Utilization(%)             : 30
        Aicube Usage Rate(%)           : 29
        Chip ID                        : 0
"""
        assert parse_reading(text) == Reading(utilization_percent=31.0)

    def test_lists_without_chip_numbers(self) -> None:
        assert parse_reading("Temperature(C) : 46\n", chip_id=1) == Reading(temperature_celsius=46.0)
        # The memory's temperature is not the chip's.
        assert parse_reading("HBM Capacity(MB) : 65536\nHBM Temperature(C) : 46\n") == Reading()

    @pytest.mark.parametrize("value", ["NA", "-", "", "N/A"])
    def test_an_unknown_value(self, value: str) -> None:
        assert parse_reading(f"Chip ID : 0\nNPU Real-time Power(W) : {value}\n").power_watts is None

    def test_the_rated_power_is_not_the_power_now(self) -> None:
        assert parse_reading("Chip ID : 0\nRated Power Dissipation(W) : 310\n") == Reading()


def test_places_leave_the_controllers_out() -> None:
    text = """\
NPU ID                         Chip ID                        Chip Logic ID                  Chip Name
2                              0                              0                              Ascend xxx
2                              1                              -                              Mcu
5                              0                              1                              Ascend xxx
5                              1                              2                              Ascend xxx
5                              2                              -                              Mcu
"""
    assert parse_places(text) == [Place(2, 0, 0), Place(5, 0, 1), Place(5, 1, 2)]


@pytest.mark.parametrize(
    ("text", "code", "cause"),
    [
        ("DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\ndcmi module initialize failed. ret is -8005\n", "-8005",
         "not mounted"),
        ("dcmi model initialized failed, because the device is used. ret is -8020\n", "-8020", "another container"),
        ("dcmi model initialized failed. ret is -9999\n", "-9999", "driver log"),
    ],
)  # fmt: skip
def test_refusals(text: str, code: str, cause: str) -> None:
    reason = refusal(text)
    assert reason is not None
    assert code in reason
    assert cause in reason
    assert refusal("Chip ID : 0\n") is None
    assert parse_reading(text) == Reading()


HEADS = "NPU ID                         Slot ID      Chip ID      Chip Phy-ID      Chip Name"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        # Ascend 950: a slot before the chip, and no logic id.
        (f"\t{HEADS}\n\t0      1      0      0      Ascend950PR\n\t1      2      0      1      Ascend950PR\n",
         [Place(0, 0, 0), Place(1, 0, 1)]),
        # Both ids: the logic id counts.
        ("NPU ID    Chip ID    Chip Logic ID    Chip Phy-ID    Chip Name\n"
         "4         0          0                8              Ascend910\n"
         "4         1          1                9              Ascend910\n"
         "4         2          -                -              Mcu\n", [Place(4, 0, 0), Place(4, 1, 1)]),
        # In a container with two of eight chips the runtime counts from zero.
        (f"{HEADS}\n6      7      0      6      Ascend950DT\n4      5      0      4      Ascend950DT\n",
         [Place(6, 0, 1), Place(4, 0, 0)]),
        # Another order, other cases and spaces, tabs, carriage returns, and lines before the heads.
        ("DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\r\nchip name\tCHIP LOGIC-ID\tChip ID\tNPU-ID\r\n"
         "Ascend xxx\t1\t0\t3\r\nAscend xxx\t0\t0\t2\r\n", [Place(3, 0, 1), Place(2, 0, 0)]),
        # A controller with a number of its own, and a chip that is lost.
        (f"{HEADS}\n0      1      0      0      Ascend950PR\n0      1      1      1      Mcu\n"
         "1      2      0      NA      Ascend950PR\n", [Place(0, 0, 0)]),
        # Heads alone.
        (f"{HEADS}\n", []),
    ],
    ids=["950", "both", "container", "order", "controller", "none"],
)  # fmt: skip
def test_columns_of_the_mapping_are_found_by_their_heads(text: str, places: list[Place]) -> None:
    assert parse_places(text) == places


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "NPU ID and none Chip ID and none Chip Logic ID or Chip Phy-ID"),
        ("This device does not support querying mapping.\n", "found no column NPU ID"),
        ("NPU ID    Chip ID    Chip Name\n0    0    Ascend xxx\n", "found no column Chip Logic ID or Chip Phy-ID"),
        ("0    0    0    Ascend xxx\n", "found no column NPU ID"),
        ("NPU ID    Chip Phy-ID    Chip Name\n0    0    Ascend xxx\n", "found no column Chip ID"),
    ],
)
def test_a_mapping_without_a_column_is_not_read_by_position(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="npu-smi info -m: ") as caught:
        parse_places(text)
    assert said in str(caught.value)
