"""What npu-smi prints on different boards and releases. The numbers are made up; the layouts are those of real ones."""

from __future__ import annotations

import pytest

from harness.backends.ascend.npu_smi import (
    ChipReading,
    ChipRow,
    Place,
    parse_places,
    parse_reading,
    parse_table,
    refusal,
)

RULE = "+" + "-" * 27 + "+" + "-" * 15 + "+" + "-" * 52 + "+"
DOUBLE = RULE.replace("-", "=")


def table(second_heading: str, *rows: str) -> str:
    wide = "+" + "-" * 96 + "+"
    return "\n".join(
        [
            wide,
            f"| {'npu-smi 24.1.rc3                 Version: 24.1.rc3':<95}|",
            RULE,
            "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
            second_heading,
            DOUBLE,
            *rows,
        ]
    )


WITH_HBM = "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |"
WITH_PHY_ID = "| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |"
PROCESSES = """\
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 4     0                   | 12345         | python                   | 3372                    |
+===========================+===============+====================================================+
"""


class TestTable:
    def test_two_cards_whose_numbers_do_not_begin_at_zero_and_the_processes_below(self) -> None:
        text = table(
            WITH_HBM,
            "| 4     910B2               | OK            | 91.5        41                0    / 0             |",
            "| 0                         | 0000:01:00.0  | 97          0    / 0          3372 / 65536         |",
            DOUBLE,
            "| 5     910B2               | Alarm         | 301.0       82                0    / 0             |",
            "| 0                         | 0000:C2:00.0  | 0           0    / 0          3370 / 65536         |",
            DOUBLE,
        )
        first, second = parse_table(text + "\n" + PROCESSES)
        assert first == ChipRow(4, "910B2", "OK", 91.5, 41.0, 0, "0000:01:00.0", 97.0, 3372, 65536)
        assert second == ChipRow(5, "910B2", "Alarm", 301.0, 82.0, 0, "0000:C2:00.0", 0.0, 3370, 65536)

    def test_a_card_of_two_dies_tells_its_power_once(self) -> None:
        text = table(
            WITH_PHY_ID,
            "| 0     Ascend910           | OK            | 181.2       37                0    / 0             |",
            "| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |",
            "+" + "-" * 96 + "+",
            "| 0     Ascend910           | OK            | -           36                0    / 0             |",
            "| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |",
        )
        first, second = parse_table(text)
        assert (first.chip_id, first.power_watts, first.hbm_used_mb) == (0, 181.2, 3416)
        assert (second.chip_id, second.power_watts, second.temperature_celsius) == (1, None, 36.0)
        assert second.hbm_used_mb == 3195

    def test_numbers_that_touch_the_slash(self) -> None:
        text = table(
            WITH_HBM,
            "| 0     910B4               | OK            | 87.9        30                0    / 0             |",
            "| 0                         | 0000:C1:00.0  | 0           0    / 0          26838/ 32768         |",
        )
        [row] = parse_table("[root@localhost ~]# npu-smi info\n" + text)
        assert (row.hbm_used_mb, row.hbm_total_mb) == (26838, 32768)

    def test_a_board_without_hbm_whose_power_is_not_told_cut_off_after_one_line(self) -> None:
        text = """\
npu-smi 25.5.0                                   Version: 25.5.0
+-------------------------------+-----------------+------------------------------------+
| NPU     Name     | Health     | Power(W)  Temp(C)   Hugepages-Usage(page)           |
| Chip    Device   | Bus-Id     | AICore(%) Memory-Usage(MB)                          |
+===============================+=================+====================================+
| 5       310P3    | OK         | NA        58        0"""
        assert parse_table(text) == [ChipRow(5, "310P3", "OK", None, 58.0)]
        [row] = parse_table(text + "     / 0 |\n| 0       0        | 0000:86:00 | 12        1699 / 44278 |\n")
        assert (row.aicore_percent, row.hbm_used_mb, row.hbm_total_mb) == (12.0, None, None)

    def test_a_bus_that_is_not_told_and_a_name_with_a_hyphen(self) -> None:
        text = table(
            WITH_HBM,
            "| 0     910B4-1             | OK            | 90.0        33                0    / 0             |",
            "| 0                         | 0000:xx:00.0  | 0           0    / 0          3197 / 65536         |",
        )
        [row] = parse_table(text)
        assert (row.name, row.power_watts, row.hbm_total_mb) == ("910B4-1", 90.0, 65536)

    @pytest.mark.parametrize("text", ["", "bash: npu-smi: command not found\n", table(WITH_HBM)])
    def test_nothing_to_be_found(self, text: str) -> None:
        assert parse_table(text) == []


class TestReading:
    def test_a_chips_number_after_its_values(self) -> None:
        text = """\
        NPU ID                         : 3
        Chip Count                     : 1

        NPU Real-time Power(W)         : 104.5
        Chip ID                        : 0
"""
        assert parse_reading(text) == ChipReading(power_watts=104.5)
        assert parse_reading(text, chip_id=1) == ChipReading()

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
        assert parse_reading(text) == ChipReading(power_watts=9.3)

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
        expected = ChipReading(70.5, 47.0, 88.0, 900.0, 1000.0, hbm_usage_percent=4.0)
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
        assert parse_reading(text) == ChipReading(temperature_celsius=38.0)

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
        assert parse_reading(text) == ChipReading(aicore_percent=31.0, hbm_total_mb=65536, hbm_usage_percent=5.0)

    def test_lists_without_chip_numbers(self) -> None:
        memory = "        HBM Capacity(MB)               : 65536\n        HBM Temperature(C)             : 46\n"
        # The memory's temperature is not the chip's.
        assert parse_reading(memory) == ChipReading(hbm_total_mb=65536)
        health = "         Health Status                  : OK\n         Error Code                     : NA\n"
        assert parse_reading(health) == ChipReading(health="OK")

    @pytest.mark.parametrize("value", ["NA", "-", "", "N/A"])
    def test_a_value_that_is_not_told(self, value: str) -> None:
        assert parse_reading(f"Chip ID : 0\nNPU Real-time Power(W) : {value}\n").power_watts is None

    def test_what_a_chip_may_draw_is_not_what_it_draws(self) -> None:
        assert parse_reading("Chip ID : 0\nRated Power Dissipation(W) : 310\n") == ChipReading()


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
    said = refusal(text)
    assert said is not None
    assert code in said
    assert cause in said
    assert refusal("Chip ID : 0\n") is None
    assert parse_table(text) == []
    assert parse_reading(text) == ChipReading()
