"""Conversions between text and values."""

from __future__ import annotations

import re
import shlex

import pytest

from harness import text


@pytest.mark.parametrize(("override", "key"), [("seed=1", "seed"), ("++data.path='a=b'", "data.path"), ("+x=1", "x")])
def test_override_key(override: str, key: str) -> None:
    assert text.override_key(override) == key


@pytest.mark.parametrize(("written", "number"), [("70B", 70e9), ("2t", 2e12), ("1.5e3", 1500.0), ("12", 12.0)])
def test_scaled_number(written: str, number: float) -> None:
    assert text.scaled_number(written) == number


@pytest.mark.parametrize("written", ["", "B", "70BB", "many"])
def test_text_without_a_number(written: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        text.scaled_number(written)


@pytest.mark.parametrize(
    ("number", "counted"), [(0, "0 updates"), (1, "1 update"), (2, "2 updates"), (1200, "1,200 updates")]
)
def test_a_number_has_its_noun(number: int, counted: str) -> None:
    assert text.counted(number, "update") == counted
    assert text.counted(1, "row is", "rows are") == "1 row is"
    assert text.counted(2, "row is", "rows are") == "2 rows are"


def test_of_several_lists_of_settings_the_last_counts() -> None:
    layers = (["seed=1", "out=a"], ["+seed=2", "model=tiny"], ["out='b=c'"])
    assert text.layered_settings(*layers) == ["+seed=2", "out='b=c'", "model=tiny"]


def test_utc_times() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", text.utc_now())
    assert re.fullmatch(r"\d{8}T\d{6}Z", text.utc_stamp())


def test_a_long_text_is_shortened() -> None:
    assert text.shortened("abc", 3) == "abc"
    assert text.shortened("abcd", 3) == "abc..."


@pytest.mark.parametrize(
    "name",
    [None, "", " ", "0x74a1", "0xD802", "Device 0x740f", "Device 74a1", "device", "1002:74a1", "19e5:d802", "7",
     "unknown", "Unknown device", "(null)", "N/A", "-", "Not Specified", "Default string", "To Be Filled By O.E.M.",
     "\x00\x00", "deadbeef", "d801", "6a 3f", "06/85", "0000:3b:00.0", "00000000:3B:00.0", "[10de:20b2]",
     "0xd01, implementer 0x48",
     "System Product Name", "20b2h", "0x20b2 (rev a1)", "Device d802 (rev 20)", "GPU-0x74a1", "NPU 0", "[N/A]", "ERR!",
     "Not Supported", "[Unknown Error]", "(none)", "<unknown>", "undefined", "TBD", "O.E.M.", "Invalid",
     "ARMv8 Processor rev 0 (v8l)", "AArch64 Processor rev 4 (aarch64)", "Virtual CPU a7769a6388d5"],
)  # fmt: skip
def test_a_number_or_a_word_for_none_is_no_name(name: str | None) -> None:
    assert text.true_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100-SXM4-80GB", "A100", "B200", "A10", "A100-40", "Xeon", "EPYC 7763", "Cortex-A76", "FT-2000+/64",
     "Ascend910B2", "Ascend910_9392", "GAUDI2", "gfx942",
     "AMD Instinct MI300X", "Intel(R) Graphics [0x0bd5]", "MTT S5000", "Device of Bob", "AMD EPYC 9654", "BCM2835",
     "Genuine Intel(R) CPU 0000%@", "QEMU Virtual CPU version 2.5+", "(R) Xeon (TM)"],
)  # fmt: skip
def test_a_name_stays_as_reported(name: str) -> None:
    assert text.true_name(f" {name}\x00") == name


@pytest.mark.parametrize("label", ["one", "two sides", "other", "reference", "the same", "1", "2.5"])
def test_a_label_that_reads_as_a_word_is_quoted_in_a_sentence(label: str) -> None:
    assert text.name_in_sentence(label) == f"'{label}'"


@pytest.mark.parametrize("label", ["A100", "Ascend 910B", "runs/one", "a", "one-thread", "backend=cpu", "910B", ""])
def test_a_label_that_does_not_is_left(label: str) -> None:
    assert text.name_in_sentence(label) == label


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["python", "-m", "harness", "backend=cpu", "out=runs/läufe"], "python -m harness backend=cpu out=runs/läufe"),
        (["a b"], "'a b'"),
        (["out='runs/1'"], "\"out='runs/1'\""),
        (["model.shape=[1,2]"], "'model.shape=[1,2]'"),
        (["x=$HOME 'y'"], "'x=$HOME '\"'\"'y'\"'\"''"),
        ([""], "''"),
        (["data.path=~/x"], "'data.path=~/x'"),
        (["a;b"], "'a;b'"),
    ],
)
def test_a_command_line_has_quotes_only_where_needed(argv: list[str], line: str) -> None:
    assert text.shell_join(argv) == line
    assert shlex.split(line) == argv


CHIPS = ["A100", "A100-80GB", "V100", "H100 SXM", "H200", "H20", "910B4", "910C", "Gaudi2", "MI300X", "GH200"]


@pytest.mark.parametrize(
    "found",
    ["H100", "H100-80GB", "P100", "B200", "B100", "A1000", "A10", "V10O", "910D", "950DT", "Gaudi4", "MI355X", "MI250X",
     "GB200", "H800", "A800"],
)  # fmt: skip
def test_a_suggestion_never_names_another_generation(found: str) -> None:
    near = text.nearest(found, [chip for chip in CHIPS if not chip.startswith("H100")])
    assert near is None


@pytest.mark.parametrize(
    ("found", "near"),
    [("H20O", "H20"), ("A100-80GP", "A100-80GB"), ("MI300", "MI300X"), ("h100 sxn", None), ("H100 SXN", "H100 SXM"),
     ("910B", "910B4"), ("Gaudi 2", "Gaudi2")],
)  # fmt: skip
def test_a_suggestion_of_the_same_generation(found: str, near: str | None) -> None:
    assert text.nearest(found, CHIPS) == near


def test_models_of_another_generation_are_no_suggestion_either() -> None:
    assert text.did_you_mean("llama3-7b", ["llama2-7b", "tiny"]) == ""
    assert text.did_you_mean("llama2-7bb", ["llama2-7b", "tiny"]) == "; did you mean llama2-7b?"


@pytest.mark.parametrize("found", ["tpu", "gpu"])
def test_no_other_kind_of_device_is_suggested(found: str) -> None:
    assert text.nearest(found, ["cpu", "cuda", "npu", "xpu", "mps"]) is None
    assert text.nearest("nup", ["cpu", "npu"]) == "npu"
