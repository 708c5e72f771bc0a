"""Settings of a model from a Hugging Face config.json, as transformers reads it: each missing key has its default.

What the harness cannot compute is refused by name. Nothing is downloaded, and no code is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config import (
    ROPE_PARAMETERS,
    ModelConfig,
    attention_bias,
    head_dim,
    intermediate_size,
    mlp_bias,
    num_key_value_heads,
)
from harness.errors import ConfigError
from harness.file_formats import foreign_format, read_head, special_file
from harness.regular_files import load_json, strict_json
from harness.text import did_you_mean, shortened

CONFIG_FILE = "config.json"
# Classes of transformers, by the family that a model with RMS norm is written as.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
KEY = "model.path"

# Keys that change nothing in a training step. `max_window_layers` matters only with a window, which is refused.
_WORDS = """
_attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures bad_words_ids
begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
id2label is_decoder is_encoder_decoder keys_to_ignore_at_inference label2id length_penalty max_length
max_window_layers min_length model_type n_ctx no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
output_attentions output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
remove_invalid_values reorder_and_upcast_attn repetition_penalty return_dict return_dict_in_generate sep_token_id
suppress_tokens summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
torchscript transformers_version typical_p use_bfloat16 use_cache
"""
HARMLESS = frozenset(_WORDS.split())
# Keys with the one value of theirs that changes nothing.
NEUTRAL: Mapping[str, Any] = {
    "auto_map": None,
    "quantization_config": None,
    "pretraining_tp": 1,
    "partial_rotary_factor": 1.0,
    "use_mrope": False,
    "truncate": True,
    "mscale": None,
    "mscale_all_dim": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
WHY = {
    "auto_map": "the model is code of its own, which is never run",
    "quantization_config": "quantized weights cannot be trained",
}
# Dropout draws other numbers on every device, so that no two runs could be compared. It is left out, as in the presets.
DROPOUT = frozenset({"attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"})
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
GATES = {"silu": "swiglu", "swish": "swiglu"}
_REQUIRED = object()


def read_model(given: str) -> dict[str, Any]:
    """Return the values of ModelConfig's settings that a config.json states.

    Args:
        given: the file, or the folder that holds it.

    Raises:
        ConfigError: it cannot be read, is no such file, or describes a model that the harness cannot compute.
    """
    file = Path(given)
    if file.is_dir():
        file /= CONFIG_FILE
    keys = _Keys(file, _load(file))
    family = keys.pop("model_type", str)
    if family not in FAMILIES:
        raise keys.error(
            "model_type", f"expected one of: {', '.join(FAMILIES)}{did_you_mean(str(family), list(FAMILIES))}"
        )
    settings = FAMILIES[family](keys)
    keys.check_rest()
    return {"name": _name_of(file.parent) or family, **settings}


def _name_of(folder: Path) -> str:
    """Return a model's name by its folder; in the hub's cache that is models--OWNER--NAME/snapshots/REVISION."""
    # Of the folder: the file itself may be a link to a blob.
    found = folder.resolve()
    if found.parent.name == "snapshots" and found.parents[1].name.startswith("models--"):
        return found.parents[1].name.rpartition("--")[2]
    return found.name


def to_huggingface(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return the config.json of a model, from which transformers builds the same one.

    Raises:
        ConfigError: none of its families has this architecture.
    """
    if model.position_embedding == "learned":
        return _to_gpt2(model) | {"dtype": dtype}
    return _to_llama_block(model) | {"dtype": dtype}


