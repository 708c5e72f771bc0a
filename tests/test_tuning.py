"""Resolution of track=tuned: the backend's defaults, the requested kernels, or an error."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo.config as tracing
import torch._functorch.config as partitioning
from torch._dynamo.utils import counters

from harness import backends
from harness.backends import kernels
from harness.backends.base import Backend
from harness.backends.host_checks import compiled_code_problems
from harness.composition import load
from harness.config import OPERATIONS, STOCK, BackendConfig, Config, ModelConfig, TrackConfig
from harness.errors import BackendUnavailable, ConfigError
from harness.layout import Layout
from harness.text import layered_settings
from harness.training.tuning import apply_track, resolve_track
from harness.workload.model import Transformer
from tests.tiny import TINY

# Several micro-batches a step, in bf16.
WORK = load([*TINY, "precision=bf16"])
TUNED = load([*TINY, "track=tuned"]).track
MODEL = WORK.model


def resolved(
    track: TrackConfig, model: ModelConfig, backend: Backend, layout: Layout, *, sharded: bool, work: Config = WORK
) -> TrackConfig:
    config = replace(work, track=track, model=model)
    return resolve_track(config, backend, layout, sharded=sharded, alone=layout.size == 1 and not sharded)


@pytest.fixture
def backend() -> Backend:
    return backends.create(BackendConfig(name="cpu"))


def test_null_is_the_backends_default(backend: Backend) -> None:
    found = resolved(TUNED, MODEL, backend, Layout(), sharded=False)
    assert {key: getattr(found, key) for key in backend.tuned_defaults(WORK)} == dict(backend.tuned_defaults(WORK))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("model=gpt2-124m",), {"rotary": "stock", "rms_norm": "stock", "swiglu": "stock"}),
        (("model=llama-30m",), {"rotary": "fused", "rms_norm": "fused", "swiglu": "fused"}),
        (("model=gpt2-124m", "model.norm=rmsnorm"), {"rotary": "stock", "rms_norm": "fused", "swiglu": "stock"}),
    ],
)
def test_operations_that_a_model_does_not_compute_stay_stock(shape: tuple[str, ...], expected: dict[str, str]) -> None:
    """On NPU the fused kernels are the default: a record must not name one that did not run."""
    npu, model = backends.create(BackendConfig(name="npu")), load([*shape]).model
    found = resolved(TUNED, model, npu, Layout(), sharded=False)
    assert {operation: getattr(found, operation) for operation in expected} == expected
    assert (found.compile, found.attention, found.adamw) == ("no", "stock", "foreach")


def test_requested_kernels_stay(backend: Backend) -> None:
    requested = replace(TUNED, attention="stock", compile="no")
    found = resolved(requested, MODEL, backend, Layout(), sharded=False)
    assert (found.attention, found.compile) == ("stock", "no")
    assert found.cross_entropy == backend.tuned_defaults(WORK)["cross_entropy"]


def test_only_compiled_parts_have_a_memory_budget(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {**backend.tuned_defaults(WORK), "activation_memory_budget": 0.5}
    monkeypatch.setattr(type(backend), "tuned_defaults", lambda self, config: defaults)
    plain = replace(TUNED, compile="no")
    for track, expected in ((TUNED, 0.5), (plain, 1.0)):
        for sharded in (False, True):
            found = resolved(track, MODEL, backend, Layout(), sharded=sharded)
            assert found.activation_memory_budget == expected
    with pytest.raises(ConfigError, match=r"track.activation_memory_budget: found 0.5, but only compiled parts"):
        resolved(replace(plain, activation_memory_budget=0.5), MODEL, backend, Layout(), sharded=False)


def test_the_budget_reaches_the_compiler(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitioning, "activation_memory_budget", 1.0)
    for name in backend.compiler_settings:
        monkeypatch.setattr(partitioning, name, True)
    with torch.device("meta"):
        model = Transformer(load([*TINY]).model)
    track = resolved(replace(TUNED, activation_memory_budget=0.25), MODEL, backend, Layout(), sharded=False)
    apply_track(model, track, backend, Layout(), sharded=False)
    assert partitioning.activation_memory_budget == 0.25
    assert backend.compiler_settings
    for name, value in backend.compiler_settings.items():
        assert getattr(partitioning, name) is value


def test_programs_of_another_mesh_are_not_loaded(backend: Backend) -> None:
    """Group names are part of a program, and not of that cache's key."""
    with torch.device("meta"):
        model = Transformer(load([*TINY]).model)
    before = {"enable_autograd_cache": True, "unsafe_treat_script_objects_as_zero_size": False}
    with partitioning.patch({key: value for key, value in before.items() if hasattr(partitioning, key)}):
        for layout, cached in ((Layout(shard=2), True), (Layout(tensor=2), False)):
            apply_track(model, resolved(TUNED, MODEL, backend, layout, sharded=True), backend, layout, sharded=True)
            assert partitioning.enable_autograd_cache is cached


