"""The settings of a command line: text arrives as typed, nothing is given twice, nothing is read from elsewhere."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from harness.composition import expand_sweep, load
from harness.config import Config, iter_settings, to_yaml
from harness.errors import ConfigError
from harness.overrides import MAX_JOBS
from tests.conftest import PROJECT

# Hydra reads each of these as a number or a truth value.
NUMBERS = ("2024_11_05", "1e3", "1E5", "20_11", "1.", ".5", "+5", "-3", "0", "true", "TRUE", "False", "inf", "nan")
TEXT_SETTINGS = [
    key
    for key, item, _ in iter_settings(Config)
    if str(item.type).startswith("str") and "choices" not in item.metadata and not key.startswith(("track.", "backend"))
]


def get_setting(config: Config, key: str) -> object:
    return next(value for name, _, value in iter_settings(config) if name == key)


class TestText:
    @pytest.mark.parametrize("key", TEXT_SETTINGS)
    def test_arrives_as_typed_in_every_text_setting(self, key: str) -> None:
        if key == "experiment":
            with pytest.raises(ConfigError, match="experiment: found '2024_11_05', expected one of"):
                load([f"{key}=2024_11_05"])
            return
        if key == "model.path":
            with pytest.raises(ConfigError, match=r"model\.path: 2024_11_05: cannot be read"):
                load(["model=hf", f"{key}=2024_11_05"])
            return
        needed = {"data": ["data=text", "data.path=x"], "parallel": ["parallel=fsdp"]}.get(
            key.split(".", maxsplit=1)[0], []
        )
        config = load([*(word for word in needed if not word.startswith(f"{key}=")), f"{key}=2024_11_05"])
        assert get_setting(config, key) == "2024_11_05"

    @pytest.mark.parametrize("typed", ["NULL", "Null"])
    def test_only_null_is_nothing(self, typed: str) -> None:
        assert load([f"out={typed}"]).out == typed
        assert load(["out=null"]).out is None

    @pytest.mark.parametrize(
        "setting", ["out=", "data.path=", "peak_dir=", "metrics_file=", "init=", "data.tokenizer="]
    )
    def test_an_empty_path_is_not_the_working_directory(self, setting: str) -> None:
        words = ["data=text", *([] if setting == "data.path=" else ["data.path=x"])]
        with pytest.raises(ConfigError, match=rf"{setting[:-1]}: found an empty path; leave it out"):
            load([*words, setting])

    def test_an_empty_path_of_a_model_is_none(self) -> None:
        with pytest.raises(ConfigError, match=r"^model\.path: missing; model=hf needs"):
            load(["model=hf", "model.path="])

    @pytest.mark.parametrize("typed", NUMBERS)
    def test_is_not_read_as_a_number(self, typed: str) -> None:
        assert load([f"out={typed}"]).out == typed
        assert load([f"out='{typed}'"]).out == typed

    def test_names_an_option_as_typed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = own_configs(tmp_path, monkeypatch)
        (own / "experiment" / "2024_11.yaml").write_text("# @package _global_\nseed: 7\n")
        assert load(["experiment=2024_11"]).seed == 7
        assert [load(job).seed for job in expand_sweep(["experiment=2024_11,null"])] == [7, 1]

    def test_null_is_nothing_unless_quoted(self) -> None:
        assert load(["out=null"]).out is None
        assert load(["out='null'"]).out == "null"

    def test_arrives_as_typed_in_a_sweep(self) -> None:
        jobs = expand_sweep(["out=2024_11_05,1e3,'a,b',TRUE", "seed=1"])
        assert jobs == [["out=2024_11_05", "seed=1"], ["out=1e3", "seed=1"], ["out='a,b'", "seed=1"],
                        ["out=TRUE", "seed=1"]]  # fmt: skip
        assert [load(job).out for job in jobs] == ["2024_11_05", "1e3", "a,b", "TRUE"]
        assert expand_sweep(["model.name=choice(1_0,1.0)"]) == [["model.name=1_0"], ["model.name=1.0"]]

    def test_survives_the_file_of_the_settings(self) -> None:
        assert "name: '2024_11'" in to_yaml(load(["model.name=2024_11"]))

    @pytest.mark.parametrize("typed", ["2024_11", "1e3", "true"])
    def test_that_a_yaml_file_spells_as_a_number_is_refused(
        self, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = own_configs(tmp_path, monkeypatch)
        (own / "experiment" / "mine.yaml").write_text(f"# @package _global_\nout: {typed}\n")
        with pytest.raises(ConfigError, match=r"^out: found .*, expected text; put it in quotes in its YAML file$"):
            load(["experiment=mine"])
        (own / "experiment" / "mine.yaml").write_text(f"# @package _global_\nout: '{typed}'\n")
        assert load(["experiment=mine"]).out == typed


class TestNumbers:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("seed=1_000", 1000),
            ("seed='12'", 12),
            ("workload.learning_rate=1", 1.0),
            ("workload.learning_rate=1e-4", 1e-4),
            ("model.bias=on", True),
            ("model.bias=0", False),
            ("backend.threads=null", None),
        ],
    )
    def test_are_read_by_the_type_of_their_setting(self, override: str, value: object) -> None:
        found = get_setting(load([override]), override.partition("=")[0])
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("seed=1e3", "seed: found '1e3', expected a whole number"),
            ("seed=true", "seed: found 'true', expected a whole number"),
            ("seed=" + "9" * 5000, "cannot read 'seed=999"),
            ("model.bias=2", "model.bias: found '2', expected true or false"),
            ("workload.learning_rate=true", "workload.learning_rate: found 'true', expected a number"),
            ("workload.steps=null", "workload.steps: found null, expected a whole number"),
            ("workload.steps=[1,2]", r"workload.steps: found '[1,2]', expected a whole number"),
            ("data.path=[a]", "data.path: found '[a]', expected text"),
            ("checkpoint={every: 5}", "checkpoint: no such setting"),
        ],
    )
    def test_of_another_type_are_refused(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError) as error:
            load([override])
        assert str(error.value).startswith(message)


class TestTwice:
    @pytest.mark.parametrize(
        "overrides",
        [
            ["out=a", "out=b"],
            ["out=a", "out=a"],
            ["model=tiny", "model=small"],
            ["seed=1", "++seed=2"],
            ["+seed=1", "seed=2"],
            ["experiment=smoke", "seed=1", "experiment=gpt2"],
        ],
    )
    def test_is_refused(self, overrides: list[str]) -> None:
        for read in (load, expand_sweep):
            with pytest.raises(ConfigError, match=rf"^{overrides[0].strip('+').split('=')[0]}: given 2 times \("):
                read(overrides)

    def test_a_group_and_a_setting_of_it_are_two(self) -> None:
        assert load(["model=small", "model.name=mine"]).model.name == "mine"


class TestReferences:
    @pytest.mark.parametrize(
        "value", ["${oc.env:SECRET_TOKEN}", "'${oc.env:SECRET_TOKEN}'", "a${oc.env:SECRET_TOKEN}", "${seed}",
                  "${oc.decode:${oc.env:SECRET_TOKEN}}", "\\${oc.env:SECRET_TOKEN}", "${oc.env:NOTHING,1}"],
    )  # fmt: skip
    @pytest.mark.parametrize("key", ["out", "data.path", "model.name", "seed", "model", "metrics_file"])
    def test_to_the_environment_are_refused(self, key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "s3cret")
        for read in (load, expand_sweep):
            with pytest.raises(ConfigError) as error:
                read([f"{key}={value}"])
            assert "s3cret" not in str(error.value)
            assert "${...}" in str(error.value) or "cannot read" in str(error.value)

    def test_in_our_files_see_the_command_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = own_configs(tmp_path, monkeypatch)
        (own / "experiment" / "mine.yaml").write_text(
            "# @package _global_\nmodel:\n  intermediate_size: ${model.hidden_size}\n"
        )
        assert load(["experiment=mine", "model.hidden_size=64"]).model.intermediate_size == 64


class TestLabels:
    """Records, folders and reports name a run by its model: a preset's name is said of that preset only."""

    @pytest.mark.parametrize(
        ("overrides", "name"),
        [
            (["model=llama-30m"], "llama-30m"),
            (["model=llama-30m", "model.num_hidden_layers=1"], "llama-30m-modified"),
            (["model=llama-30m", "model.num_hidden_layers=10"], "llama-30m"),
            (["model=llama-30m", "model.rope_theta=5e5"], "llama-30m-modified"),
            (["model=gpt2-124m", "model.rope_theta=5e5"], "gpt2-124m"),
            (["model.bias=true"], "tiny-modified"),
            (["model.activation_checkpointing=true", "model.activation_checkpointing_blocks=1"], "tiny"),
            (["model.num_key_value_heads=4", "model.intermediate_size=512"], "tiny"),
            (["experiment=gpt2", "model.vocab_size=50304"], "gpt2-124m-modified"),
            (["model=small", "model.hidden_size=768", "model.name=mine"], "mine"),
        ],
    )
    def test_of_models(self, overrides: list[str], name: str) -> None:
        assert load(overrides).model.name == name

    @pytest.mark.parametrize(
        ("overrides", "name"),
        [
            (["workload=smoke"], "smoke"),
            (["workload=smoke", "workload.steps=12"], "smoke-modified"),
            (["workload=smoke", "workload.micro_batch_size=4", "workload.interval_steps=2"], "smoke"),
            (["experiment=gpt2"], "gpt2-modified"),
        ],
    )
    def test_of_workloads(self, overrides: list[str], name: str) -> None:
        assert load(overrides).workload.name == name

    def test_a_presets_name_for_other_values_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^model.name: found 'llama-30m', a preset whose values differ"):
            load(["model=tiny", "model.name=llama-30m"])

    @pytest.mark.parametrize("name", ["../model/tiny", "tiny.yaml", "*", ""])
    def test_other_names_are_only_names(self, name: str) -> None:
        assert load([f"model.name='{name}'"]).model.name == name