def _to_gpt2(model: ModelConfig) -> dict[str, Any]:
    _expect(model, num_experts=None, norm="layernorm", qk_norm=False,
            head_dim=model.hidden_size // model.num_attention_heads,
            num_key_value_heads=model.num_attention_heads, attention_bias="all", mlp_bias=True, bias=True)  # fmt: skip
    activation = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation), None)
    if activation is None:
        raise _no_family(f"model.activation={model.activation}")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.max_position_embeddings,
        "n_embd": model.hidden_size,
        "n_layer": model.num_hidden_layers,
        "n_head": model.num_attention_heads,
        "n_inner": intermediate_size(model),
        "activation_function": activation,
        "layer_norm_epsilon": model.norm_eps,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_word_embeddings,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def _to_llama_block(model: ModelConfig) -> dict[str, Any]:
    biases, is_qwen2 = attention_bias(model), attention_bias(model) == "qkv"
    _expect(model, norm="rmsnorm", activation="swiglu")
    if is_qwen2 or model.qk_norm:
        _expect(model, mlp_bias=False)
    if is_qwen2:
        _expect(model, qk_norm=False)
    family = "qwen3" if model.qk_norm else "qwen2" if is_qwen2 else "llama"
    if model.sliding_window is not None:
        # Of these families alone every layer has the window.
        if model.qk_norm or biases != "none" or mlp_bias(model):
            raise _no_family(f"model.sliding_window={model.sliding_window}")
        family = "mistral"
    if model.num_experts is not None:
        family = "qwen3_moe" if model.qk_norm else "mixtral"
        # Weights that were trained by turns are those of another function.
        _expect(model, routing="learned")
        _expect(model, attention_bias=biases if model.qk_norm else "none",
                norm_topk_prob=model.norm_topk_prob if model.qk_norm else True)  # fmt: skip
    scaling = model.rope_scaling
    rope = {name: getattr(scaling, name) for name in ("rope_type", *ROPE_PARAMETERS[scaling.rope_type])}
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "num_hidden_layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": num_key_value_heads(model),
        "head_dim": head_dim(model),
        "intermediate_size": intermediate_size(model),
        "rms_norm_eps": model.norm_eps,
        "hidden_act": "silu",
        "rope_theta": model.rope_theta,
        "rope_scaling": {key: value for key, value in rope.items() if value is not None},
        **({} if family in ("qwen2", "mistral", "mixtral") else {"attention_bias": biases == "all"}),
        **({"sliding_window": model.sliding_window} if family in ("mistral", "mixtral") else {}),
        **_experts_of(model, family),
        **({"mlp_bias": mlp_bias(model)} if family == "llama" else {}),
        "tie_word_embeddings": model.tie_word_embeddings,
        "initializer_range": model.initializer_range,
        "attention_dropout": 0.0,
    }


def _experts_of(model: ModelConfig, family: str) -> dict[str, Any]:
    """Return the keys of a mixture of experts."""
    if model.num_experts is None:
        return {}
    of_family = {
        "mixtral": {"num_local_experts": model.num_experts},
        "qwen3_moe": {
            "num_experts": model.num_experts,
            "moe_intermediate_size": intermediate_size(model),
            "norm_topk_prob": model.norm_topk_prob,
        },
    }
    return {"num_experts_per_tok": model.num_experts_per_tok, **of_family[family]}


def _expect(model: ModelConfig, **expected: Any) -> None:
    """Raise ConfigError for a setting that no family with the others has."""
    meant = {"head_dim": head_dim, "num_key_value_heads": num_key_value_heads, "attention_bias": attention_bias,
             "mlp_bias": mlp_bias}  # fmt: skip
    for name, value in expected.items():
        found = meant[name](model) if name in meant else getattr(model, name)
        if found != value:
            raise _no_family(f"model.{name}={found}")


def _no_family(setting: str) -> ConfigError:
    return ConfigError(
        f"export: none of {', '.join(FAMILIES)} has {setting} with the other settings of this model, so that "
        "transformers could not load it"
    )


class _Keys:
    """The keys of a config.json, each taken once; the rest has to be harmless."""

    def __init__(self, file: Path, content: Mapping[str, Any], prefix: str = "") -> None:
        self._file, self._rest, self._content, self._prefix = file, dict(content), content, prefix

    def pop(self, key: str, kind: type, default: Any = _REQUIRED, *, optional: bool = False) -> Any:
        """Return a value of the given type, or the default if the key is missing.

        Args:
            optional: null is a value of its own.
        """
        if key not in self._content:
            if default is _REQUIRED:
                raise ConfigError(f"{KEY}: {self._file}: has no {self._prefix}{key}, expected {_NAMES[kind]}")
            return default
        value = self._rest.pop(key, self._content[key])
        if value is None and optional:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self.error(key, f"expected {_NAMES[kind]}")
        return value

    def section(self, key: str) -> _Keys:
        """Return the keys of an object inside, without any if it is missing or null."""
        content = self.pop(key, dict, None, optional=True)
        return _Keys(self._file, content or {}, f"{self._prefix}{key}.")

    def choose(self, key: str, default: str, choices: Mapping[str, str]) -> str:
        """Return our word for the value of a key."""
        value = self.pop(key, str, default)
        if value not in choices:
            raise self.error(key, f"expected one of: {', '.join(choices)}")
        return choices[value]

    def error(self, key: str, expected: str) -> ConfigError:
        found = shortened(json.dumps(self._content[key]))
        return ConfigError(f"{KEY}: {self._file}: {self._prefix}{key}: found {found}, {expected}")

    def check_rest(self) -> None:
        """Raise ConfigError for a key that is left over and may change what is computed."""
        for key, value in self._rest.items():
            if key in HARMLESS or key in DROPOUT or (key in NEUTRAL and value in (None, NEUTRAL[key])):
                continue
            if key in NEUTRAL:
                raise self.error(key, f"which the harness does not compute: {WHY.get(key, f'leave {key} out')}")
            raise self.error(
                key,
                "a key that the harness does not know, and that may change what is computed; if it does not, "
                "leave it out of a copy of the file",
            )


