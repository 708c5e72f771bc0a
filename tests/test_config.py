"""Settings: the identity of the work, what belongs to it and what does not, and that no field goes undocumented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import composition, suggestions
from harness.commands.child_process import hydra_quote
from harness.commands.help import setting_meanings
from harness.composition import expand_sweep, group_options, load
from harness.config import (
    EXCLUDED_FROM_WORKLOAD_ID,
    EXPERT_SETTINGS,
    OPERATIONS,
    PATH_SETTINGS,
    ROPE_PARAMETERS,
    STOCK_TRACK,
    Config,
    iter_settings,
    to_dict,
    to_yaml,
    workload_id,
    workload_settings,
)
from harness.errors import ConfigError
from harness.layout import AXES
from harness.text import layered_settings
from tests.conftest import with_settings_of_files

# Another legal value for every setting. A setting added later fails test_every_setting_is_known until it is here.
OTHER_VALUE: dict[str, str] = {
    "backend.device_index": "1",
    "backend.threads": "1",
    "model.name": "other",
    "model.vocab_size": "300",
    "model.max_position_embeddings": "600",
    "model.num_hidden_layers": "3",
    "model.hidden_size": "256",
    "model.num_attention_heads": "8",
    "model.num_key_value_heads": "2",
    "model.head_dim": "16",
    "model.intermediate_size": "100",
    "model.num_experts": "3",
    "model.norm": "rmsnorm",
    "model.norm_eps": "1e-6",
    "model.activation": "swiglu",
    "model.position_embedding": "learned",
    "model.rope_theta": "5e5",
    "model.rope_scaling.rope_type": "linear",
    "model.qk_norm": "true",
    "model.sliding_window": "600",
    "model.attention_bias": "qkv",
    "model.mlp_bias": "true",
    "model.bias": "true",
    "model.tie_word_embeddings": "false",
    "model.initializer_range": "0.01",
    "model.scaled_residual_init": "false",
    "model.activation_checkpointing": "true",
    "data.path": "elsewhere",
    "data.eval_path": "elsewhere",
    "data.eval_fraction": "0.1",
    "data.glob": "'*.txt'",
    "data.invalid_files": "skip",
    "data.field": "body",
    "data.tokenizer": "tokenizer.json",
    "data.dtype": "uint32",
    "workload.name": "other",
    "workload.steps": "601",
    "workload.timing_warmup_steps": "30",
    "workload.interval_steps": "5",
    "workload.seq_len": "128",
    "workload.global_batch_size": "32",
    "workload.micro_batch_size": "8",
    "workload.eval_every": "50",
    "workload.eval_sequences": "32",
    "workload.eval_first": "true",
    "workload.learning_rate": "1e-3",
    "workload.min_lr_ratio": "0.2",
    "workload.lr_warmup_steps": "10",
    "workload.weight_decay": "0.2",
    "workload.beta1": "0.8",
    "workload.beta2": "0.99",
    "workload.epsilon": "1e-7",
    "workload.max_grad_norm": "2.0",
    "track.adamw": "fused",
    "parallel.timeout_seconds": "60",
    "peak_collective_seconds": "10",
    "profile": "true",
    "autotune": "true",
    "autotuned": "true",
    "telemetry": "false",
    "fingerprint": "false",
    "log": "json",
    "log_level": "warning",
    "metrics_file": "metrics.prom",
    "tensorboard": "true",
    "tracker": "mlflow",
    "checkpoint.every": "10",
    "checkpoint.keep": "3",
    "checkpoint.asynchronous": "true",
    "on_nonfinite": "skip",
    "nonfinite_limit": "3",
    "loss_spike_factor": "2.0",
    "precision": "bf16",
    "seed": "2",
    "init": "elsewhere",
    "repeats": "2",
    "out": "elsewhere",
    "target_loss": "1.0",
}
# One legal value only, so far, or chosen by their group.
FIXED = {"backend.name", "data.name", "parallel.name", "track.name", "experiment", "resume"}
# Legal together with model=hf only, or with a rope_type.
FIXED |= {"model.path", *(f"model.rope_scaling.{name}" for names in ROPE_PARAMETERS.values() for name in names)}
# Legal together with model.activation_checkpointing=true only.
FIXED |= {"model.activation_checkpointing_blocks"}
# Only with experts: tests/test_experts.py.
FIXED |= {*EXPERT_SETTINGS}
# Legal together with track=tuned only.
FIXED |= {"track.compile", "track.activation_memory_budget", *(f"track.{name}" for name in OPERATIONS)}
# Legal together with parallel=fsdp only.
FIXED |= {
    *(f"parallel.{axis}" for axis in (*AXES, "pipeline_schedule", "pipeline_virtual_stages", "pipeline_blocks")),
    "parallel.cpu_offload",
    "parallel.low_precision_all_gather",
    "parallel.scaling_reference",
    "peak_dir",
    "autotune_dir",
}
BASE = ("data=text", "data.path=somewhere", "checkpoint.every=5")


def all_keys() -> list[str]:
    return [key for key, _, _ in iter_settings(Config)]


def belongs_to_the_work(key: str) -> bool:
    return not any(
        key == name or (name.endswith(".*") and key.startswith(name[:-1])) for name in EXCLUDED_FROM_WORKLOAD_ID
    )


def test_every_setting_is_known_here() -> None:
    assert set(all_keys()) == OTHER_VALUE.keys() | FIXED


def test_every_setting_is_documented() -> None:
    meanings = setting_meanings()
    assert meanings.keys() == set(all_keys())
    undocumented = [key for key, text in meanings.items() if len(text) < 10]
    assert undocumented == []


class TestWorkloadId:
    def test_golden(self) -> None:
        """The identity of the default work. It changes only together with the work (config.WORKLOAD_VERSION)."""
        assert workload_id(load([])) == "1949de43fc0fc0fb"

    @pytest.mark.parametrize("key", sorted(OTHER_VALUE))
    def test_changes_exactly_with_the_settings_that_are_work(self, key: str) -> None:
        before = workload_id(load([*BASE]))
        after = workload_id(load(layered_settings(BASE, [f"{key}={OTHER_VALUE[key]}"])))
        assert (before != after) is belongs_to_the_work(key)

    def test_what_a_backend_may_choose_is_not_work(self) -> None:
        for key in ("backend.threads", "workload.micro_batch_size", "workload.interval_steps", "data.path", "out"):
            assert not belongs_to_the_work(key)

    def test_the_backend_is_not_work(self) -> None:
        assert len({workload_id(load([f"backend={name}"])) for name in ("cpu", "cuda", "npu")}) == 1

    def test_defaults_spelt_out_are_the_same_work(self) -> None:
        assert workload_id(load([])) == workload_id(
            load(["model.num_key_value_heads=4", "model.intermediate_size=512"])
        )

    @pytest.mark.parametrize(
        "settings",
        [
            "model.head_dim=32",
            "model.attention_bias=none",
            "model.mlp_bias=false",
            "model.sliding_window=512",
            "data.field=body",
            "workload.eval_first=false",
            "model.bias=true,model.attention_bias=all,model.mlp_bias=true",
        ],
    )
    def test_settings_that_came_later_leave_it_as_it_was(self, settings: str) -> None:
        words = settings.split(",")
        before = [word for word in words if word.startswith("model.bias")]
        assert workload_id(load(words)) == workload_id(load(before))

    def test_a_record_from_before_a_setting_has_the_same(self) -> None:
        settings = to_dict(load([]))
        for key in ("num_experts", "num_experts_per_tok", "norm_topk_prob", "routing"):
            del settings["model"][key]
        for key in ("head_dim", "rope_scaling", "qk_norm", "attention_bias", "mlp_bias", "sliding_window", "path"):
            del settings["model"][key]
        del settings["data"]["field"], settings["workload"]["eval_first"], settings["init"]
        assert workload_id(settings) == workload_id(load([]))

    def test_a_rotary_base_that_nothing_reads_is_not_work(self) -> None:
        learned = "model.position_embedding=learned"
        assert workload_id(load([learned])) == workload_id(load([learned, "model.rope_theta=5e5"]))

    def test_holds_no_path(self) -> None:
        assert "somewhere" not in str(workload_settings(to_dict(load([*BASE]))))


class TestComposition:
    @pytest.mark.parametrize(
        ("group", "option"), [(group, option) for group, options in group_options().items() for option in options]
    )
    def test_every_option_of_every_group_composes(self, group: str, option: str) -> None:
        extra = ["model=llama-1b", "model.max_position_embeddings=4096"] if group == "workload" else []
        config = load(with_settings_of_files([f"{group}={option}", *extra]))
        part = getattr(config, group)
        assert (part if isinstance(part, str) else part.name) == option

    def test_the_portable_track_is_stock_pytorch(self) -> None:
        track = vars(load(["track=portable"]).track)
        assert track == {"name": "portable", **STOCK_TRACK}
        assert set(OPERATIONS) < set(STOCK_TRACK)

    def test_an_unknown_key_in_a_yaml_file_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import shutil

        from harness import composition

        shutil.copytree(composition.config_directory(), tmp_path / "configs")
        with open(tmp_path / "configs" / "model" / "tiny.yaml", "a", encoding="utf-8") as file:
            file.write("dropout: 0.1\n")
        monkeypatch.setattr(composition, "config_directory", lambda: tmp_path / "configs")
        with pytest.raises(ConfigError, match=r"dropout"):
            load([])

    def test_config_yaml_composes_to_the_same_settings(self) -> None:
        config = load(["model=llama-1b", "seed=7", "workload.learning_rate=1.5e-4"])
        flat: list[str] = []

        def walk(node: dict[str, Any], prefix: str) -> None:
            for key, value in node.items():
                if isinstance(value, dict):
                    walk(value, f"{prefix}{key}.")
                elif prefix + key != "experiment":
                    flat.append(f"{prefix}{key}={'null' if value is None else value}")

        walk(yaml.safe_load(to_yaml(config)), "")
        assert load(flat) == config

    def test_a_sweep_is_the_product_of_its_values(self) -> None:
        jobs = expand_sweep(["seed=1,2", "model=tiny,small", "workload.steps=50"])
        assert len(jobs) == 4
        assert {(load(job).seed, load(job).model.name) for job in jobs} == {
            (1, "tiny"), (2, "tiny"), (1, "small"), (2, "small"),
        }  # fmt: skip

    def test_a_misspelt_value_in_a_sweep_is_found_before_anything_runs(self) -> None:
        with pytest.raises(ConfigError, match=r"found 'tinny', expected one of: .*did you mean tiny"):
            expand_sweep(["model=small,tinny"])

    @pytest.mark.parametrize(
        "name", ["plain", "with space", "it's", "a,b", "a=b", "(x)", "[1]", "{a}", "back\\slash", "a\\'b", "end\\"]
    )
    def test_any_folder_name_survives_the_override_grammar(self, name: str) -> None:
        assert load([f"out={hydra_quote(Path('/tmp') / name)}"]).out == f"/tmp/{name}"


class TestHomeFolder:
    """A shell leaves ~ as it is after an equal sign."""

    def test_a_leading_tilde_is_expanded_in_every_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        # Read at once, and so expanded first.
        settings = [key for key in PATH_SETTINGS if key != "model.path"]
        config = load(["data=text", "parallel=ddp", *(f"{key}=~/my notes" for key in settings)])
        for key in settings:
            node: Any = config
            for name in key.split("."):
                node = getattr(node, name)
            assert node == "/home/me/my notes", key

    def test_one_elsewhere_stays(self) -> None:
        assert load(["data=text", "data.path='a/~b'"]).data.path == "a/~b"

    def test_an_unknown_user_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"out: found '~no_such_user/x', but no home folder"):
            load(["out=~no_such_user/x"])

    def test_every_setting_that_is_a_path_is_listed(self) -> None:
        path_endings = ("path", "_dir", "_file")
        named = {key for key, _, _ in iter_settings(Config) if key.rsplit(".", 1)[-1].endswith(path_endings)}
        assert named <= set(PATH_SETTINGS) <= {key for key, _, _ in iter_settings(Config)}


class TestSuggestions:
    """Other programs' names of a setting are known by their meaning, everything else by its spelling."""

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("lr=1e-3", "did you mean workload.learning_rate?"),
            ("workload.lr=1e-3", "did you mean workload.learning_rate?"),
            ("batch_size=8", "did you mean workload.global_batch_size?"),
            ("per_device_train_batch_size=8", "did you mean workload.micro_batch_size?"),
            ("n_layer=12", "did you mean model.num_hidden_layers?"),
            ("block_size=1024", "did you mean workload.seq_len?"),
            ("grad-clip=1", "did you mean workload.max_grad_norm?"),
            ("mixed_precision=bf16", "did you mean precision?"),
            ("output_dir=x", "did you mean out?"),
            ("steps=4", "did you mean workload.steps?"),
            ("workload.stps=4", "did you mean workload.steps?"),
            ("dropout=0.1", "no such setting: the models have no dropout"),
            ("model.num_local_experts=8", "no such setting; did you mean model.num_experts?"),
            ("parallel.expert=2", "no such setting: use parallel=mesh with parallel.tensor, over whose"),
            ("parallel.expert_parallel_size=8", "no such setting: use parallel=mesh with parallel.tensor, over whose"),
            ("model.n_shared_experts=1", "no such setting: all blocks of a mixture have the same experts"),
            ("gpus=4", "python -m harness torchrun --nproc-per-node=N"),
            # Not data.dtype, the type of tokens in a file, nor workload.global_batch_size.
            ("dtype=bfloat16", "did you mean precision?"),
            ("local_batch_size=2", "did you mean workload.micro_batch_size?"),
            ("warmup_ratio=0.1", "did you mean workload.lr_warmup_steps?"),
            ("tensor_parallel_size=2", "no such setting: use parallel=mesh with parallel.tensor and parallel.pipeline"),
        ],
    )
    def test_know_synonyms(self, given: str, said: str) -> None:
        with pytest.raises(ConfigError, match="no such setting") as caught:
            load([given])
        assert said in str(caught.value)

    def test_nothing_near_is_no_suggestion(self) -> None:
        with pytest.raises(ConfigError, match="xyz: no such setting; python"):
            load(["xyz=1"])

    def test_every_synonym_is_of_a_setting_and_of_one_alone(self) -> None:
        settings = {key for key, _, _ in iter_settings(Config)} | set(composition.GROUPS)
        assert suggestions.SYNONYMS.keys() <= settings
        names = [name for text in suggestions.SYNONYMS.values() for name in text.split()]
        assert len(names) == len(set(names))
        assert not set(names) & (settings | suggestions.ABSENT.keys())