class TestSweeps:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ("range(1,100000000)", f"found over {MAX_JOBS} values"),
            ("shuffle(range(1,100000000))", f"found over {MAX_JOBS} values"),
            ("range(1,inf)", f"found over {MAX_JOBS} values"),
            ("range(0,1,1e-9)", f"found over {MAX_JOBS} values"),
            ("range(4,1)", "found no values"),
            ("range(1,4,0)", "must not be zero"),
            ("range(1.0,4.0,0.0)", "Invalid range"),
            ("interval(1,4)", "found an interval, expected values"),
            ("glob(x*)", "found no values"),
        ],
    )
    def test_that_never_end_or_never_start_are_refused(self, values: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            expand_sweep([f"seed={values}"])
        with pytest.raises(ConfigError, match=rf"{message}|found several values"):
            expand_sweep([f"model={values}"])

    def test_of_too_many_combinations_are_refused(self) -> None:
        hundred = "range(0,100)"
        with pytest.raises(ConfigError, match=f"over {MAX_JOBS} combinations"):
            expand_sweep([f"seed={hundred}", f"workload.steps={hundred}", f"repeats={hundred}", f"out={hundred}"])


class TestProblems:
    def test_all_of_a_command_line_are_listed(self) -> None:
        with pytest.raises(ConfigError) as error:
            load(["workload.steps=abc", "seed=x", "bakend=cpu", "model=nothing", "out=a", "out=b", "a b"])
        message = str(error.value)
        assert message.startswith("6 problems: (1) ")
        for part in ("workload.steps: found 'abc'", "seed: found 'x'", "bakend: no such setting",
                     "model: found 'nothing'", "out: given 2 times", "cannot read 'a b'"):  # fmt: skip
            assert part in message

    def test_all_limits_and_conflicts_are_listed(self) -> None:
        with pytest.raises(ConfigError) as error:
            load(["backend.threads=0", "workload.seq_len=9999", "model.num_attention_heads=3", "data.path=x", "out=''",
                  "resume=auto", "parallel.cpu_offload=true", "track.compile=model"])  # fmt: skip
        message = str(error.value)
        for key in ("backend.threads", "workload.seq_len", "model.num_attention_heads", "data.path", "out", "resume",
                    "parallel.cpu_offload", "track.compile"):  # fmt: skip
            assert f") {key}: " in message

    def test_limits_are_listed_beside_settings_that_do_not_exist(self) -> None:
        with pytest.raises(ConfigError) as error:
            load(["lr=1", "precision=fp31", "workload.steps=0", "seed=x", "backend.threads=null"])
        message = str(error.value)
        assert message.startswith("4 problems: ")
        for key in ("lr", "precision", "workload.steps", "seed"):
            assert f") {key}: " in message

    def test_a_value_out_of_its_limits_is_in_no_other_message(self) -> None:
        with pytest.raises(ConfigError) as error:
            load(["model.num_attention_heads=0", "workload.micro_batch_size=0", "workload.learning_rate=-inf"])
        assert str(error.value).count(": found") == 3

    @pytest.mark.parametrize("letter", "#=&;<!~^")
    def test_a_letter_that_needs_quotes_is_named(self, letter: str) -> None:
        with pytest.raises(
            ConfigError, match=rf"cannot read 'out=a/b{re.escape(letter)}3': found '{re.escape(letter)}' o"
        ):
            load([f"out=a/b{letter}3"])
        assert load([f"out='a/b{letter}3'"]).out == f"a/b{letter}3"

    def test_one_is_said_plainly(self) -> None:
        with pytest.raises(ConfigError, match=r"^seed: found 'x', expected a whole number$"):
            load(["seed=x"])


def test_nothing_imports_hydras_or_omegaconfs_internals() -> None:
    """They change between releases without notice: hydra.compose, hydra.core, hydra.plugins and omegaconf are enough.

    Used to be hydra._internal.config_loader_impl and hydra._internal.core_plugins.basic_sweeper.
    """
    found = []
    for path in sorted((PROJECT / "harness").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [(path.name, name) for name in names
                      if name.startswith(("hydra", "omegaconf")) and "._" in name]  # fmt: skip
    assert found == []


def own_configs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the config files, which is used from here on."""
    from harness import composition

    shutil.copytree(composition.config_directory(), folder / "configs")
    monkeypatch.setattr(composition, "config_directory", lambda: folder / "configs")
    return folder / "configs"