_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", dict: "an object", list: "a list"}


def _load(file: Path) -> dict[str, Any]:
    try:
        kind = special_file(file)
        head = b"" if kind is not None else read_head(file)
        foreign = None if kind is not None else foreign_format(head, file.name)
        if kind is not None or foreign is not None:
            found, remedy = (kind, f"name the file in {KEY}") if foreign is None else foreign
            raise ConfigError(f"{KEY}: {file}: is {found}, expected a Hugging Face config.json; {remedy}")
        content = load_json(file, strict_json)
    except OSError as error:
        raise ConfigError(
            f"{KEY}: {file}: cannot be read: {error.strerror or error}; give a Hugging Face config.json, or its folder"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{KEY}: {file}: is no JSON: {error}; give a Hugging Face config.json") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{KEY}: {file}: holds {_NAMES.get(type(content), 'null')}, expected an object")
    return content


def _llama_block(keys: _Keys, *, vocab_size: int, intermediate_size: int, kv_heads: int | None, positions: int,
                 layers: int = 32, hidden_size: int = 4096, head_dim: int | None = None, eps: float = 1e-6,
                 theta: float = 1e4) -> dict[str, Any]:  # fmt: skip
    """Return the settings of RMS norm, rotary positions and SwiGLU. The arguments are the family's defaults."""
    longest = keys.pop("max_position_embeddings", int, positions)
    return {
        "vocab_size": keys.pop("vocab_size", int, vocab_size),
        "max_position_embeddings": longest,
        "num_hidden_layers": keys.pop("num_hidden_layers", int, layers),
        "hidden_size": keys.pop("hidden_size", int, hidden_size),
        "num_attention_heads": keys.pop("num_attention_heads", int, 32),
        "num_key_value_heads": keys.pop("num_key_value_heads", int, kv_heads, optional=True),
        "head_dim": keys.pop("head_dim", int, head_dim, optional=True),
        "intermediate_size": keys.pop("intermediate_size", int, intermediate_size),
        "norm": "rmsnorm",
        "norm_eps": keys.pop("rms_norm_eps", float, eps),
        "activation": keys.choose("hidden_act", "silu", GATES),
        "position_embedding": "rotary",
        **_rotary(keys, longest, theta),
        "bias": False,
        "tie_word_embeddings": keys.pop("tie_word_embeddings", bool, False),
        "initializer_range": keys.pop("initializer_range", float, 0.02),
        "scaled_residual_init": False,
    }


def _rotary(keys: _Keys, longest: int, theta: float) -> dict[str, Any]:
    """Return base and scaling of the rotary positions, in the keys of transformers 4 or 5."""
    old, new = keys.section("rope_scaling"), keys.section("rope_parameters")
    parts = [part for part in (new, old) if part._content] or [new]
    used = parts[0]
    theta = used.pop("rope_theta", float, keys.pop("rope_theta", float, theta))
    kind = used.pop("rope_type", str, None) or used.pop("type", str, "default")
    used.pop("type", str, kind)
    if kind not in ROPE_PARAMETERS:
        raise used.error(
            "rope_type" if "rope_type" in used._content else "type", f"expected one of: {', '.join(ROPE_PARAMETERS)}"
        )
    scaling: dict[str, Any] = {"rope_type": kind}
    for name in ROPE_PARAMETERS[kind]:
        number = int if name == "original_max_position_embeddings" else float
        default = _REQUIRED if name == "factor" or kind == "llama3" else None
        value = used.pop(name, number, default, optional=default is None)
        if value is not None:
            scaling[name] = value
    if kind == "yarn":
        scaling.setdefault("original_max_position_embeddings", longest)
    for part in parts:
        part.check_rest()
    return {"rope_theta": theta, "rope_scaling": scaling}


def _window(keys: _Keys, *, on: bool, default: int | None = 4096) -> dict[str, Any]:
    """Return the window of attention, which may be that of some layers only."""
    window = keys.pop("sliding_window", int, default, optional=True)
    kinds = keys.pop("layer_types", list, [], optional=True) or []
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise keys.error("layer_types", "expected full_attention or sliding_attention")
    return {"sliding_window": window if on or "sliding_attention" in kinds else None}


