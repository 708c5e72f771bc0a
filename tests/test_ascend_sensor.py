"""The npu-smi sensor over a fake of npu-smi: the card that it reads, and the reasons for no sensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.backends.ascend.npu_smi import Place
from harness.backends.ascend.sensor import NpuSmi, open_npu_smi
from harness.backends.sensors import READ_BY_ANOTHER, Reading

MAPPING = """\
NPU ID                         Chip ID                        Chip Logic ID                  Chip Name
4                              0                              0                              Ascend xxx
4                              1                              -                              Mcu
6                              0                              1                              Ascend xxx
"""
COMMON = """\
NPU ID                         : {npu}
Chip Count                     : 1

Chip ID                        : 0
Aicore Usage Rate(%)           : 90
Aicore Freq(MHZ)               : 1800
Aicore curFreq(MHZ)            : 1650
Temperature(C)                 : 55
NPU Real-time Power(W)         : {watts}
"""


class TestNpuSmi:
    def ask(self, *words: str) -> str:
        if words == ("-m",):
            return MAPPING
        assert words[:3] == ("-t", "common", "-i")
        return COMMON.format(npu=words[3], watts=100 + int(words[3]))

    @pytest.mark.parametrize(("visible", "index", "watts"), [(None, 1, 106.0), ("1", 0, 106.0), ("0,1", 0, 104.0)])
    def test_from_torchs_number_to_the_card(self, visible: str | None, index: int, watts: float) -> None:
        variables = {} if visible is None else {"ASCEND_RT_VISIBLE_DEVICES": visible}
        sensor = open_npu_smi(index, variables, self.ask)
        assert isinstance(sensor, NpuSmi)
        assert sensor.read() == Reading(watts, None, 55.0, 1650.0, 90.0, None, 1800.0)

    @pytest.mark.parametrize("second", ["0.0", "178.5", "NA"])
    def test_the_power_of_two_dies_is_counted_once(self, second: str) -> None:
        """Of the Ascend 910C: nothing says what its second die reports, so that nothing is added."""
        mapping = (
            "NPU ID   Chip ID   Chip Logic ID   Chip Name\n"
            "0        0         0               Ascend910\n"
            "0        1         1               Ascend910\n"
        )
        text = COMMON.format(npu=0, watts=178.5).replace("Chip Count                     : 1", "Chip Count : 2")
        die = text[text.index("Chip ID ") :]
        text += "\n" + die.replace("Chip ID                        : 0", "Chip ID : 1").replace("178.5", second)

        def ask(*words: str) -> str:
            return mapping if words == ("-m",) else text

        sensor = open_npu_smi(0, {}, ask)
        assert isinstance(sensor, NpuSmi)
        assert (sensor.scope, sensor.read().power_watts) == ("the package of 2 dies", 178.5)
        assert open_npu_smi(1, {}, ask) == READ_BY_ANOTHER
        alone = open_npu_smi(0, {"ASCEND_RT_VISIBLE_DEVICES": "1"}, ask)
        assert alone == "the power of NPU 0 stands at its first die, which ASCEND_RT_VISIBLE_DEVICES leaves out"

    def test_each_card_of_a_950_is_read_by_its_own_number(self) -> None:
        mapping = (
            "\tNPU ID    Slot ID    Chip ID    Chip Phy-ID    Chip Name\n"
            "\t0         1          0          0              Ascend950PR\n"
            "\t1         2          0          1              Ascend950PR\n"
        )

        def ask(*words: str) -> str:
            return mapping if words == ("-m",) else COMMON.format(npu=words[3], watts=[181.5, 402.0][int(words[3])])

        for index, watts in enumerate((181.5, 402.0)):
            sensor = open_npu_smi(index, {}, ask)
            assert isinstance(sensor, NpuSmi)
            assert sensor.read().power_watts == watts

    def test_a_number_that_no_card_has(self) -> None:
        assert open_npu_smi(7, {}, self.ask) == "npu-smi info -m lists no chip with the logic id 7"
        assert isinstance(open_npu_smi(3, {"ASCEND_RT_VISIBLE_DEVICES": "0"}, self.ask), str)

    @pytest.mark.parametrize(
        ("visible", "said"),
        [
            ("0-3", "ASCEND_RT_VISIBLE_DEVICES='0-3' is not a list of numbers"),
            (",0", "ASCEND_RT_VISIBLE_DEVICES=',0' is not a list of numbers"),
            ("0", "ASCEND_RT_VISIBLE_DEVICES='0' has no device 3"),
        ],
    )
    def test_a_list_of_devices_without_this_one(self, visible: str, said: str) -> None:
        assert open_npu_smi(3, {"ASCEND_RT_VISIBLE_DEVICES": visible}, self.ask) == said

    @pytest.mark.parametrize("watts", ["nan", "inf", "-5", "1e999"])
    def test_what_no_chip_draws_is_no_reading(self, watts: str) -> None:
        def ask(*words: str) -> str:
            return MAPPING if words == ("-m",) else COMMON.format(npu=4, watts=watts).replace(": 55", ": -3")

        sensor = open_npu_smi(0, {}, ask)
        assert isinstance(sensor, NpuSmi)
        assert sensor.read() == Reading(None, None, -3.0, 1650.0, 90.0, None, 1800.0)

    def test_a_card_that_lists_its_chip_and_then_does_not_answer(self) -> None:
        def ask(*words: str) -> str:
            if words == ("-m",):
                return MAPPING
            raise OSError("npu-smi did not answer within 10 s")

        assert open_npu_smi(0, {}, ask) == "npu-smi did not answer within 10 s"

    def test_a_board_without_values(self) -> None:
        reason = open_npu_smi(
            0, {}, lambda *words: MAPPING if words == ("-m",) else "This device does not support it.\n"
        )
        assert reason == "npu-smi info -t common -i 4 has no values for chip 0"

    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path / "npu-smi"

    def test_the_program_itself(self, program: Path) -> None:
        program.write_text(
            f"#!/bin/sh\n[ $2 = -m ] && cat <<'E' && exit\n{MAPPING}E\ncat <<'E'\n{COMMON.format(npu=4, watts=91)}E\n"
        )
        program.chmod(0o755)
        sensor = open_npu_smi(0, {})
        assert isinstance(sensor, NpuSmi)
        assert sensor.read().power_watts == 91.0

    def test_words_of_any_encoding(self, program: Path) -> None:
        mapping, common = MAPPING.replace("Ascend xxx", "昇腾"), COMMON.format(npu=4, watts=91) + "健康状态 : 正常\n"
        script = f"#!/bin/sh\n[ $2 = -m ] && cat <<'E' && exit\n{mapping}E\ncat <<'E'\n{common}E\n"
        program.write_bytes(script.encode("gbk"))
        program.chmod(0o755)
        sensor = open_npu_smi(0, {})
        assert isinstance(sensor, NpuSmi)
        assert sensor.read().power_watts == 91.0

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            (None, "npu-smi is not on the PATH; in a container pass -v /usr/local/bin/npu-smi"),
            ("echo 'dcmi module initialize failed. ret is -8005'; exit 0", "another container holds it"),
            ("echo 'dcmi model initialized failed, because the device is used. ret is -8020' >&2; exit 1", "-8020"),
            ("echo broken >&2; exit 3", "npu-smi info -m ended with code 3: broken"),
        ],
    )
    def test_refusals(self, script: str | None, said: str, program: Path) -> None:
        if script is not None:
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        assert said in str(open_npu_smi(0, {}))

    def test_a_program_that_does_not_answer(self, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("harness.backends.ascend.sensor.ANSWER_TIMEOUT_SECONDS", 0.1)
        program.write_text("#!/bin/sh\nexec sleep 60\n")
        program.chmod(0o755)
        with pytest.raises(OSError, match=r"did not answer within 0\.1 s"):
            NpuSmi(Place(0, 0, 0)).read()