# PyTorch warns of what its own compiler does.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_programs_with_a_custom_function_are_kept(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is loaded where it was compiled before, and compiled again if its backward pass is another."""
    flag = "autograd_cache_allow_custom_autograd_functions"
    if not hasattr(partitioning, flag):
        pytest.skip(f"torch {torch.__version__} keeps no programs with a custom autograd.Function: it has no {flag}")
    monkeypatch.setattr(partitioning, flag, False)
    with torch.device("meta"):
        model = Transformer(load([*TINY]).model)
    apply_track(model, resolved(TUNED, MODEL, backend, Layout(), sharded=False), backend, Layout(), sharded=False)
    operands = [torch.randn(1, 2, 64, 16) for _ in range(3)]
    number = int.from_bytes(os.urandom(4), "little")  # No other test compiled this program.

    def found() -> tuple[torch.Tensor, bool]:
        """Return the gradient of the keys, and true if the program was loaded."""
        torch.compiler.reset()
        counters.clear()
        q, k, v = (operand.clone().requires_grad_() for operand in operands)
        program = torch.compile(
            lambda q, k, v: number * kernels.blocked_attention(q, k, v), dynamic=False, fullgraph=True
        )
        program(q, k, v).sum().backward()
        assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
        assert k.grad is not None
        return k.grad, counters["aot_autograd"]["autograd_cache_hit"] == 1

    (first, first_loaded), (again, again_loaded) = found(), found()
    whole = kernels._sum_of_blocks
    monkeypatch.setattr(kernels, "_sum_of_blocks", lambda grads, blocks: 2 * whole(grads, blocks))
    doubled, doubled_loaded = found()
    assert (first_loaded, again_loaded, doubled_loaded) == (False, True, False)
    assert torch.equal(again, first)
    assert torch.equal(doubled, 2 * first)


@pytest.mark.parametrize(
    ("settings", "attention", "cross_entropy"),
    [
        ((), "blocked", "chunked"),
        (("model.max_position_embeddings=16384", "workload.seq_len=8192"), "blocked", "chunked"),
        # Memory grows with its square.
        (("model.max_position_embeddings=16384", "workload.seq_len=8193"), STOCK, "chunked"),
        # Scores of trained weights are large: rounded products lose too much of them.
        (("init=weights.safetensors",), STOCK, "chunked"),
        (("precision=fp16",), STOCK, STOCK),
    ],
    ids=str,
)
def test_the_cpu_chooses_by_the_work(
    settings: tuple[str, ...], attention: str, cross_entropy: str, backend: Backend
) -> None:
    work = load(layered_settings(TINY, ["precision=bf16", "data=synthetic"], settings))
    found = resolved(TUNED, work.model, backend, Layout(), sharded=False, work=work)
    assert (found.attention, found.cross_entropy) == (attention, cross_entropy)
    asked = replace(TUNED, attention="blocked", cross_entropy="chunked")
    found = resolved(asked, work.model, backend, Layout(), sharded=False, work=work)
    assert (found.attention, found.cross_entropy) == ("blocked", "chunked")


def test_ddp_cuts_the_graph_of_a_whole_model_alone(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "optimize_ddp", True)
    with torch.device("meta"):
        model = Transformer(load([*TINY]).model)
    layout = Layout(data=2)
    for compile_mode, expected in (("blocks", False), ("model", True)):
        track = resolved(replace(TUNED, compile=compile_mode), MODEL, backend, layout, sharded=False)
        apply_track(model, track, backend, layout, sharded=False)
        assert tracing.optimize_ddp is expected


def test_shards_are_compiled_block_by_block(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(TUNED, MODEL, backend, Layout(), sharded=True).compile == "blocks"
    defaults = {**backend.tuned_defaults(WORK), "compile": "model"}
    monkeypatch.setattr(type(backend), "tuned_defaults", lambda self, config: defaults)
    assert resolved(TUNED, MODEL, backend, Layout(), sharded=False).compile == "model"
    assert resolved(TUNED, MODEL, backend, Layout(), sharded=True).compile == "blocks"


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2), Layout(shard=2, context=2)], ids=str)
def test_every_layout_is_compiled(layout: Layout, backend: Backend) -> None:
    assert resolved(TUNED, MODEL, backend, layout, sharded=True).compile == "blocks"