def _llama(keys: _Keys) -> dict[str, Any]:
    block = _llama_block(keys, vocab_size=32000, intermediate_size=11008, kv_heads=None, positions=2048)
    biases = {
        "attention_bias": "all" if keys.pop("attention_bias", bool, False) else "none",
        "mlp_bias": keys.pop("mlp_bias", bool, False),
    }
    return block | biases


def _mistral(keys: _Keys) -> dict[str, Any]:
    block = _llama_block(keys, vocab_size=32000, intermediate_size=14336, kv_heads=8, positions=131072)
    return block | _window(keys, on=True)


def _qwen2(keys: _Keys) -> dict[str, Any]:
    block = _llama_block(keys, vocab_size=151936, intermediate_size=22016, kv_heads=32, positions=32768)
    # transformers does not read the key for this family.
    keys.pop("attention_bias", bool, True)
    return block | {"attention_bias": "qkv"} | _window(keys, on=keys.pop("use_sliding_window", bool, False))


def _qwen3(keys: _Keys) -> dict[str, Any]:
    block = _llama_block(
        keys, vocab_size=151936, intermediate_size=22016, kv_heads=32, positions=32768, head_dim=128
    )  # fmt: skip
    biases = {"attention_bias": "all" if keys.pop("attention_bias", bool, False) else "none"}
    window = _window(keys, on=keys.pop("use_sliding_window", bool, False))
    return block | {"qk_norm": True} | biases | window


def _mixtral(keys: _Keys) -> dict[str, Any]:
    block = _llama_block(
        keys, vocab_size=32000, intermediate_size=14336, kv_heads=8, positions=131072, eps=1e-5, theta=1e6
    )
    _expect_value(keys, "router_jitter_noise", float, 0.0, "which draws random numbers; leave it out")
    experts = {
        "num_experts": keys.pop("num_local_experts", int, keys.pop("num_experts", int, 8)),
        "num_experts_per_tok": keys.pop("num_experts_per_tok", int, 2),
        "norm_topk_prob": True,
    }
    _check_router_loss(keys)
    return block | experts | _window(keys, on=True, default=None)


def _qwen3_moe(keys: _Keys) -> dict[str, Any]:
    block = _llama_block(
        keys, vocab_size=151936, intermediate_size=6144, kv_heads=4, positions=32768, layers=24, hidden_size=2048
    )
    # Of blocks without experts, of which there are none.
    block["intermediate_size"] = keys.pop("moe_intermediate_size", int, 768)
    for key, kind, value in (("decoder_sparse_step", int, 1), ("mlp_only_layers", list, [])):
        _expect_value(keys, key, kind, value, "but blocks without experts among others are not implemented")
    experts = {
        "num_experts": keys.pop("num_experts", int, keys.pop("num_local_experts", int, 128)),
        "num_experts_per_tok": keys.pop("num_experts_per_tok", int, 8),
        "norm_topk_prob": keys.pop("norm_topk_prob", bool, False),
    }
    biases = {"attention_bias": "all" if keys.pop("attention_bias", bool, False) else "none"}
    window = _window(keys, on=keys.pop("use_sliding_window", bool, False))
    _check_router_loss(keys)
    return block | {"qk_norm": True} | experts | biases | window


def _check_router_loss(keys: _Keys) -> None:
    """Raise ConfigError if a loss balances the experts."""
    keys.pop("router_aux_loss_coef", float, 0.0)
    _expect_value(keys, "output_router_logits", bool, False, "whose loss that balances experts is not implemented")


def _expect_value(keys: _Keys, key: str, kind: type, value: Any, why: str) -> None:
    if keys.pop(key, kind, value, optional=True) not in (None, value):
        raise keys.error(key, why)


def _gpt2(keys: _Keys) -> dict[str, Any]:
    return {
        "vocab_size": keys.pop("vocab_size", int, 50257),
        "max_position_embeddings": keys.pop("n_positions", int, 1024),
        "num_hidden_layers": keys.pop("n_layer", int, 12),
        "hidden_size": keys.pop("n_embd", int, 768),
        "num_attention_heads": keys.pop("n_head", int, 12),
        "intermediate_size": keys.pop("n_inner", int, None, optional=True),
        "norm": "layernorm",
        "norm_eps": keys.pop("layer_norm_epsilon", float, 1e-5),
        "activation": keys.choose("activation_function", "gelu_new", ACTIVATIONS),
        "position_embedding": "learned",
        "bias": True,
        "tie_word_embeddings": keys.pop("tie_word_embeddings", bool, True),
        "initializer_range": keys.pop("initializer_range", float, 0.02),
        "scaled_residual_init": True,
    }


FAMILIES: Mapping[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gpt2": _gpt2,
}