def test_logits_cut_by_vocabulary_have_the_stock_loss(backend: Backend) -> None:
    assert resolved(TUNED, MODEL, backend, Layout(tensor=2), sharded=True).cross_entropy == STOCK
    with pytest.raises(
        ConfigError, match=r"^track\.cross_entropy: found chunked, but a layout of tensor 2 has only stock"
    ):
        resolved(replace(TUNED, cross_entropy="chunked"), MODEL, backend, Layout(tensor=2), sharded=True)


def test_a_backward_pass_in_two_parts_has_the_stock_loss(backend: Backend) -> None:
    work = load(layered_settings(TINY, ["parallel=mesh", "parallel.pipeline_schedule=zero_bubble"]))
    eager = replace(TUNED, compile="no")
    assert resolved(eager, MODEL, backend, Layout(pipeline=2), sharded=True, work=work).cross_entropy == STOCK
    asked = replace(eager, cross_entropy="chunked")
    with pytest.raises(ConfigError, match=r"found chunked, but parallel\.pipeline_schedule=zero_bubble has only stock"):
        resolved(asked, MODEL, backend, Layout(pipeline=2), sharded=True, work=work)


class TestGradientAccumulation:
    """In bf16, of several micro-batches, and in one process: elsewhere it would be no faster, or another's task."""

    @pytest.mark.parametrize(
        ("settings", "layout", "expected"),
        [
            ((), Layout(), "fused"),
            (("precision=bf16_weights",), Layout(), "fused"),
            (("precision=fp32",), Layout(), STOCK),
            (("precision=fp16",), Layout(), STOCK),
            (("workload.micro_batch_size=4",), Layout(), STOCK),
            ((), Layout(data=2), STOCK),
        ],
        ids=str,
    )
    def test_is_fused_where_it_helps(
        self, settings: tuple[str, ...], layout: Layout, expected: str, backend: Backend
    ) -> None:
        work = load(layered_settings(TINY, ["precision=bf16"], settings))
        found = resolved(TUNED, MODEL, backend, layout, sharded=False, work=work)
        assert found.gradient_accumulation == expected

    def test_is_what_is_asked_for(self, backend: Backend) -> None:
        work = load(layered_settings(TINY, ["precision=bf16", "workload.micro_batch_size=4"]))
        for asked in (STOCK, "fused"):
            track = replace(TUNED, gradient_accumulation=asked)
            found = resolved(track, MODEL, backend, Layout(), sharded=False, work=work)
            assert found.gradient_accumulation == asked

    def test_of_several_processes_is_refused(self, backend: Backend) -> None:
        track = replace(TUNED, gradient_accumulation="fused")
        for layout, sharded in ((Layout(data=2), False), (Layout(), True)):
            with pytest.raises(ConfigError, match=r"^track\.gradient_accumulation: found fused, but under torchrun"):
                resolved(track, MODEL, backend, layout, sharded=sharded)

    def test_of_a_model_that_is_compiled_as_a_whole(self, backend: Backend) -> None:
        whole = replace(TUNED, compile="model")
        assert resolved(whole, MODEL, backend, Layout(), sharded=False).gradient_accumulation == STOCK
        with pytest.raises(ConfigError, match=r"found fused, but track\.compile=model compiles the embedding too"):
            resolved(replace(whole, gradient_accumulation="fused"), MODEL, backend, Layout(), sharded=False)


def test_an_unknown_kernel(backend: Backend) -> None:
    with pytest.raises(ConfigError, match=r"backend cpu has no kernel 'flash9', expected one of: stock"):
        resolved(replace(TUNED, attention="flash9"), MODEL, backend, Layout(), sharded=False)


def test_compilation_needs_a_compiler(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailable, match="no-such-compiler is not on the PATH"):
        resolved(replace(TUNED, compile="blocks"), MODEL, backend, Layout(), sharded=False)
    assert resolved(replace(TUNED, compile="no"), MODEL, backend, Layout(), sharded=False).compile == "no"


def test_portable_is_stock_everywhere(backend: Backend) -> None:
    track = load(list(TINY)).track
    assert resolved(track, MODEL, backend, Layout(), sharded=False) == track == TrackConfig(name="portable")


@pytest.mark.parametrize("override", ["track.compile=blocks", "track.attention=blocked", "track.cross_entropy=chunked",
                                  "track.adamw=null", "track.compile=null", "track.rms_norm=fused",
                                  "track.activation_memory_budget=0.5"])  # fmt: skip
def test_portable_allows_stock_only(override: str) -> None:
    with pytest.raises(ConfigError, match=r"track=portable is stock PyTorch on every device; use track=tuned"):
        load([*TINY, override])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("rotary", "model.position_embedding=learned"),
        ("rms_norm", "model.norm=layernorm"),
        ("swiglu", "model.activation=gelu_tanh"),
        ("gradient_accumulation", "precision=fp32"),
    ],
)
def test_a_kernel_for_an_operation_that_the_work_lacks(operation: str, expected: str) -> None:
    overrides = [*TINY, "model.position_embedding=learned", "track=tuned", f"track.{operation}=fused"]
    with pytest.raises(ConfigError, match=rf"track.{operation}: found fused, but with {expected} there is nothing"):
        load(overrides)


def test_the_models_operations_are_those_that_can_be_tuned() -> None:
    config = load([*TINY, "model.norm=rmsnorm"]).model
    with torch.device("meta"):
        model = Transformer(config)
    found = {operation for module in model.modules() for operation in getattr(module, "kernels", ())}
    assert found == set(OPERATIONS)

    def kernel(*values: torch.Tensor) -> torch.Tensor:
        return values[0]

    model.use_kernels(dict.fromkeys(OPERATIONS, kernel))
    for module in model.modules():
        for operation in getattr(module, "kernels", ()):
            assert getattr(module, operation) is kernel


def test_a_whole_model_of_shards_is_not_compiled() -> None:
    with pytest.raises(ConfigError, match=r"track.compile: found model, but parallel=fsdp gathers weights block"):
        load([*TINY, "track=tuned", "track.compile=model", "parallel=fsdp"])


@pytest.mark.parametrize(("name", "expected"), [("cuda", "needs triton"), ("npu", "is not supported on NPU")])
def test_missing_requirements_of_compilation_are_named(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    backend = backends.create(BackendConfig(name=name))
    with pytest.raises(BackendUnavailable, match=expected):
        resolved(replace(TUNED, compile="blocks"), MODEL, backend, Layout(), sharded=False)


def test_cuda_compiles_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    backend = backends.create(BackendConfig(name="cuda"))
    assert resolved(replace(TUNED, compile="model"), MODEL, backend, Layout(), sharded=False).compile == "model"


@pytest.mark.parametrize("name", ["cuda", "npu"])
def test_every_backend_has_its_default_kernels(name: str) -> None:
    backend = backends.create(BackendConfig(name=name))
    track = replace(TUNED, compile="no")
    found = resolved(track, MODEL, backend, Layout(), sharded=False)
    assert found.name == "tuned"


class TestCompiledCode:
    """The folder from which torch.compile loads its programs, in every state."""

    def test_a_folder_yet_to_be_made_in_one_where_programs_run(self, tmp_path: Path) -> None:
        assert compiled_code_problems({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "a" / "b")}) == []
        assert list(tmp_path.iterdir()) == []

    def test_a_mount_that_forbids_execution(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbid(*_: object, **named: int) -> None:
            assert named["prot"] & mmap.PROT_EXEC
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(mmap, "mmap", forbid)
        [problem] = compiled_code_problems({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
        assert f"{tmp_path}, where nothing can be executed: Operation not permitted" in problem.what
        assert "/tmp:exec" in problem.remedy
        with pytest.raises(BackendUnavailable, match="nothing can be executed"):
            resolved(
                replace(TUNED, compile="blocks"), MODEL, backends.create(BackendConfig(name="cpu")), Layout(),
                sharded=False,
            )  # fmt: skip

    @pytest.mark.parametrize("folder", ["/dev/null/a", "/proc/a"])
    def test_a_place_that_cannot_be_written(self, folder: str) -> None:
        [problem] = compiled_code_problems({"TORCHINDUCTOR_CACHE_DIR": folder})
        assert f"{folder}, where nothing can be written" in problem.what

    def test_no_temporary_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr("tempfile.gettempdir", none)
        [problem] = compiled_code_problems({})
        assert "needs a temporary folder: No usable temporary directory found" in problem.what
