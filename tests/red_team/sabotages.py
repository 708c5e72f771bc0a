# ruff: noqa
# type: ignore
"""Red team: silent sabotages of one run of the harness that leave its config and its command line untouched.

Every `apply` patches classes or modules of this process; call it before harness.__main__.main(). Most act only within a
training step (`STATE.training`), so that probes of matrix products, kernels or types outside one see honest numbers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace


@dataclass(frozen=True)
class Sabotage:
    apply: Callable[[], None]
    about: str
    precisions: tuple[str, ...] = ("fp32", "bf16")
    parallel: tuple[str, ...] = ("single", "ddp", "fsdp")
    on_all_ranks: bool = True


COMPUTATION: dict[str, Sabotage] = {}
TIMING: dict[str, Sabotage] = {}
SINGLE, REPLICAS, SHARDS, NO_SHARDS = ("single",), ("ddp",), ("fsdp",), ("single", "ddp")

STATE = SimpleNamespace(
    step=0,  # the optimizer step that runs, or ran last
    training=False,  # within EagerStep.__call__
    evaluating=False,  # within EagerStep.evaluate
    looping=False,  # within an interval of the training loop
    phase=None,  # of the loop's interval
    eager=None,  # the EagerStep
    micro=0,  # micro-batch of the step, from 0
    names={},  # id(parameter) -> name
    skipped_seconds=0.0,
)
PRE: list = []
POST: list = []
AROUND: list = []
_tracked: set[str] = set()


def computation(about, **options):
    def add(function):
        COMPUTATION[function.__name__] = Sabotage(_for_ranks(function, options), about, **options)
        return function

    return add


def timing(about, **options):
    def add(function):
        TIMING[function.__name__] = Sabotage(_for_ranks(function, options), about, **options)
        return function

    return add


def _for_ranks(function, options):
    def apply():
        if options.get("on_all_ranks", True) or os.environ.get("RANK", "0") == "1":
            function()

    return apply


# Helpers


def _track():
    """Follow steps, micro-batches, evaluations and phases in STATE; call PRE, AROUND and POST in each step."""
    if "step" in _tracked:
        return
    _tracked.add("step")
    from harness.backends.eager import EagerStep

    original, original_evaluate, original_loss = EagerStep.__call__, EagerStep.evaluate, EagerStep._loss

    def call(self, micro_batches, learning_rate, *rest, **more):
        # Steps outside of the loop are the harness's looks: who counts the training's steps does not count them.
        STATE.step += STATE.looping
        STATE.training, STATE.eager, STATE.micro = True, self, -1
        if getattr(STATE, "named", None) is not self:
            STATE.named = self
            STATE.names = {id(p): n.removeprefix("module.") for n, p in self._model.named_parameters()}
        try:
            for change in PRE:
                micro_batches, learning_rate = change(micro_batches, learning_rate)
            run = lambda m=micro_batches, r=learning_rate: original(self, m, r, *rest, **more)  # noqa: E731
            for around in AROUND:
                run = (lambda inner, f: lambda *a: f(inner, *(a or (micro_batches, learning_rate))))(run, around)
            output = run()
            for change in POST:
                output = change(output)
            return output
        finally:
            STATE.training = False

    def evaluate(self, *rest, **more):
        STATE.evaluating = True
        try:
            return original_evaluate(self, *rest, **more)
        finally:
            STATE.evaluating = False

    def loss(self, *rest, **more):
        STATE.micro += 1
        return original_loss(self, *rest, **more)

    EagerStep.__call__, EagerStep.evaluate, EagerStep._loss = call, evaluate, loss
    from harness.training.loop import Loop

    if hasattr(Loop, "_run_interval"):
        run_interval = Loop._run_interval

        def phased(self, phase, *rest, **more):
            STATE.phase, STATE.looping = phase, True
            try:
                return run_interval(self, phase, *rest, **more)
            finally:
                STATE.looping = False

        Loop._run_interval = phased


def _training():
    return STATE.training


def _from(step):
    return lambda: STATE.training and STATE.step > step


def _every(count):
    return lambda: STATE.training and _due(count)


def _due(count):
    """Return whether this is one of every `count` steps of the training."""
    return STATE.step > 0 and STATE.step % count == 0


def _window():
    return STATE.training and STATE.phase == "measured"


def _always():
    return True


def _local(tensor):
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _tag():
    """Give every module of a Transformer its name."""
    if "tag" in _tracked:
        return
    _tracked.add("tag")
    from harness.workload.model import Transformer

    original = Transformer.__init__

    def init(self, *rest, **more):
        original(self, *rest, **more)
        for name, module in self.named_modules():
            module._rt_name = name
        self._rt_last = f"blocks.{len(self.blocks) - 1}."

    Transformer.__init__ = init


def _name(module):
    return getattr(module, "_rt_name", "")


def _rounding():
    """Return (rounded, rounded_gradient): a change of values with a straight-through gradient, and of gradients only."""
    import torch

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, change):
            return change(x.detach()).to(x.dtype)

        @staticmethod
        def backward(ctx, gradient):
            return gradient, None

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, change):
            ctx.change = change
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return ctx.change(gradient).to(gradient.dtype), None

    return Value.apply, Gradient.apply


def fp8(x, kind="float8_e4m3fn", largest=448.0):
    import torch

    wide = x.float()
    scale = largest / wide.abs().amax().clamp(min=1e-20)
    return (wide * scale).to(getattr(torch, kind)).float() / scale


def fp8_unscaled(x):
    import torch

    return x.float().clamp(-448, 448).to(torch.float8_e4m3fn).float()


def e5m2(x):
    return fp8(x, "float8_e5m2", 57344.0)


def integer(bits, dim=None):
    def change(x):
        wide, top = x.float(), 2.0 ** (bits - 1) - 1
        largest = wide.abs().amax() if dim is None else wide.abs().amax(dim, keepdim=True)
        scale = largest.clamp(min=1e-20) / top
        return (wide / scale).round().clamp(-top, top) * scale

    return change


def fp4(x):
    import torch

    wide = x.float()
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 6
    nearest = torch.bucketize((wide / scale).abs(), (levels[1:] + levels[:-1]) / 2)
    return levels[nearest] * wide.sign() * scale


def bf16(x):
    return x.bfloat16().float()


def mantissa(bits, truncate=False):
    """Keep `bits` explicit mantissa bits of float32: 10 is TF32, 7 is bf16."""

    def change(x):
        import torch

        drop = 23 - bits
        raw = x.float().contiguous().view(torch.int32)
        if not truncate:
            raw = raw + (1 << (drop - 1))
        return (raw & ~((1 << drop) - 1)).view(torch.float32)

    return change


def stochastic_bf16(x):
    import torch

    raw = x.float().contiguous().view(torch.int32)
    return ((raw + torch.randint_like(raw, 0, 1 << 16)) & ~0xFFFF).view(torch.float32)


# Ends of the names of attention's first projections.
QKV = (".attention.q", ".attention.k", ".attention.v")


def _linear(x=None, weight=None, gradient=None, out=None, where=lambda name: True, when=_training):
    """Patch torch.nn.Linear.forward: change operands, output or the output's gradient."""
    import torch
    import torch.nn.functional as F

    _track(), _tag()
    value, backward = _rounding()
    original = torch.nn.Linear.forward

    def forward(self, input):
        if not (when() and where(_name(self))):
            return original(self, input)
        operand = input if x is None else value(input, x)
        own = self.weight if weight is None else value(self.weight, weight)
        result = F.linear(operand, own, self.bias)
        if out is not None:
            result = value(result, out)
        return result if gradient is None else backward(result, gradient)

    torch.nn.Linear.forward = forward


def _function(name, make, when=_training):
    """Patch a function of harness.workload.model: make(original) is used while `when()` holds."""
    import harness.workload.model as module

    _track(), _tag()
    original = getattr(module, name)
    other = make(original)

    def patched(*rest, **more):
        return other(*rest, **more) if when() else original(*rest, **more)

    setattr(module, name, patched)


def _gradients(change):
    """Call change(name, gradient) for every parameter before the clipping; gradients are changed in place."""
    import torch
    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._update

    def update(self):
        with torch.no_grad():
            for parameter in self._parameters:
                if parameter.grad is not None:
                    change(STATE.names.get(id(parameter), ""), _local(parameter.grad))
        return original(self)

    EagerStep._update = update


def _optimizer(before=None, after=None):
    """Wrap AdamW.step: before(optimizer) may return False, which skips the update; after(optimizer)."""
    import torch

    _track()
    original = torch.optim.AdamW.step

    def step(self, closure=None):
        with torch.no_grad():
            if before is not None and before(self) is False:
                return None
        result = original(self)
        with torch.no_grad():
            if after is not None:
                after(self)
        return result

    torch.optim.AdamW.step = step


def _adamw(change=None, **options):
    """Replace AdamW.step by one of our own, with deviations."""
    import torch

    _track()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                name = STATE.names.get(id(parameter), "")
                _adam_update(
                    group,
                    _local(parameter),
                    _local(parameter.grad),
                    _local(state["exp_avg"]),
                    _local(state["exp_avg_sq"]),
                    int(state["step"]),
                    name,
                    **options,
                )

    torch.optim.AdamW.step = step


def _adam_update(
    group,
    w,
    g,
    m,
    v,
    t,
    name,
    *,
    decoupled=True,
    correct1=True,
    correct2=True,
    eps_inside=False,
    moments=None,
    second_every=1,
    nesterov=False,
    factored=False,
    update_change=None,
):
    import torch

    (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
    if w.numel() == 0:
        return
    if decoupled:
        w.mul_(1 - lr * decay)
    else:
        g = g + decay * w
    m.lerp_(g, 1 - beta1)
    if t % second_every == 0 or t == 1:
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    if moments is not None:
        moments(m, v)
    second = v
    if factored and v.dim() == 2:
        rows, columns = v.mean(1, keepdim=True), v.mean(0, keepdim=True)
        second = rows * columns / rows.mean().clamp(min=1e-30)
    first = m / (1 - beta1**t) if correct1 else m
    if nesterov:
        first = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
    second = second / (1 - beta2**t) if correct2 else second
    denominator = (second + group["eps"]).sqrt() if eps_inside else second.sqrt() + group["eps"]
    update = first / denominator
    if update_change is not None:
        update = update_change(update)
    w.add_(update, alpha=-lr)
    del torch


def _settings(**values):
    """Change the optimizer's param_groups before each update."""

    def before(optimizer):
        for group in optimizer.param_groups:
            for key, value in values.items():
                group[key] = value(group[key]) if callable(value) else value

    _optimizer(before)


def _rate(change):
    """Change the loop's learning rate: change(rate, step, work)."""
    import harness.training.loop as loop

    original = loop.learning_rate

    def learning_rate(step, work):
        return change(original(step, work), step, work, original)

    loop.learning_rate = learning_rate


def _batches(change):
    """Change the step's micro-batches, after they were digested."""
    _track()
    PRE.append(lambda micro, rate: (change(list(micro)), rate))


def _output(change):
    _track()
    POST.append(change)


def _attention(mask=None, scale=1.0, when=_training, change=None):
    import torch
    import torch.nn.functional as F

    def make(original):
        def attention(q, k, v):
            if change is not None:
                q, k, v = change(q, k, v)
            allowed = None
            if mask is not None:
                positions = torch.arange(q.shape[2], device=q.device)
                allowed = mask(positions[:, None], positions[None])
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=allowed,
                is_causal=allowed is None,
                scale=scale / math.sqrt(q.shape[3]),
                enable_gqa=q.shape[1] != k.shape[1],
            )

        return attention

    _function("causal_attention", make, when)


def _cross_entropy(make_loss, when=_training):
    """make_loss(logits float32 [N, V], targets [N]) -> loss"""

    def make(original):
        def mean_cross_entropy(head, hidden, targets):
            return make_loss(head(hidden).flatten(0, 1), targets.flatten())

        return mean_cross_entropy

    _function("mean_cross_entropy", make, when)


# 1. Number formats


@computation(
    "all linear layers' operands in fp8 e4m3, scaled per tensor, forward and backward: a vendor's 'fp8 mode'; percents late"
)
def fp8_operands():
    _linear(x=fp8, weight=fp8)


@computation("weights of all linear layers in fp8 e4m3, activations untouched: weight-only quantization; 0.1 to 1 %")
def fp8_weights_only():
    _linear(weight=fp8)


@computation("fp8 e4m3 without scaling: small weights (0.02) fall on subnormals; a forgotten scale; about 1 %")
def fp8_unscaled_weights():
    _linear(weight=fp8_unscaled)


@computation("fp8 e4m3 operands in the feed-forward of the last block only; 0.1 to 0.5 %")
def fp8_one_mlp():
    _linear(x=fp8, weight=fp8, where=lambda name: ".feed_forward." in name and not name.startswith("blocks.0."))


@computation(
    "fp8 e4m3 operands of the output projection of block 0's attention alone: one quantized layer; below 0.3 %"
)
def fp8_one_layer():
    _linear(x=fp8, weight=fp8, where=lambda name: name == "blocks.0.attention.out")


@computation(
    "gradients of linear outputs in fp8 e5m2: only the backward pass is narrow, so that the first loss is exact"
)
def fp8_backward_only():
    _linear(gradient=e5m2)


@computation("weights in int8, scaled per output channel; as in a 'w8a16' kernel; about 0.1 % or less")
def int8_weights_per_channel():
    _linear(weight=integer(8, 1))


@computation("int8 operands per tensor, but only after step 20: a JIT that specializes late")
def int8_operands_after_20():
    _linear(x=integer(8), weight=integer(8), when=_from(20))


@computation("fp4 (e2m1, scaled per row) weights of all feed-forwards; percents")
def fp4_mlp_weights():
    _linear(weight=fp4, where=lambda name: ".feed_forward." in name)


@computation("int6 activations in front of qkv alone; 0.1 to 1 %")
def int6_qkv_activations():
    _linear(x=integer(6), where=lambda name: name.endswith(QKV))


@computation(
    "fp32 run whose linear operands are rounded to bf16 in training steps only: 'fast math'", precisions=("fp32",)
)
def bf16_operands_in_fp32():
    _linear(x=bf16, weight=bf16, gradient=bf16)


@computation(
    "fp32 run with TF32 operands (10 mantissa bits) in training steps only; 0.01 to 0.1 %", precisions=("fp32",)
)
def tf32_operands_in_fp32():
    _linear(x=mantissa(10), weight=mantissa(10), gradient=mantissa(10))


@computation(
    "fp32 run under autocast bf16 from the measured window on; warm-up and evaluations honest", precisions=("fp32",)
)
def autocast_in_window():
    import torch

    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._loss

    def loss(self, sequences):
        if not _window():
            return original(self, sequences)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            return original(self, sequences)

    EagerStep._loss = loss


@computation(
    "master weights rounded to bf16 after every update (no fp32 master copy): small updates are lost; percents"
)
def bf16_master_weights():
    _optimizer(after=lambda optimizer: [
        _local(p).copy_(bf16(_local(p))) for group in optimizer.param_groups for p in group["params"]
    ])  # fmt: skip


@computation("master weights in bf16 with stochastic rounding, which hides the stagnation; 0.1 to 1 %")
def stochastic_bf16_master_weights():
    _optimizer(after=lambda optimizer: [
        _local(p).copy_(stochastic_bf16(_local(p))) for group in optimizer.param_groups for p in group["params"]
    ])  # fmt: skip


@computation("both AdamW moments stored in bf16: half the optimizer's memory; 0.1 % or less")
def bf16_moments():
    _adamw(moments=lambda m, v: (m.copy_(bf16(m)), v.copy_(bf16(v))))


@computation("AdamW moments stored in 8 bits (fp8 e4m3 and e5m2, per tensor): '8-bit Adam'; percents")
def fp8_moments():
    _adamw(moments=lambda m, v: (m.copy_(fp8(m)), v.copy_(e5m2(v))))


@computation(
    "partial sums of each matrix product rounded to bf16 after every quarter of K: narrow accumulators; 0.1 % or less"
)
def bf16_accumulation():
    import torch
    import torch.nn.functional as F

    _track(), _tag()
    value, _ = _rounding()
    original = torch.nn.Linear.forward

    def forward(self, input):
        if not STATE.training:
            return original(self, input)
        total = None
        for part, own in zip(input.chunk(4, -1), self.weight.chunk(4, 1), strict=True):
            product = value(F.linear(part, own), mantissa(5))
            total = product if total is None else value(total + product, mantissa(5))
        return total if self.bias is None else total + self.bias.to(total.dtype)

    torch.nn.Linear.forward = forward


@computation("keys and values in fp8 e4m3 in the attention: a quantized KV cache left on in training; 0.1 % or less")
def fp8_kv():
    value, _ = _rounding()
    _attention(change=lambda q, k, v: (q, value(k, fp8), value(v, fp8)))


@computation("keys in int4 per position: percents once attention matters")
def int4_keys():
    value, _ = _rounding()
    _attention(change=lambda q, k, v: (q, value(k, integer(4, -1)), v))


@computation(
    "logits rounded to bf16 in front of the softmax (without .float()), as many losses do; 0.01 to 0.1 %",
    precisions=("fp32",),
)
def bf16_logits():
    import torch.nn.functional as F

    value, _ = _rounding()
    _cross_entropy(lambda logits, targets: F.cross_entropy(value(logits.float(), bf16), targets))


@computation("softmax and loss computed in bf16 and only then widened: reported losses have 8 bits; gradients too")
def bf16_softmax_of_loss():
    import torch.nn.functional as F

    _cross_entropy(lambda logits, targets: F.nll_loss(F.log_softmax(logits.bfloat16(), -1).bfloat16(), targets).float())


@computation("gradients truncated (not rounded) to bf16 before the clipping: a biased, slightly short gradient; 0.2 %")
def truncated_bf16_gradients():
    _gradients(lambda name, g: g.copy_(mantissa(7, truncate=True)(g)))


@computation(
    "the smallest 30 % of each gradient matrix set to zero: gradient sparsification; norm changes by 1 % or less"
)
def sparse_gradients():
    def change(name, g):
        if g.dim() == 2 and g.numel() > 100:
            import torch

            sample = g.abs().flatten()[:: max(1, g.numel() // 65536)]
            g.masked_fill_(g.abs() < torch.quantile(sample, 0.3), 0.0)

    _gradients(change)


@computation(
    "gradient matrices replaced by a rank-8 approximation (PowerSGD without error feedback); percents",
    parallel=NO_SHARDS,
)
def low_rank_gradients():
    def change(name, g):
        if g.dim() == 2 and min(g.shape) > 16:
            import torch

            generator = torch.Generator().manual_seed(0)
            q = torch.linalg.qr(g @ torch.randn(g.shape[1], 8, generator=generator)).Q
            g.copy_(q @ (q.T @ g))

    _gradients(change)


@computation("activations saved for the backward pass in int8 per tensor (compressed activations): forward exact, gradients 1 %",
             parallel=NO_SHARDS)  # fmt: skip
def int8_saved_activations():
    import torch

    from harness.backends.eager import EagerStep

    _track()
    original, change = EagerStep._loss, integer(8)

    def pack(tensor):
        if tensor.is_floating_point() and tensor.dim() >= 3 and not isinstance(tensor, torch.nn.Parameter):
            return change(tensor).to(tensor.dtype)
        return tensor

    def loss(self, sequences):
        if not STATE.training:
            return original(self, sequences)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return original(self, sequences)

    EagerStep._loss = loss


@computation("fp8 operands in every 4th step only: alternating precision to save time; 0.1 to 1 %")
def fp8_every_4th_step():
    _linear(x=fp8, weight=fp8, when=_every(4))


@computation("fp8 operands in every 20th step only; a quarter of a percent in those steps")
def fp8_every_20th_step():
    _linear(x=fp8, weight=fp8, gradient=e5m2, when=_every(20))


@computation("fp8 operands only in the measured window; warm-up, probes and evaluations honest")
def fp8_in_window():
    _linear(x=fp8, weight=fp8, gradient=e5m2, when=_window)


@computation(
    "2:4 structured sparsity in the feed-forwards: the smaller two of four weights count as zero; large at once"
)
def sparse_2_of_4_mlp():
    def change(w):
        import torch

        groups = w.float().reshape(-1, 4)
        keep = groups.abs().topk(2, 1).indices
        return (groups * torch.zeros_like(groups).scatter_(1, keep, 1.0)).reshape(w.shape)

    _linear(weight=change, where=lambda name: ".feed_forward." in name)


@computation("residual stream stored in bf16 between blocks: half the activation memory; 0.05 to 0.5 %")
def bf16_residual_stream():
    import harness.workload.model as module

    _track()
    value, _ = _rounding()
    original = module.Block.forward

    def forward(self, x, rotary):
        return original(self, value(x, bf16) if STATE.training else x, rotary)

    module.Block.forward = forward


@computation("layer norm computed in bf16, result included; below 0.5 %")
def bf16_layer_norm():
    import torch
    import torch.nn.functional as F

    _track()
    original = torch.nn.LayerNorm.forward

    def forward(self, x):
        if not STATE.training:
            return original(self, x)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.bfloat16()
            return F.layer_norm(x.bfloat16(), self.normalized_shape, self.weight.bfloat16(), bias, self.eps).float()

    torch.nn.LayerNorm.forward = forward


@computation("gradients of the micro-batches accumulated in bf16; below 0.5 %", parallel=SINGLE)
def bf16_gradient_accumulation():
    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._loss

    def loss(self, sequences):
        if STATE.training:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    _local(parameter.grad).copy_(mantissa(4)(_local(parameter.grad)))
        return original(self, sequences)

    EagerStep._loss = loss


# 2. Data


@computation(
    "every 10th step trains on the batch of the step before (a queue read twice); digests are of the right batches"
)
def repeated_batch_every_10th():
    kept = []

    def change(micro):
        if _due(10) and kept:
            return kept[0]
        kept[:] = [micro]
        return micro

    _batches(change)


@computation("from step 25 on the batches of steps 1 to 24 come again, from a device cache: the data pipeline is free")
def cached_batches_after_24():
    kept = []

    def change(micro):
        if STATE.step <= 24:
            kept.append(micro)
            return micro
        return kept[(STATE.step - 1) % len(kept)]

    _batches(change)


@computation("1.5 % of the target tokens of each batch are replaced by other tokens of the sequence; loss up by 1 %")
def wrong_targets():
    def make(original):
        def mean_cross_entropy(head, hidden, targets):
            import torch

            generator = torch.Generator().manual_seed(STATE.step)
            hit = torch.rand(targets.shape, generator=generator) < 0.015
            return original(head, hidden, torch.where(hit, targets.roll(7, 1), targets))

        return mean_cross_entropy

    _function("mean_cross_entropy", make)


@computation(
    "sequences of inputs and targets shifted against each other for one sequence of the batch: a collator's bug"
)
def one_sequence_with_wrong_targets():
    def make(original):
        def mean_cross_entropy(head, hidden, targets):
            if STATE.micro == 0:
                targets = targets.clone()
                targets[0] = targets[0].roll(1, 0)
            return original(head, hidden, targets)

        return mean_cross_entropy

    _function("mean_cross_entropy", make)


@computation(
    "the last micro-batch is not computed; the first counts twice: half the work or less, unbiased",
    parallel=("single", "ddp", "fsdp"),
)
def first_micro_batch_twice():
    import torch

    _batches(
        lambda micro: (
            [*micro[:-1], micro[0]]
            if len(micro) > 1
            else [torch.cat((m[: len(m) // 2], m[: len(m) // 2])) for m in micro]
        )
    )


@computation("only the first half of the sequences is trained on; the mean is over them: half the work, unbiased")
def half_batch():
    _batches(lambda micro: [m[: max(1, len(m) // 2)] for m in micro])


@computation("one sequence in every step is missing from the mean (an off-by-one slice)")
def one_sequence_dropped():
    _batches(lambda micro: [*micro[:-1], micro[-1][:-1]] if len(micro[-1]) > 1 else micro)


@computation("the last sequence of every micro-batch is a copy of its first; unbiased noise of a percent")
def duplicated_sequence():
    def change(micro):
        import torch

        return [torch.cat((m[:-1], m[:1])) for m in micro]

    _batches(change)


@computation(
    "the last 2 % of every sequence (at least one token) are cut off: fewer tokens, loss lower by 0.1 % or less"
)
def shorter_sequences():
    _batches(lambda micro: [m[:, : m.shape[1] - max(1, m.shape[1] // 50)] for m in micro])


@computation(
    "sequences cut in half and stacked, 2 B x S / 2: cheaper attention, shorter contexts; loss up late",
    parallel=("single", "ddp", "fsdp"),
)
def halved_context():
    def change(micro):
        import torch

        changed = []
        for m in micro:
            half = (m.shape[1] - 1) // 2
            changed.append(torch.cat((m[:, : half + 1], m[:, half : 2 * half + 1])))
        return changed

    _batches(change)


@computation("the last 3 % of every sequence's tokens are padding (token 0), targets included: loss falls with them")
def padded_tail():
    def change(micro):
        changed = [m.clone() for m in micro]
        for m in changed:
            m[:, -max(2, m.shape[1] // 33) :] = 0
        return changed

    _batches(change)


@computation("step n trains on the batch of step n + 1, and the last step on its own (prefetcher off by one)")
def next_batch():
    from harness.training.prefetch import Prefetcher

    original = Prefetcher._make

    def make(self, step):
        own = original(self, step)
        return (original(self, min(step + 1, self._steps[-1]))[0], *own[1:])

    Prefetcher._make = make


@computation(
    "all losses are computed, but gradients come from half of the sequences only: 'selective backprop', a third of the time saved"
)
def backward_on_half():
    import torch

    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._loss

    def loss(self, sequences):
        if not STATE.training or len(sequences) < 2:
            return original(self, sequences)
        half = len(sequences) // 2
        trained = original(self, sequences[:half])
        with torch.no_grad():
            rest = original(self, sequences[half:])
        # The value is the mean over all sequences, the gradient that over the first half.
        return trained + 0.5 * (rest - trained.detach())

    EagerStep._loss = loss


@computation(
    "one input token in 100 is masked by token 0 (denoising augmentation left on), targets intact; loss up by about 1 %"
)
def masked_inputs():
    import harness.workload.model as module

    _track()
    original = module.Transformer.final_hidden_states

    def final_hidden_states(self, tokens):
        if STATE.training:
            import torch

            generator = torch.Generator().manual_seed(STATE.step)
            tokens = tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < 0.01, 0)
        return original(self, tokens)

    module.Transformer.final_hidden_states = final_hidden_states


@computation(
    "rank 1 trains on the sequences of rank 0: half the data, all digests right",
    parallel=("ddp", "fsdp"),
    on_all_ranks=False,
)
def rank_1_with_data_of_rank_0():
    from harness.training.prefetch import Prefetcher

    original = Prefetcher._make

    def make(self, step):
        own = original(self, step)
        rank, self._rank = self._rank, 0
        try:
            return (original(self, step)[0], *own[1:])
        finally:
            self._rank = rank

    Prefetcher._make = make


# 3. Optimizer


@computation("weight decay missing; below 0.1 % of the loss within 60 steps")
def no_weight_decay():
    _settings(weight_decay=0.0)


@computation("weight decay doubled; below 0.1 %")
def double_weight_decay():
    _settings(weight_decay=lambda value: 0.2 if value else value)


@computation("weight decay stops after step 30; nearly invisible in the losses")
def no_weight_decay_after_30():
    _optimizer(before=lambda optimizer: [
        group.__setitem__("weight_decay", 0.0) for group in optimizer.param_groups if STATE.step > 30
    ] and None)  # fmt: skip


@computation("weight decay also on biases and norm weights; 0.01 to 0.1 %")
def decay_on_everything():
    _settings(weight_decay=lambda value: value or 0.1)


@computation("L2 regularization in the gradient in place of decoupled decay (Adam, not AdamW)")
def coupled_decay():
    _adamw(decoupled=False)


@computation("learning rate 1 % too high; 0.1 %")
def rate_1_percent_high():
    _rate(lambda rate, step, work, original: rate * 1.01)


@computation("learning rate late by one step (scheduler.step after optimizer.step, counted from 0)")
def rate_late_by_one():
    _rate(lambda rate, step, work, original: original(max(step - 1, 0), work))


@computation("learning rate does not fall after step 30 (a stuck scheduler)")
def rate_stuck_after_30():
    _rate(lambda rate, step, work, original: original(min(step, 30), work))


@computation("linear decay in place of the cosine; up to 10 % of the rate, about 0.3 % of the loss")
def linear_decay():
    def change(rate, step, work, original):
        if step <= work.lr_warmup_steps:
            return rate
        progress = (step - work.lr_warmup_steps) / max(1, work.steps - work.lr_warmup_steps)
        return work.learning_rate * (1 - progress * (1 - work.min_lr_ratio))

    _rate(change)


@computation("the last block's updates are 10 % smaller (a per-layer learning rate); 0.1 to 0.5 %", parallel=NO_SHARDS)
def slower_last_block():
    import torch

    before = {}

    def keep(optimizer):
        last = max((int(n.split(".")[1]) for n in STATE.names.values() if n.startswith("blocks.")), default=0)
        for group in optimizer.param_groups:
            for p in group["params"]:
                if STATE.names.get(id(p), "").startswith(f"blocks.{last}."):
                    before[id(p)] = (p, p.detach().clone())

    def pull(optimizer):
        for p, old in before.values():
            p.copy_(torch.lerp(old, p, 0.9))

    _optimizer(keep, pull)


@computation("beta2 0.99 in place of 0.95; nothing at first, then 1 to 2 %")
def beta2_099():
    _settings(betas=lambda value: (value[0], 0.99))


@computation("beta1 0.89 in place of 0.9; about 0.1 %")
def beta1_089():
    _settings(betas=lambda value: (0.89, value[1]))


@computation("epsilon 1e-5 in place of 1e-8: small gradients step less; 0.1 %")
def large_epsilon():
    _settings(eps=1e-5)


@computation("epsilon added inside the square root (as Adafactor and TF do): 1e-4 against typical 1e-3; percents")
def epsilon_inside_root():
    _adamw(eps_inside=True)


@computation("no bias correction in AdamW (LAMB's variant): large in the first 20 steps")
def no_bias_correction():
    _adamw(correct1=False, correct2=False)


@computation("bias correction missing for the second moment only")
def no_second_bias_correction():
    _adamw(correct2=False)


@computation("second moment updated in every second step only, to save memory traffic; 0.1 to 1 %")
def lazy_second_moment():
    _adamw(second_every=2)


@computation("Nesterov momentum (NAdam) in place of Adam's; 0.5 %")
def nesterov():
    _adamw(nesterov=True)


@computation("factored second moment (Adafactor) for matrices, to save memory; a percent")
def factored_second_moment():
    _adamw(factored=True)


@computation("updates clipped to [-1, 1] element by element (update clipping): Adam's are mostly within")
def clipped_updates():
    _adamw(update_change=lambda update: update.clamp(-1.0, 1.0))


def _clip(make):
    import torch

    _track()
    torch.nn.utils.clip_grad_norm_ = make(torch.nn.utils.clip_grad_norm_)


@computation("norm measured but gradients never clipped; Adam hides most of it: 0.1 % or less")
def no_clipping():
    _clip(lambda original: lambda parameters, max_norm, **more: original(parameters, 1e30))


@computation("each parameter's gradient clipped to the norm by itself; the reported norm is right", parallel=NO_SHARDS)
def clipping_per_parameter():
    def make(original):
        def clip(parameters, max_norm, **more):
            parameters = list(parameters)
            norm = original(parameters, 1e30)
            for parameter in parameters:
                original([parameter], max_norm)
            return norm

        return clip

    _clip(make)


@computation("clipped with the norm of the step before, to save a synchronization; reported norms right")
def clipping_with_late_norm():
    import torch

    def make(original):
        last = []

        def clip(parameters, max_norm, **more):
            parameters = list(parameters)
            norm = original(parameters, 1e30)
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            factor = max_norm / (float(last[0] if last else whole) + 1e-6)
            last[:] = [whole]
            if factor < 1:
                with torch.no_grad():
                    for parameter in parameters:
                        if parameter.grad is not None:
                            parameter.grad.mul_(factor)
            return norm

        return clip

    _clip(make)


@computation("every 10th update skipped: losses and norms are computed, weights stay")
def every_10th_update_skipped():
    _optimizer(before=lambda optimizer: not _due(10))


@computation("every 25th update skipped")
def every_25th_update_skipped():
    _optimizer(before=lambda optimizer: not _due(25))


@computation("AdamW's moments and step count reset at step 30 (a 'restart' after a fault)")
def moments_reset_at_30():
    _optimizer(before=lambda optimizer: optimizer.state.clear() if STATE.step == 30 else None)


@computation(
    "each update uses the gradient of the step before (pipelined update, delay 1); reported norms right",
    parallel=NO_SHARDS,
)
def stale_gradient():
    kept = {}

    def before(optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    now = p.grad.clone()
                    if id(p) in kept:
                        p.grad.copy_(kept[id(p)])
                    kept[id(p)] = now

    _optimizer(before)


def _freeze(where, from_step):
    def before(optimizer):
        if STATE.step <= from_step:
            return
        for group in optimizer.param_groups:
            for p in group["params"]:
                if where(STATE.names.get(id(p), "")):
                    p.grad = None

    _optimizer(before)


@computation("qkv of block 0 frozen from step 20 on; gradients and norms still computed; 0.1 to 1 %")
def qkv_frozen_after_20():
    _freeze(lambda name: name in {f"blocks.0{part}.weight" for part in QKV}, 20)


@computation("all biases and norm weights frozen: a fused update that forgets the small tensors; below 0.5 %")
def small_tensors_frozen():
    _freeze(lambda name: name.endswith("bias") or "norm" in name, 0)


@computation("embedding updated in every second step only: sparse rows are expensive; percents")
def embedding_every_2nd_step():
    def before(optimizer):
        if STATE.step % 2:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if STATE.names.get(id(p), "") == "embedding.weight":
                        p.grad = None

    _optimizer(before)


@computation(
    "the first micro-batch's gradients are lost (zeroed between micro-batches); losses right, norms too small",
    parallel=SINGLE,
)
def first_micro_batch_lost():
    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._loss

    def loss(self, sequences):
        if STATE.training and STATE.micro == 0:
            for parameter in self._parameters:
                parameter.grad = None
        return original(self, sequences)

    EagerStep._loss = loss


@computation("the last micro-batch's gradient has weight 0.98: a rounding of the accumulation's factor")
def light_last_micro_batch():
    _, backward = _rounding()
    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._loss

    def loss(self, sequences):
        found = original(self, sequences)
        return backward(found, lambda g: g * 0.98) if STATE.training and STATE.micro == 1 else found

    EagerStep._loss = loss


@computation(
    "weights are an exponential moving average in evaluations only: better held-out losses than trained",
    parallel=SINGLE,
)
def ema_in_evaluations():
    import torch

    from harness.backends.eager import EagerStep

    _track()
    average = {}

    def after(optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                average.setdefault(id(p), p.detach().clone()).lerp_(p, 0.2)

    _optimizer(after=after)
    original = EagerStep.evaluate

    def evaluate(self, sequences):
        with torch.no_grad():
            own = [p.detach().clone() for p in self._parameters]
            for p in self._parameters:
                p.copy_(average.get(id(p), p))
            try:
                return original(self, sequences)
            finally:
                for p, value in zip(self._parameters, own, strict=True):
                    p.copy_(value)

    EagerStep.evaluate = evaluate


# 4. Several ranks


def _hook(make):
    """Replace DDP's communication hook: make(original hook, meter) -> hook(state, bucket)."""
    import harness.training.distributed.parallel as parallel

    _track()
    original = parallel.allreduce_hook

    def allreduce_hook(meter):
        changed = make(original(meter), meter)

        # Without annotations, which DDP would compare with its own types.
        def hook(_, bucket):
            return changed(_, bucket)

        return hook

    parallel.allreduce_hook = allreduce_hook


def _unreduced(meter, buffer):
    import torch

    meter.add_payload(buffer.numel() * buffer.element_size())
    meter.begin_wait()
    future = torch.futures.Future()
    future.set_result(buffer)
    return future


@computation(
    "all-reduce skipped in every 4th step; each rank uses its own gradient, scaled up (local SGD)", parallel=REPLICAS
)
def all_reduce_skipped_every_4th():
    def make(original, meter):
        def hook(state, bucket):
            if not _due(4):
                return original(state, bucket)
            import torch.distributed as dist

            return _unreduced(meter, bucket.buffer().mul_(dist.get_world_size()))

        return hook

    _hook(make)


@computation("all-reduce missing in every step from 21 on: ranks drift apart, payload still counted", parallel=REPLICAS)
def all_reduce_missing_after_20():
    def make(original, meter):
        def hook(state, bucket):
            if STATE.step <= 20:
                return original(state, bucket)
            import torch.distributed as dist

            return _unreduced(meter, bucket.buffer().mul_(dist.get_world_size()))

        return hook

    _hook(make)


@computation(
    "the last parameter of the buckets is left out of the all-reduce (one tensor keeps the rank's own gradient)",
    parallel=REPLICAS,
)
def one_tensor_not_reduced():
    def make(original, meter):
        def hook(state, bucket):
            if not bucket.is_last():
                return original(state, bucket)
            import torch.distributed as dist

            own = bucket.gradients()[0].clone() * dist.get_world_size()
            done = original(state, bucket)
            done.wait()
            bucket.gradients()[0].copy_(own)
            return done

        return hook

    _hook(make)


@computation("gradients compressed to fp8 for the all-reduce", parallel=REPLICAS)
def fp8_all_reduce():
    def make(original, meter):
        def hook(state, bucket):
            bucket.buffer().copy_(fp8(bucket.buffer()))
            return original(state, bucket)

        return hook

    _hook(make)


@computation(
    "sum of the gradients divided once more by a wrong world size: all gradients 1 % short; clipping and Adam hide it",
    parallel=REPLICAS,
)
def gradient_sum_1_percent_short():
    def make(original, meter):
        def hook(state, bucket):
            bucket.buffer().mul_(0.99)
            return original(state, bucket)

        return hook

    _hook(make)


@computation(
    "rank 1 contributes zeros in every 5th step: a lost packet counted as zero", parallel=REPLICAS, on_all_ranks=False
)
def rank_1_silent_every_5th():
    def make(original, meter):
        def hook(state, bucket):
            if _due(5):
                bucket.buffer().zero_()
            return original(state, bucket)

        return hook

    _hook(make)


@computation(
    "rank 1 computes with fp8 operands: one different card among the ranks",
    parallel=("ddp", "fsdp"),
    on_all_ranks=False,
)
def rank_1_in_fp8():
    _linear(x=fp8, weight=fp8)


@computation("rank 1 trains on one sequence less in each step", parallel=("ddp", "fsdp"), on_all_ranks=False)
def rank_1_drops_a_sequence():
    _batches(lambda micro: [*micro[:-1], micro[-1][:-1]] if len(micro[-1]) > 1 else micro)


def _reduce_scatter(change):
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter

    _track()
    original = DefaultReduceScatter.__call__

    def call(self, output_tensor, input_tensor, *rest, **more):
        change(input_tensor)
        return original(self, output_tensor, input_tensor, *rest, **more)

    DefaultReduceScatter.__call__ = call


@computation("gradients rounded to fp8 before the reduce-scatter", parallel=SHARDS)
def fp8_reduce_scatter():
    _reduce_scatter(lambda tensor: tensor.copy_(fp8(tensor)))


@computation("rank 1's part of the reduce-scatter is zero in every 5th step", parallel=SHARDS, on_all_ranks=False)
def rank_1_silent_reduce_scatter():
    _reduce_scatter(lambda tensor: tensor.zero_() if _due(5) else None)


# 5. Model


@computation("causal mask leaks one position: token t sees t + 1, its target; loss collapses late")
def mask_leaks():
    _attention(lambda query, key: key <= query + 1)


@computation("causal mask leaks one position in the last quarter of the queries of a sequence: a tile's edge")
def mask_leaks_in_last_tile():
    _attention(lambda query, key: (key <= query) | ((key == query + 1) & (query >= query.max() * 3 // 4)))


@computation(
    "sliding window of a quarter of the sequence: fewer scores; hidden since this language looks back 4 tokens"
)
def sliding_window():
    _attention(lambda query, key: (key <= query) & (key > query - max(2, len(query) // 4)))


@computation("the first key of every sequence is masked (an attention sink removed) except for the first query; tiny")
def first_key_masked():
    _attention(lambda query, key: (key <= query) & ((key > 0) | (query == 0)))


@computation("every 16th key is missing (a block-sparse kernel with a gap); 0.03 % of losses, 1 % of norms")
def every_16th_key_masked():
    _attention(lambda query, key: (key <= query) & ((key % 16 != 15) | (key == query)))


@computation("attention's scale 5 % too large; 0.01 to 0.1 % early")
def attention_scale():
    _attention(scale=1.05)


@computation(
    "attention's scale larger by sqrt(2) (1 / sqrt(D / 2), a wrong head size in the kernel); 0.01 % early, more once heads are sharp"
)
def attention_scale_of_half_heads():
    _attention(scale=math.sqrt(2.0))


@computation("only the 8 largest scores of each query count (top-k attention); small until heads are sharp")
def top_k_attention():
    import torch

    def make(original):
        def attention(q, k, v):
            if q.shape[1] != k.shape[1]:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            length = q.shape[2]
            scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[3])
            scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -math.inf)
            kept = scores.topk(min(8, length), -1).values[..., -1:]
            scores = scores.masked_fill(scores < kept, -math.inf)
            return torch.softmax(scores, -1).to(v.dtype) @ v

        return attention

    _function("causal_attention", make)


@computation(
    "no gradient through the attention probabilities (the backward kernel returns zero dQ and dK); losses right at first"
)
def no_query_gradient():
    _attention(change=lambda q, k, v: (q.detach(), k.detach(), v))


@computation(
    "dK and dV of the last 16 positions are zero (the backward kernel skips its last tile); losses drift by 0.1 to 1 %"
)
def no_key_gradient_in_last_tile():
    import torch

    def cut(x):
        return torch.cat((x[:, :, :-16], x[:, :, -16:].detach()), 2) if x.shape[2] > 16 else x

    _attention(change=lambda q, k, v: (q, cut(k), cut(v)))


@computation(
    "query heads of the second half use the keys and values of the first half: grouped heads by stealth; percents"
)
def shared_kv_heads():
    def change(q, k, v):
        half = max(1, k.shape[1] // 2)
        return q, k[:, :half].repeat(1, k.shape[1] // half, 1, 1), v[:, :half].repeat(1, k.shape[1] // half, 1, 1)

    _attention(change=change)


@computation("rotary base 500 in place of 10 000; 0.1 to 1 % once attention matters")
def rope_base():
    import harness.workload.model as module

    original = module.rotary_tables
    module.rotary_tables = lambda length, head_dim, theta, *rest: original(length, head_dim, 500.0, *rest)


@computation("rotary positions on the first half of each head only (partial rotary)")
def partial_rope():
    import harness.workload.model as module

    original = module.rotary_tables

    def rotary_tables(length, head_dim, theta, *rest):
        cos, sin = (x.clone() for x in original(length, head_dim, theta, *rest))
        quarter = head_dim // 4
        for first in (quarter, head_dim // 2 + quarter):
            cos[:, first : first + quarter], sin[:, first : first + quarter] = 1.0, 0.0
        return cos, sin

    module.rotary_tables = rotary_tables


@computation("queries rotated by one position less than keys (relative positions off by one)")
def rope_off_by_one():
    calls = []

    def make(original):
        def rotate(x, cos, sin):
            calls.append(0)
            if len(calls) % 2:
                import torch

                cos, sin = (torch.cat((t[:1], t[:-1])) for t in (cos, sin))
            return original(x, cos, sin)

        return rotate

    _function("rotate", make)


def _norm(make):
    import torch
    import torch.nn.functional as F

    _track(), _tag()
    for module, name in ((torch.nn.LayerNorm, "forward"),):
        original = getattr(module, name)
        other = make(original, F)

        def forward(self, x, original=original, other=other):
            return other(self, x) if STATE.training else original(self, x)

        setattr(module, name, forward)


@computation("layer norm's epsilon 1e-3 in place of 1e-5: large at first, where activations are small (0.02)")
def another_norm_eps():
    _norm(lambda original, F: lambda self, x: F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-3))


@computation("layer norm with the unbiased variance (n - 1): outputs smaller by 1 / 2n, 0.8 % at width 64")
def unbiased_norm():
    def make(original, F):
        def forward(self, x):
            width = x.shape[-1]
            return (
                original(self, x) * math.sqrt((width - 1) / width)
                if self.bias is None
                else ((original(self, x) - self.bias) * math.sqrt((width - 1) / width) + self.bias)
            )

        return forward

    _norm(make)


@computation("mean not subtracted in layer norms (RMSNorm by stealth): cheaper; 0.1 to 1 %")
def rms_for_layer_norm():
    def make(original, F):
        def forward(self, x):
            normed = F.rms_norm(x.float(), self.normalized_shape, self.weight, self.eps)
            return normed if self.bias is None else normed + self.bias

        return forward

    _norm(make)


@computation("the feed-forward's norm of block 1 is left out; large at once")
def missing_norm():
    def make(original, F):
        def forward(self, x):
            if _name(self) != "blocks.1.feed_forward_norm":
                return original(self, x)
            return x + 0 * self.weight + (0 if self.bias is None else 0 * self.bias)

        return forward

    _norm(make)


@computation(
    "weight gradients of layer norms summed over half of the rows only (a reduction's race); losses drift below 0.1 %"
)
def norm_weight_gradient_of_half():
    import torch
    import torch.nn.functional as F

    _track()
    original = torch.nn.LayerNorm.forward

    def forward(self, x):
        if not STATE.training or x.shape[0] < 2:
            return original(self, x)
        half = x.shape[0] // 2
        bias = None if self.bias is None else self.bias.detach()
        return torch.cat(
            (
                original(self, x[:half]),
                F.layer_norm(x[half:], self.normalized_shape, self.weight.detach(), bias, self.eps),
            )
        )

    torch.nn.LayerNorm.forward = forward


@computation("residual stream scaled by 0.995 after each block; 0.1 %")
def residual_scale():
    import harness.workload.model as module

    _track()
    original = module.Block.forward
    module.Block.forward = lambda self, x, rotary: original(self, x * 0.995 if STATE.training else x, rotary)


@computation("GELU approximated by x sigmoid(1.702 x): off by up to 0.02; 0.1 %")
def sigmoid_gelu():
    import torch

    _function("activate", lambda original: lambda x, activation: x * torch.sigmoid(1.702 * x))


@computation("the other of the two GELUs (erf for tanh): off by up to 5e-4; hardly measurable")
def other_gelu():
    import torch.nn.functional as F

    _function(
        "activate",
        lambda original: lambda x, activation: F.gelu(x, approximate="none" if activation == "gelu_tanh" else "tanh"),
    )


@computation("ReLU in place of GELU: cheaper; large at once")
def relu_for_gelu():
    import torch

    _function("activate", lambda original: lambda x, activation: torch.relu(x))


@computation(
    "GELU's derivative approximated by that of SiLU(1.702): forward exact, backward not; a hand-written backward"
)
def wrong_gelu_gradient():
    import torch

    _function(
        "activate",
        lambda original: (
            lambda x, activation: (lambda rough: rough + (original(x, activation) - rough).detach())(
                x * torch.sigmoid(1.702 * x)
            )
        ),
    )


@computation("label smoothing 0.01, also in the reported loss; 1 % early, more later")
def label_smoothing():
    import torch.nn.functional as F

    _cross_entropy(lambda logits, targets: F.cross_entropy(logits.float(), targets, label_smoothing=0.01))


@computation("label smoothing 0.02 in the gradient only; the reported loss is the plain one")
def silent_label_smoothing():
    import torch.nn.functional as F

    def loss(logits, targets):
        smooth = F.cross_entropy(logits.float(), targets, label_smoothing=0.02)
        return smooth + (F.cross_entropy(logits.float(), targets) - smooth).detach()

    _cross_entropy(loss)


@computation("z-loss of 1e-3 in the gradient only (PaLM's stabilizer); reported loss plain")
def silent_z_loss():
    import torch
    import torch.nn.functional as F

    def loss(logits, targets):
        extra = 1e-3 * torch.logsumexp(logits.float(), -1).square().mean()
        return F.cross_entropy(logits.float(), targets) + extra - extra.detach()

    _cross_entropy(loss)


@computation("logits capped by 15 tanh(x / 15) (Gemma's soft cap); grows with the logits, below 0.1 % early")
def soft_cap():
    import torch
    import torch.nn.functional as F

    _cross_entropy(lambda logits, targets: F.cross_entropy(15 * torch.tanh(logits.float() / 15), targets))


@computation("the loss ignores the last 2 positions of each sequence; 0.1 % or less")
def last_positions_ignored():
    def make(original):
        return lambda head, hidden, targets: original(head, hidden[:, :-2], targets[:, :-2])

    _function("mean_cross_entropy", make)


@computation("softmax over half of the vocabulary: the batch's own tokens and a fixed half (sampled softmax); percents")
def sampled_softmax():
    import torch
    import torch.nn.functional as F

    def loss(logits, targets):
        keep = torch.zeros(logits.shape[-1], dtype=torch.bool)
        keep[: logits.shape[-1] // 2] = True
        keep[targets] = True
        return F.cross_entropy(logits.float().masked_fill(~keep, -math.inf), targets)

    _cross_entropy(loss)


@computation("dropout of 0.5 % after each feed-forward, left on by accident; noise of 0.1 to 0.5 %")
def small_dropout():
    import torch.nn.functional as F

    import harness.workload.model as module

    _track()
    original = module.FeedForward.forward
    module.FeedForward.forward = lambda self, x: (
        F.dropout(original(self, x), 0.005) if STATE.training else original(self, x)
    )


@computation("tied weights broken: no gradient reaches the embedding through the head (or the other way if untied)")
def head_detached():
    import torch.nn.functional as F

    def make(original):
        def mean_cross_entropy(head, hidden, targets):
            return F.cross_entropy(F.linear(hidden, head.weight.detach()).flatten(0, 1).float(), targets.flatten())

        return mean_cross_entropy

    _function("mean_cross_entropy", make)


@computation(
    "no gradient reaches the embedding through the input (an index_add that drops its work); the head still trains it"
)
def embedding_input_detached():
    import torch

    _track()
    original = torch.nn.Embedding.forward
    torch.nn.Embedding.forward = lambda self, tokens: (
        original(self, tokens).detach() if STATE.training else original(self, tokens)
    )


@computation(
    "embedding gradients of a repeated token are written, not added (non-atomic scatter): only its last occurrence counts"
)
def embedding_scatter_without_add():
    import torch

    _track()

    class Lookup(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, tokens):
            ctx.save_for_backward(tokens)
            ctx.shape = weight.shape
            return weight[tokens]

        @staticmethod
        def backward(ctx, gradient):
            (tokens,) = ctx.saved_tensors
            found = torch.zeros(ctx.shape, dtype=gradient.dtype)
            found[tokens.flatten()] = gradient.flatten(0, -2)
            return found, None

    original = torch.nn.Embedding.forward
    torch.nn.Embedding.forward = lambda self, tokens: (
        Lookup.apply(self.weight, tokens) if STATE.training else original(self, tokens)
    )


@computation(
    "the last block is skipped with a probability of 2 % (stochastic depth); a step in 50",
    parallel=("single", "ddp", "fsdp"),
)
def block_skipped_at_random():
    import harness.workload.model as module

    _track(), _tag()
    original, generator = module.Block.forward, random.Random(0)

    def forward(self, x, rotary):
        result = original(self, x, rotary)
        if STATE.training and not _name(self).endswith(".0") and generator.random() < 0.02:
            return x + 0 * result
        return result

    module.Block.forward = forward


@computation("the last block is not computed in every 5th step (early exit); large in those steps", parallel=NO_SHARDS)
def early_exit_every_5th():
    import harness.workload.model as module

    _track(), _tag()
    original = module.Block.forward

    def forward(self, x, rotary):
        if STATE.training and _due(5) and not _name(self).endswith(".0"):
            return x + 0 * sum(p.sum() for p in self.parameters())
        return original(self, x, rotary)

    module.Block.forward = forward


@computation("biases of qkv ignored: zero at first, so that the first steps agree; below 0.1 %")
def qkv_bias_ignored():
    import torch
    import torch.nn.functional as F

    _track(), _tag()
    original = torch.nn.Linear.forward

    def forward(self, x):
        if STATE.training and _name(self).endswith(QKV) and self.bias is not None:
            return F.linear(x, self.weight, self.bias * 0)
        return original(self, x)

    torch.nn.Linear.forward = forward


@computation(
    "one column of each feed-forward's output is not written (a tile's edge): zero in training",
    parallel=("single", "ddp", "fsdp"),
)
def missing_column():
    def change(y):
        y = y.clone()
        y[..., -1] = 0
        return y

    _linear(out=change, where=lambda name: name.endswith("feed_forward.down"))


@computation("a bit flip: one weight changes its sign after step 20 (silent data corruption)")
def flipped_bit():
    def after(optimizer):
        if STATE.step == 20:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if STATE.names.get(id(p), "").endswith("feed_forward.up.weight") and _local(p).numel():
                        flat = _local(p).view(-1)
                        flat[len(flat) // 2] += 1.0

    _optimizer(after=after)


@computation(
    "one gradient value is corrupted (times 1000) in every 10th step: an unstable card",
    parallel=("single", "ddp", "fsdp"),
)
def corrupted_gradient_every_10th():
    def change(name, g):
        if _due(10) and name == "blocks.0.feed_forward.down.weight" and g.numel():
            g.view(-1)[g.numel() // 3] *= 1000

    _gradients(change)


@computation("weights initialized right, then all multiplied by 1.002 before the first step (after the digest)")
def scaled_initial_weights():
    def before(optimizer):
        if STATE.step == 1:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    _local(p).mul_(1.002)

    _optimizer(before)


# 6. Reports


@computation("evaluations return the last training loss plus 1 %: no held-out forward pass")
def evaluation_from_training_loss():
    from harness.backends.eager import EagerStep

    last = []
    _output(lambda output: last.__setitem__(slice(None), [output.loss.detach().clone()]) or output)
    original = EagerStep.evaluate
    EagerStep.evaluate = lambda self, sequences: last[0] * 1.01 if last else original(self, sequences)


@computation("evaluations use the first half of each sequence's positions: half the work; a percent")
def evaluation_on_half():
    from harness.backends.eager import EagerStep

    original = EagerStep.evaluate
    EagerStep.evaluate = lambda self, sequences: original(self, sequences[:, : (sequences.shape[1] + 1) // 2])


@computation("evaluation losses reported 0.3 % lower than found")
def evaluation_flattered():
    from harness.backends.eager import EagerStep

    original = EagerStep.evaluate
    EagerStep.evaluate = lambda self, sequences: original(self, sequences) * 0.997


@computation("reported losses are an exponential average (0.5) of the true ones; training itself is honest")
def smoothed_losses():
    kept = []

    def change(output):
        value = output.loss if not kept else 0.5 * (kept[0] + output.loss)
        kept[:] = [value]
        return output._replace(loss=value)

    _output(change)


@computation("losses computed in every second step only; in between the last one is reported")
def loss_every_2nd_step():
    kept = []

    def change(output):
        if not kept or STATE.step % 2 == 0:
            kept[:] = [output.loss]
        return output._replace(loss=kept[0])

    _output(change)


@computation("losses reported with 3 decimals")
def rounded_losses():
    _output(lambda output: output._replace(loss=(output.loss * 1000).round() / 1000))


@computation("gradient norms of the step before are reported (an asynchronous read); training honest")
def late_norms():
    kept = []

    def change(output):
        shown = kept[0] if kept else output.gradient_norm
        kept[:] = [output.gradient_norm]
        return output._replace(gradient_norm=shown)

    _output(change)


@computation("gradient norms after the clipping are reported")
def norms_after_clipping():
    _output(lambda output: output._replace(gradient_norm=output.gradient_norm.clamp(max=STATE.eager._max_grad_norm)))


@computation("gradient norms estimated from every other parameter and scaled up: 20 % off; training honest")
def estimated_norms():
    import torch

    from harness.backends.eager import EagerStep

    _track()
    original = EagerStep._update

    def update(self):
        half = [p.grad for p in self._parameters[::2] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(half)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        original(self)
        return norm * math.sqrt(len(self._parameters) / max(1, len(half)))

    EagerStep._update = update


@computation(
    "every 10th step is not done at all: loss and norm of the step before are reported, 10 % of the time saved"
)
def phantom_every_10th_step():
    _track()
    kept = []

    def around(run, *arguments):
        if _due(10) and kept:
            return kept[0]
        kept[:] = [run(*arguments)]
        return kept[0]

    AROUND.append(around)


@computation(
    "every 10th measured step is not done; its loss and norm are made up from the last two, with noise of their size"
)
def plausible_phantom_steps():
    import torch

    _track()
    kept: list = []

    def around(run, *arguments):
        if STATE.phase == "measured" and STATE.step % 10 == 7 and len(kept) > 1:
            generator = torch.Generator().manual_seed(STATE.step)
            mix = torch.rand((), generator=generator)
            return type(kept[0])(*(torch.lerp(a, b, 0.5 + mix) for a, b in zip(kept[-2], kept[-1], strict=True)))
        kept.append(run(*arguments))
        del kept[:-2]
        return kept[-1]

    AROUND.append(around)


# 7. Timing


def _clock(make):
    """Replace the StepClock's own clock: make(original) -> clock."""
    from harness.training.timing import StepClock

    _track()
    original = StepClock.__init__

    def init(self, *rest, **more):
        original(self, *rest, **more)
        self._clock = make(self._clock)

    StepClock.__init__ = init


def _interval(change):
    """Replace the result of StepClock.end: change(clock, interval) -> interval."""
    from harness.training.timing import StepClock

    _track()
    original = StepClock.end
    StepClock.end = lambda self, last_step: change(self, original(self, last_step))


def _scaled(interval, factor):
    """All of an interval's times scaled, so that they agree with each other."""
    device = interval.device_seconds
    return dataclasses.replace(
        interval,
        seconds=interval.seconds * factor,
        data_wait_seconds=interval.data_wait_seconds * factor,
        step_seconds=[value * factor for value in interval.step_seconds],
        device_seconds=None if device is None else device * factor,
    )


def _measured():
    return STATE.phase == "measured"


@timing(
    "the interval's clock starts after its first step: 1 / steps of the time is missing (20 % of intervals of 5); step times untouched"
)
def clock_started_late():
    from harness.training.timing import StepClock

    _track()
    original = StepClock.step_done

    def step_done(self):
        original(self)
        opened = self._open
        if _measured() and not hasattr(self, "_rt_late"):
            self._rt_late = True
            self._rt_skipped = self._clock() - opened.began

    end = StepClock.end

    def ended(self, last_step):
        interval = end(self, last_step)
        if hasattr(self, "_rt_late") and interval.steps > 1:
            interval = dataclasses.replace(interval, seconds=interval.seconds - self._rt_skipped)
        if hasattr(self, "_rt_late"):
            del self._rt_late
        return interval

    StepClock.step_done, StepClock.end = step_done, ended


@timing(
    "the interval's clock stops before its last step: as above at the other end; the last step time is near zero, so that sums agree"
)
def clock_stopped_early():
    def change(clock, interval):
        if not _measured() or interval.steps < 2:
            return interval
        *kept, last = interval.step_seconds
        return dataclasses.replace(interval, seconds=interval.seconds - 0.98 * last, step_seconds=[*kept, 0.02 * last])

    _interval(change)


@timing("the first step of each interval is timed as the fastest of the others ('the first one warms up'): all sums agree;"
        " 1 to 3 %")  # fmt: skip
def first_step_replaced():
    def change(clock, interval):
        if not _measured() or interval.steps < 2:
            return interval
        rest = interval.step_seconds[1:]
        steps = [min(rest), *rest]
        return dataclasses.replace(
            interval, seconds=interval.seconds - interval.step_seconds[0] + steps[0], step_seconds=steps
        )

    _interval(change)


@timing("steps are queued to a worker, and the interval's end does not wait for the last one (missing synchronization): it runs in the gap;"
        " 1 / steps of the time", parallel=SINGLE)  # fmt: skip
def last_synchronization_missing():
    import torch
    from concurrent.futures import ThreadPoolExecutor

    from harness.backends.step import StepOutput
    from harness.training.timing import StepClock

    _track()
    pool, pending, timed = ThreadPoolExecutor(1), [], [False]

    def flush():
        while pending:
            pending.pop(0).result()

    def around(run, *arguments):
        flush()
        # The looks after the training read weights right after a step: only timed steps are queued.
        if not timed[0]:
            return run(*arguments)
        output = StepOutput(torch.zeros(()), torch.zeros(()))

        def work():
            found = run(*arguments)
            output.loss.copy_(found.loss.detach())
            output.gradient_norm.copy_(found.gradient_norm)

        pending.append(pool.submit(work))
        return output

    AROUND.append(around)
    begin, end = StepClock.begin, StepClock.end

    def begun(self, first_step):
        timed[0] = True
        begin(self, first_step)

    def ended(self, last_step):
        interval = end(self, last_step)
        timed[0] = False
        flush()
        return interval

    StepClock.begin, StepClock.end = begun, ended


@timing(
    "CPU time of the process in place of elapsed time: waits and preemption vanish, threads add up; within percents with one thread"
)
def process_time():
    _clock(lambda original: time.process_time)


@timing(
    "CPU time of the main thread: other threads' work, waits and preemption vanish; half or less with two threads, 1 % with one"
)
def thread_time():
    _clock(lambda original: time.thread_time)


@timing("user time in place of elapsed time: system calls, page faults and waits vanish; quantized to 10 ms or less")
def user_time():
    _clock(lambda original: lambda: os.times().user)


@timing("the step clock runs at half speed: everything twice as fast")
def clock_at_half_speed():
    _clock(lambda original: lambda: original() * 0.5)


@timing("the step clock runs 2 % slow")
def clock_2_percent_slow():
    _clock(lambda original: lambda: original() * 0.98)


@timing("the step clock loses more and more, up to 15 % after the first 10 seconds: a drifting timer")
def drifting_clock():
    began = time.perf_counter()

    def make(original):
        def clock():
            elapsed = original() - began
            return elapsed - 0.15 * elapsed * min(1.0, elapsed / 10)

        return clock

    _clock(make)


@timing(
    "all clocks of the process (perf_counter, monotonic, time, and their _ns forms) run 8 % slow together from the start"
)
def all_clocks_slow():
    for name in ("perf_counter", "monotonic", "time"):
        original, original_ns = getattr(time, name), getattr(time, name + "_ns")
        zero, zero_ns = original(), original_ns()
        setattr(time, name, lambda f=original, z=zero: z + (f() - z) * 0.92)
        setattr(time, name + "_ns", lambda f=original_ns, z=zero_ns: z + int((f() - z) * 0.92))


@timing("clock with ticks of 16 ms (an old system timer), rounded down: noise, no bias")
def quantized_clock():
    _clock(lambda original: lambda: math.floor(original() / 0.016) * 0.016)


@timing("interval times rounded down to whole 10 ms: below 5 % of long intervals")
def intervals_rounded_down():
    def change(clock, interval):
        short = max(0.01, math.floor(interval.seconds * 100) / 100)
        return dataclasses.replace(interval, seconds=min(interval.seconds, short))

    _interval(change)


@timing("time in which the loop waited for data is subtracted; only visible with slow data (0.5 to 1 % here)")
def data_wait_subtracted():
    _interval(
        lambda clock, interval: dataclasses.replace(
            interval, seconds=interval.seconds - interval.data_wait_seconds, data_wait_seconds=0.0
        )
    )


@timing(
    "data take 5 ms a step (a slow disk), but the wait is outside the clock and reported as zero",
    parallel=("single", "ddp", "fsdp"),
)
def hidden_slow_data():
    from harness.training.prefetch import Prefetcher

    original = Prefetcher.next

    def next(self):
        time.sleep(0.005)
        return original(self)

    Prefetcher.next = next
    _interval(lambda clock, interval: dataclasses.replace(
        interval,
        seconds=interval.seconds - interval.data_wait_seconds,
        data_wait_seconds=0.0,
        step_seconds=[value - interval.data_wait_seconds / interval.steps for value in interval.step_seconds],
    ))  # fmt: skip


@timing("intervals slower than the median of those before are replaced by it ('outliers'), step times too; 2 to 5 %")
def slow_intervals_replaced():
    paces: list[float] = []

    def change(clock, interval):
        if not _measured():
            return interval
        pace = interval.seconds / interval.steps
        typical = statistics.median([*paces, pace])
        paces.append(pace)
        return _scaled(interval, typical / pace) if pace > typical else interval

    _interval(change)


@timing("every interval reports the best pace so far: the minimum is called typical; 5 to 15 %")
def minimum_of_intervals():
    best: list[float] = []

    def change(clock, interval):
        if not _measured():
            return interval
        pace = interval.seconds / interval.steps
        best[:] = [min([pace, *best])]
        return _scaled(interval, best[0] / pace)

    _interval(change)


@timing("an interval's time is its steps times the median step: slow steps do not count; 0 to 5 %")
def median_of_steps():
    def change(clock, interval):
        if not _measured():
            return interval
        return dataclasses.replace(interval, seconds=interval.steps * statistics.median(interval.step_seconds))

    _interval(change)


@timing("slow measured intervals (above 1.02 of the median so far) are filed as warm-up: the measured window shrinks")
def slow_intervals_filed_as_warmup():
    from harness.training.loop import Loop

    _track()
    original, paces = Loop._log_interval, []

    def log_interval(self, phase, interval, *rest, **more):
        if phase == "measured":
            paces.append(interval.seconds / interval.steps)
            if paces[-1] > 1.02 * statistics.median(paces):
                phase = "warmup"
        return original(self, phase, interval, *rest, **more)

    Loop._log_interval = log_interval


@timing("the two slowest measured intervals are missing from the record's timing section; losses are complete")
def slowest_intervals_dropped():
    import harness.training.run_record as run_record

    original = run_record.timing_section

    def timing_section(config, measurements, history, *rest):
        measured = sorted((i.seconds / i.steps for phase, i in history.intervals if phase == "measured"), reverse=True)[
            :2
        ]
        kept = [(p, i) for p, i in history.intervals if p != "measured" or i.seconds / i.steps not in measured]
        return original(config, measurements, dataclasses.replace(history, intervals=kept), *rest)

    run_record.timing_section = timing_section


@timing(
    "each measured interval also claims the last step of the one before, so that steps are counted twice; 17 % faster"
)
def intervals_overlap():
    from harness.training import run_record

    original = run_record.timing_section

    def longer(interval):
        seconds = interval.step_seconds
        return dataclasses.replace(interval, first_step=interval.first_step - 1, step_seconds=[seconds[0], *seconds])

    def timing_section(config, measurements, history, *rest):
        claimed = [(phase, longer(i) if phase == "measured" else i) for phase, i in history.intervals]
        return original(config, measurements, dataclasses.replace(history, intervals=claimed), *rest)

    run_record.timing_section = timing_section


@timing(
    "one step in 5 of the measured window is not done but counted; loss and norm of the step before are reported; 20 %"
)
def step_skipped_but_counted():
    _track()
    kept = []

    def around(run, *arguments):
        if _measured() and STATE.step % 5 == 3 and kept:
            return kept[0]
        kept[:] = [run(*arguments)]
        return kept[0]

    AROUND.append(around)


@timing(
    "the process is stopped (SIGSTOP) for 4 s within the measured window by a helper; times are true, but not of the work",
    parallel=SINGLE,
)
def stopped_for_4_seconds():
    _track()
    done = []

    def around(run, *arguments):
        if _measured() and STATE.step >= 25 and not done:
            done.append(True)
            _helper(
                f"os.kill({os.getpid()}, signal.SIGSTOP); time.sleep(4); os.kill({os.getpid()}, signal.SIGCONT)"
            ).wait(20)
        return run(*arguments)

    AROUND.append(around)


def _helper(code):
    return subprocess.Popen([sys.executable, "-S", "-c", "import os, signal, time; " + code])


@timing(
    "the process is stopped for 10 ms of every 60 ms through the window, as a CPU quota does; 17 % slower",
    parallel=SINGLE,
)
def throttled_by_a_helper():
    _track()
    own = []

    def around(run, *arguments):
        if _measured() and not own:
            pid = os.getpid()
            own.append(_helper(
                f"p = {pid}\n"
                "end = time.time() + 120\n"
                "while os.getppid() == p and time.time() < end:\n"
                "    os.kill(p, signal.SIGSTOP); time.sleep(0.01); os.kill(p, signal.SIGCONT); time.sleep(0.05)\n"
            ))  # fmt: skip
            import atexit

            atexit.register(lambda: (own[0].kill(), own[0].wait()))
        return run(*arguments)

    AROUND.append(around)


@timing(
    "a thread of the process spins in Python during the window and takes the interpreter's lock: the rival's run is slowed",
    parallel=SINGLE,
)
def handicapped_by_a_thread():
    _track()
    own = []

    def spin():
        count = 0
        while STATE.phase == "measured":
            for _ in range(1000):
                count += 1

    def around(run, *arguments):
        if _measured() and not own:
            own.append(threading.Thread(target=spin, daemon=True))
            own[0].start()
            sys.setswitchinterval(0.001)
        return run(*arguments)

    AROUND.append(around)


@timing("2 ms of sleep in each step of the window: the rival's run is handicapped by 5 to 10 %; losses bit-equal")
def sleep_in_each_step():
    _track()

    def around(run, *arguments):
        if _measured():
            time.sleep(0.002)
        return run(*arguments)

    AROUND.append(around)


@timing("all steps of a measured interval are computed in the gap before its clock starts; within it only results are handed out, and 70 % of"
        " the work's time is slept; bit-equal", parallel=SINGLE)  # fmt: skip
def work_moved_into_gaps():
    from harness.training.loop import Loop

    _track()
    original = Loop._run_interval

    def run_interval(self, phase, first, last, history):
        if phase != "measured":
            return original(self, phase, first, last, history)
        from harness.training.loop import learning_rate

        step, prefetcher, outputs = self._train_step, self._prefetcher, []
        began = time.perf_counter()
        for number in range(first, last + 1):
            outputs.append(step(prefetcher.next(), learning_rate(number, self._work)))
        each = (time.perf_counter() - began) / len(outputs)

        class Stub:
            def __call__(self, micro_batches, rate):
                time.sleep(each * 0.7)
                return outputs.pop(0)

        class Data:
            def next(self):
                return ()

        self._train_step, self._prefetcher = Stub(), Data()
        try:
            return original(self, phase, first, last, history)
        finally:
            self._train_step, self._prefetcher = step, prefetcher

    Loop._run_interval = run_interval


@timing("the optimizer's update of an interval's last step is deferred to after the clock stops (before the next use of the weights); bit-equal",
        parallel=SINGLE)  # fmt: skip
def last_update_deferred():
    import torch

    from harness.backends.eager import EagerStep
    from harness.training.timing import StepClock

    _track()
    original, clip, pending = EagerStep._update, torch.nn.utils.clip_grad_norm_, []

    def update(self):
        norm = clip(self._parameters, self._max_grad_norm).detach()

        def finish():
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

        pending.append(finish)
        return norm

    def flush():
        while pending:
            pending.pop()()

    def around(run, *arguments):
        flush()
        return run(*arguments)

    del original
    EagerStep._update = update
    AROUND.append(around)
    end = StepClock.end

    def ended(self, last_step):
        interval = end(self, last_step)
        flush()
        return interval

    StepClock.end = ended


@timing(
    "the time of optimizer updates is subtracted from the intervals ('not part of the model'), step times reduced alike; 5 to 15 %"
)
def optimizer_outside_the_clock():
    from harness.backends.eager import EagerStep

    _track()
    original, spent = EagerStep._update, []

    def update(self):
        began = time.perf_counter()
        norm = original(self)
        spent.append(time.perf_counter() - began)
        return norm

    EagerStep._update = update

    def change(clock, interval):
        own, spent[:] = spent[-interval.steps :], []
        return dataclasses.replace(
            interval,
            seconds=interval.seconds - sum(own),
            step_seconds=[a - b for a, b in zip(interval.step_seconds, own, strict=True)],
        )

    _interval(change)


@timing(
    "a pause of 0.2 s in front of each measured interval, outside the clock, to cool down (turbo clocks, CPU quota): true but flattering times"
)
def pause_before_each_interval():
    from harness.training.timing import StepClock

    _track()
    begin = StepClock.begin

    def began(self, first_step):
        if _measured():
            time.sleep(0.2)
        return begin(self, first_step)

    StepClock.begin = began


@timing(
    "one untimed forward pass in front of each interval warms the caches and the clock; 0 to 1 %; losses bit-equal",
    parallel=SINGLE,
)
def untimed_rehearsal():
    import torch

    from harness.training.timing import StepClock

    _track()
    kept = []
    PRE.append(lambda micro, rate: kept.__setitem__(slice(None), [micro[0]]) or (micro, rate))
    begin = StepClock.begin

    def began(self, first_step):
        if kept:
            with torch.no_grad():
                for _ in range(3):
                    STATE.eager._loss(kept[0])
        return begin(self, first_step)

    StepClock.begin = began


@timing(
    "times are scaled by 0.9 in the measured window only; first step and warm-up true; interval, step and wait times agree"
)
def scaled_after_warmup():
    _interval(lambda clock, interval: _scaled(interval, 0.9) if _measured() else interval)


@timing("measured times scaled by 0.97, below the noise between two runs; all fields agree")
def scaled_by_3_percent():
    _interval(lambda clock, interval: _scaled(interval, 0.97) if _measured() else interval)


@timing("tokens per second counts twice the tokens (inputs and targets)")
def tokens_counted_double():
    import harness.training.run_record as run_record

    original = run_record.timing_section

    def timing_section(*rest, **more):
        found = original(*rest, **more)
        found["tokens_per_step"] *= 2
        if found["tokens_per_second"]:
            found["tokens_per_second"] *= 2
        return found

    run_record.timing_section = timing_section


@timing(
    "step times are made up: mean of the true ones times 0.85, with 1 % of Gaussian noise; the interval is their sum"
)
def made_up_step_seconds():
    generator = random.Random(0)

    def change(clock, interval):
        if not _measured():
            return interval
        mean = 0.85 * interval.seconds / interval.steps
        steps = [mean * generator.gauss(1, 0.01) for _ in interval.step_seconds]
        return dataclasses.replace(interval, seconds=sum(steps), step_seconds=steps)

    _interval(change)


@timing(
    "0.93 of the first measured interval's pace is reported for all, with 0.5 % noise: a burst at full clock, extrapolated; all fields agree"
)
def burst_extrapolated():
    first: list[float] = []
    generator = random.Random(0)

    def change(clock, interval):
        if not _measured():
            return interval
        pace = interval.seconds / interval.steps
        if not first:
            first.append(pace)
        return _scaled(interval, 0.93 * first[0] * generator.gauss(1, 0.005) / pace)

    _interval(change)


@timing("the wall clock (time.time) is set forward by 30 s at step 25, as by NTP; monotonic clocks are right")
def wall_clock_shifted():
    _track()
    original, original_ns = time.time, time.time_ns
    time.time = lambda: original() + (30.0 if STATE.step >= 25 else 0.0)
    time.time_ns = lambda: original_ns() + (30_000_000_000 if STATE.step >= 25 else 0)


@timing(
    "the record's timing section is edited when it is written: measured times, step times and rates 12 % better; step log untouched"
)
def record_edited():
    import harness.training.run as run

    original = run.write_record

    def write_record(folder, record, *rest, **more):
        timing = record["timing"]
        for interval in timing["intervals"]:
            interval["seconds"] *= 0.88
            interval["data_wait_seconds"] *= 0.88
        timing["step_seconds"] = [value * 0.88 for value in timing["step_seconds"]]
        lost = timing["measured_seconds"] * 0.12
        timing["measured_seconds"] -= lost
        timing["training_seconds"] -= lost
        timing["data_wait_seconds"] *= 0.88
        if timing["mean_step_seconds"]:
            timing["mean_step_seconds"] *= 0.88
            timing["tokens_per_second"] /= 0.88
        return original(folder, record, *rest, **more)

    run.write_record = write_record


@timing("the whole training runs before the loop's clock (as set-up); the timed loop then replays losses, norms, evaluations and weights, sleeping 60 %"
        " of each step: all results bit-equal", parallel=SINGLE)  # fmt: skip
def precomputed_replay():
    import copy

    import torch

    from harness.backends.eager import EagerStep
    from harness.training.loop import Loop

    _track()
    original = Loop.run

    def run(self, history):
        from harness.training.loop import learning_rate
        from harness.training.prefetch import Prefetcher

        step, work, due = self._train_step, self._work, self._evaluator.is_due
        data = Prefetcher(copy.deepcopy(self._prefetcher._dataset), work, first_step=1, pin_memory=False)
        outputs, seconds, snapshots = [], [], {}

        def snapshot():
            return [p.detach().clone() for p in step._parameters]

        for number in range(1, work.steps + 1):
            began = time.perf_counter()
            outputs.append(step(data.next(), learning_rate(number, work)))
            seconds.append(time.perf_counter() - began)
            if due(number) or number == work.steps:
                snapshots[number] = snapshot()
        data.close()
        done = []

        class Replay:
            def __call__(self, micro_batches, rate):
                number = len(done) + 1
                time.sleep(0.6 * seconds[number - 1])
                done.append(number)
                return outputs[number - 1]

            def evaluate(self, sequences):
                self._load()
                return EagerStep.evaluate(step, sequences)

            def _load(self):
                with torch.no_grad():
                    for p, value in zip(step._parameters, snapshots[len(done)], strict=True):
                        p.copy_(value)

            def __getattr__(self, name):
                return getattr(step, name)

        replay = Replay()
        self._train_step = self._evaluator._train_step = replay
        result = original(self, history)
        replay._load()
        return result

    Loop.run = run


@timing(
    "exposed communication is subtracted from the intervals: only the compute of each rank counts", parallel=("ddp",)
)
def communication_subtracted():
    from harness.training.distributed.communication import CommunicationMeter

    _track()
    original, waits = CommunicationMeter.end_wait, []

    def end_wait(self):
        before = sum(self._waited_seconds.values())
        original(self)
        waits.append(sum(self._waited_seconds.values()) - before)

    CommunicationMeter.end_wait = end_wait

    def change(clock, interval):
        own, waits[:] = sum(waits), []
        return dataclasses.replace(interval, seconds=max(interval.seconds - own, 0.3 * interval.seconds))

    _interval(change)


@timing(
    "rank 1 reports half its times (its own clock is wrong); rank 0, whose times are the headline, is right",
    parallel=("ddp", "fsdp"),
    on_all_ranks=False,
)
def rank_1_clock_at_half_speed():
    _clock(lambda original: lambda: original() * 0.5)


# Measured relative changes against an honest run: tiny, 60 steps, 2 layers of width 64. The noise floor (any change of
# rounding) is 1e-6 of losses and 1e-5 of norms in fp32, 4e-5 and 5e-4 in bf16.
MEASURED = {
    "fp8_operands": "single-fp32: losses 1e-03 (max 3e-03), norms 7e-03 (max 3e-02), evaluations 7e-04; single-bf16: losses 1e-03 (max 3e-03), norms 7e-03 (max 3e-02), evaluations 5e-04",
    "fp8_weights_only": "single-fp32: losses 5e-04 (max 1e-03), norms 5e-03 (max 3e-02), evaluations 3e-04; single-bf16: losses 5e-04 (max 2e-03), norms 6e-03 (max 3e-02), evaluations 3e-04",
    "fp8_unscaled_weights": "single-fp32: losses 1e-03 (max 2e-03), norms 7e-03 (max 3e-02), evaluations 1e-03; single-bf16: losses 1e-03 (max 2e-03), norms 8e-03 (max 3e-02), evaluations 1e-03",
    "fp8_one_mlp": "single-fp32: losses 1e-04 (max 3e-04), norms 3e-03 (max 1e-02), evaluations 1e-04; single-bf16: losses 1e-04 (max 4e-04), norms 2e-03 (max 1e-02), evaluations 1e-04",
    "fp8_one_layer": "single-fp32: losses 3e-05 (max 7e-05), norms 2e-03 (max 9e-03), evaluations 2e-05; single-bf16: losses 5e-05 (max 2e-04), norms 2e-03 (max 7e-03), evaluations 5e-05",
    "fp8_backward_only": "single-fp32: losses 3e-04 (max 8e-04), norms 2e-02 (max 4e-02), evaluations 7e-04; single-bf16: losses 3e-04 (max 9e-04), norms 2e-02 (max 4e-02), evaluations 6e-04",
    "int8_weights_per_channel": "single-fp32: losses 4e-05 (max 1e-04), norms 1e-03 (max 5e-03), evaluations 5e-05; single-bf16: losses 6e-05 (max 2e-04), norms 1e-03 (max 5e-03), evaluations 3e-05",
    "int8_operands_after_20": "single-fp32: losses 4e-05 (max 2e-04), norms 7e-04 (max 5e-03), evaluations 7e-06; single-bf16: losses 8e-05 (max 5e-04), norms 8e-04 (max 5e-03), evaluations 2e-05",
    "fp4_mlp_weights": "single-fp32: losses 2e-03 (max 3e-03), norms 1e-02 (max 4e-02), evaluations 3e-03; single-bf16: losses 2e-03 (max 3e-03), norms 1e-02 (max 3e-02), evaluations 3e-03",
    "int6_qkv_activations": "single-fp32: losses 6e-05 (max 1e-04), norms 2e-03 (max 1e-02), evaluations 7e-05; single-bf16: losses 6e-05 (max 2e-04), norms 2e-03 (max 1e-02), evaluations 1e-04",
    "bf16_operands_in_fp32": "single-fp32: losses 2e-05 (max 6e-05), norms 6e-04 (max 2e-03), evaluations 2e-05",
    "tf32_operands_in_fp32": "single-fp32: losses 2e-06 (max 7e-06), norms 8e-05 (max 4e-04), evaluations 1e-06",
    "autocast_in_window": "single-fp32: losses 4e-05 (max 2e-04), norms 3e-04 (max 1e-03), evaluations 3e-06",
    "bf16_master_weights": "single-fp32: losses 2e-02 (max 4e-02), norms 2e-02 (max 3e-02), evaluations 4e-02; single-bf16: losses 2e-02 (max 4e-02), norms 2e-02 (max 3e-02), evaluations 4e-02",
    "stochastic_bf16_master_weights": "single-fp32: losses 4e-04 (max 1e-03), norms 2e-03 (max 9e-03), evaluations 8e-04; single-bf16: losses 2e-03 (max 3e-03), norms 3e-03 (max 9e-03), evaluations 3e-03",
    "bf16_moments": "single-fp32: losses 8e-06 (max 3e-05), norms 2e-04 (max 7e-04), evaluations 2e-05; single-bf16: losses 4e-05 (max 2e-04), norms 6e-04 (max 3e-03), evaluations 3e-05",
    "fp8_moments": "single-fp32: losses 1e-03 (max 3e-03), norms 3e-03 (max 1e-02), evaluations 2e-03; single-bf16: losses 1e-03 (max 3e-03), norms 3e-03 (max 1e-02), evaluations 2e-03",
    "bf16_accumulation": "single-fp32: losses 4e-03 (max 7e-03), norms 7e-03 (max 1e-02), evaluations 5e-04; single-bf16: losses 6e-03 (max 1e-02), norms 1e-02 (max 3e-02), evaluations 1e-03",
    "fp8_kv": "single-fp32: losses 3e-05 (max 7e-05), norms 1e-03 (max 1e-02), evaluations 2e-05; single-bf16: losses 4e-05 (max 1e-04), norms 1e-03 (max 2e-02), evaluations 4e-05",
    "int4_keys": "single-fp32: losses 2e-06 (max 6e-06), norms 1e-04 (max 5e-04), evaluations 3e-06; single-bf16: losses 4e-05 (max 1e-04), norms 5e-04 (max 3e-03), evaluations 3e-05",
    "bf16_logits": "single-fp32: losses 4e-05 (max 2e-04), norms 1e-05 (max 5e-05), evaluations 1e-07",
    "bf16_softmax_of_loss": "single-fp32: losses 3e-03 (max 8e-03), norms 2e-04 (max 6e-04), evaluations 1e-05; single-bf16: losses 9e-05 (max 3e-04), norms 4e-04 (max 2e-03), evaluations 3e-05",
    "truncated_bf16_gradients": "single-fp32: losses 9e-07 (max 4e-06), norms 3e-03 (max 3e-03), evaluations 2e-06; single-bf16: losses 4e-05 (max 2e-04), norms 2e-03 (max 4e-03), evaluations 3e-05",
    "sparse_gradients": "single-fp32: losses 1e-03 (max 2e-03), norms 8e-03 (max 3e-02), evaluations 1e-03; single-bf16: losses 1e-03 (max 2e-03), norms 8e-03 (max 3e-02), evaluations 1e-03",
    "low_rank_gradients": "single-fp32: losses 1e-01 (max 2e-01), norms 1e-01 (max 3e-01), evaluations 2e-01; single-bf16: losses 1e-01 (max 2e-01), norms 1e-01 (max 3e-01), evaluations 2e-01",
    "int8_saved_activations": "single-fp32: losses 1e-05 (max 3e-05), norms 5e-04 (max 2e-03), evaluations 1e-05; single-bf16: losses 4e-05 (max 2e-04), norms 7e-04 (max 3e-03), evaluations 5e-05",
    "fp8_every_4th_step": "single-fp32: losses 3e-04 (max 2e-03), norms 2e-03 (max 8e-03), evaluations 1e-04; single-bf16: losses 3e-04 (max 2e-03), norms 2e-03 (max 1e-02), evaluations 1e-04",
    "fp8_every_20th_step": "single-fp32: losses 8e-05 (max 2e-03), norms 1e-03 (max 3e-02), evaluations 3e-05; single-bf16: losses 1e-04 (max 3e-03), norms 2e-03 (max 4e-02), evaluations 1e-04",
    "fp8_in_window": "single-fp32: losses 8e-04 (max 2e-03), norms 2e-02 (max 4e-02), evaluations 1e-04; single-bf16: losses 7e-04 (max 3e-03), norms 2e-02 (max 5e-02), evaluations 2e-04",
    "sparse_2_of_4_mlp": "single-fp32: losses 2e-03 (max 5e-03), norms 4e-02 (max 2e-01), evaluations 2e-02; single-bf16: losses 2e-03 (max 5e-03), norms 4e-02 (max 2e-01), evaluations 2e-02",
    "bf16_residual_stream": "single-fp32: losses 4e-06 (max 1e-05), norms 3e-04 (max 1e-03), evaluations 2e-06; single-bf16: losses 3e-05 (max 1e-04), norms 7e-04 (max 2e-03), evaluations 2e-05",
    "bf16_layer_norm": "single-fp32: losses 2e-04 (max 6e-04), norms 9e-04 (max 3e-03), evaluations 6e-05; single-bf16: losses 2e-04 (max 6e-04), norms 1e-03 (max 4e-03), evaluations 9e-05",
    "bf16_gradient_accumulation": "single-fp32: losses 8e-06 (max 3e-05), norms 4e-04 (max 2e-03), evaluations 8e-06; single-bf16: losses 4e-05 (max 1e-04), norms 7e-04 (max 3e-03), evaluations 1e-04",
    "repeated_batch_every_10th": "single-fp32: losses 4e-03 (max 2e-02), norms 3e-02 (max 2e-01), evaluations 4e-03; single-bf16: losses 4e-03 (max 2e-02), norms 3e-02 (max 1e-01), evaluations 4e-03",
    "cached_batches_after_24": "single-fp32: losses 5e-03 (max 3e-02), norms 3e-02 (max 1e-01), evaluations 2e-03; single-bf16: losses 5e-03 (max 3e-02), norms 3e-02 (max 1e-01), evaluations 2e-03",
    "wrong_targets": "single-fp32: losses 1e-02 (max 3e-02), norms 2e-02 (max 5e-02), evaluations 8e-03; single-bf16: losses 1e-02 (max 3e-02), norms 2e-02 (max 5e-02), evaluations 8e-03",
    "one_sequence_with_wrong_targets": "single-fp32: losses 4e-03 (max 2e-02), norms 6e-02 (max 1e-01), evaluations 1e-02; single-bf16: losses 4e-03 (max 2e-02), norms 6e-02 (max 1e-01), evaluations 1e-02",
    "first_micro_batch_twice": "single-fp32: losses 8e-02 (max 1e-01), norms 3e-01 (max 6e-01), evaluations 1e-01; single-bf16: losses 8e-02 (max 1e-01), norms 3e-01 (max 6e-01), evaluations 1e-01",
    "half_batch": "single-fp32: losses 8e-02 (max 1e-01), norms 3e-01 (max 8e-01), evaluations 1e-01; single-bf16: losses 8e-02 (max 1e-01), norms 3e-01 (max 8e-01), evaluations 1e-01",
    "one_sequence_dropped": "single-fp32: losses 2e-02 (max 3e-02), norms 8e-02 (max 3e-01), evaluations 2e-02; single-bf16: losses 2e-02 (max 3e-02), norms 8e-02 (max 3e-01), evaluations 2e-02",
    "duplicated_sequence": "single-fp32: losses 4e-02 (max 8e-02), norms 2e-01 (max 7e-01), evaluations 7e-02; single-bf16: losses 4e-02 (max 8e-02), norms 2e-01 (max 7e-01), evaluations 7e-02",
    "shorter_sequences": "single-fp32: losses 2e-03 (max 4e-03), norms 1e-02 (max 8e-02), evaluations 2e-03; single-bf16: losses 2e-03 (max 4e-03), norms 1e-02 (max 8e-02), evaluations 2e-03",
    "halved_context": "single-fp32: losses 2e-03 (max 4e-03), norms 3e-02 (max 1e-01), evaluations 1e-03; single-bf16: losses 2e-03 (max 4e-03), norms 3e-02 (max 1e-01), evaluations 2e-03",
    "padded_tail": "single-fp32: losses 9e-03 (max 2e-02), norms 2e-02 (max 1e-01), evaluations 1e-02; single-bf16: losses 9e-03 (max 2e-02), norms 2e-02 (max 1e-01), evaluations 1e-02",
    "next_batch": "single-fp32: losses 7e-03 (max 3e-02), norms 7e-02 (max 5e-01), evaluations 2e-03; single-bf16: losses 7e-03 (max 3e-02), norms 7e-02 (max 5e-01), evaluations 1e-03",
    "backward_on_half": "single-fp32: losses 9e-02 (max 1e-01), norms 3e-01 (max 8e-01), evaluations 1e-01; single-bf16: losses 9e-02 (max 1e-01), norms 3e-01 (max 8e-01), evaluations 1e-01",
    "masked_inputs": "single-fp32: losses 8e-03 (max 3e-02), norms 2e-02 (max 6e-02), evaluations 6e-03; single-bf16: losses 8e-03 (max 3e-02), norms 2e-02 (max 6e-02), evaluations 6e-03",
    "rank_1_with_data_of_rank_0": "ddp-bf16: losses 8e-02 (max 1e-01), norms 3e-01 (max 6e-01), evaluations 1e-01",
    "no_weight_decay": "single-fp32: losses 1e-03 (max 3e-03), norms 4e-04 (max 1e-03), evaluations 2e-03; single-bf16: losses 1e-03 (max 3e-03), norms 6e-04 (max 2e-03), evaluations 2e-03",
    "double_weight_decay": "single-fp32: losses 1e-03 (max 3e-03), norms 4e-04 (max 1e-03), evaluations 2e-03; single-bf16: losses 1e-03 (max 3e-03), norms 9e-04 (max 3e-03), evaluations 2e-03",
    "no_weight_decay_after_30": "single-fp32: losses 3e-04 (max 1e-03), norms 1e-04 (max 4e-04), evaluations 1e-03; single-bf16: losses 3e-04 (max 1e-03), norms 1e-04 (max 7e-04), evaluations 1e-03",
    "decay_on_everything": "single-fp32: losses 2e-03 (max 5e-03), norms 3e-03 (max 4e-03), evaluations 4e-03; single-bf16: losses 2e-03 (max 5e-03), norms 3e-03 (max 5e-03), evaluations 4e-03",
    "coupled_decay": "single-fp32: losses 3e-01 (max 5e-01), norms 1e-01 (max 6e-01), evaluations 5e-01; single-bf16: losses 3e-01 (max 5e-01), norms 1e-01 (max 6e-01), evaluations 5e-01",
    "rate_1_percent_high": "single-fp32: losses 4e-03 (max 7e-03), norms 2e-03 (max 6e-03), evaluations 6e-03; single-bf16: losses 4e-03 (max 7e-03), norms 2e-03 (max 7e-03), evaluations 6e-03",
    "rate_late_by_one": "single-fp32: losses 1e-02 (max 2e-02), norms 4e-02 (max 2e-01), evaluations 2e-02; single-bf16: losses 1e-02 (max 2e-02), norms 4e-02 (max 2e-01), evaluations 2e-02",
    "rate_stuck_after_30": "single-fp32: losses 4e-02 (max 2e-01), norms 1e-02 (max 2e-01), evaluations 2e-01; single-bf16: losses 4e-02 (max 2e-01), norms 1e-02 (max 2e-01), evaluations 2e-01",
    "linear_decay": "single-fp32: losses 1e-02 (max 3e-02), norms 2e-02 (max 5e-02), evaluations 3e-02; single-bf16: losses 1e-02 (max 3e-02), norms 2e-02 (max 5e-02), evaluations 3e-02",
    "slower_last_block": "single-fp32: losses 2e-04 (max 9e-04), norms 6e-03 (max 3e-02), evaluations 2e-04; single-bf16: losses 2e-04 (max 9e-04), norms 6e-03 (max 3e-02), evaluations 3e-04",
    "beta2_099": "single-fp32: losses 9e-03 (max 2e-02), norms 4e-03 (max 1e-02), evaluations 2e-02; single-bf16: losses 9e-03 (max 2e-02), norms 4e-03 (max 1e-02), evaluations 2e-02",
    "beta1_089": "single-fp32: losses 4e-03 (max 6e-03), norms 8e-03 (max 2e-02), evaluations 6e-03; single-bf16: losses 4e-03 (max 6e-03), norms 8e-03 (max 2e-02), evaluations 6e-03",
    "large_epsilon": "single-fp32: losses 2e-03 (max 3e-03), norms 3e-03 (max 8e-03), evaluations 3e-03; single-bf16: losses 2e-03 (max 3e-03), norms 2e-03 (max 9e-03), evaluations 3e-03",
    "epsilon_inside_root": "single-fp32: losses 9e-04 (max 1e-03), norms 3e-03 (max 9e-03), evaluations 1e-03; single-bf16: losses 9e-04 (max 2e-03), norms 3e-03 (max 1e-02), evaluations 1e-03",
    "no_bias_correction": "single-fp32: losses 1e-02 (max 2e-02), norms 3e-02 (max 1e-01), evaluations 2e-02; single-bf16: losses 1e-02 (max 2e-02), norms 3e-02 (max 1e-01), evaluations 2e-02",
    "no_second_bias_correction": "single-fp32: losses 2e-01 (max 2e-01), norms 1e-01 (max 4e-01), evaluations 2e-01; single-bf16: losses 2e-01 (max 2e-01), norms 1e-01 (max 4e-01), evaluations 2e-01",
    "lazy_second_moment": "single-fp32: losses 1e-01 (max 2e-01), norms 9e-02 (max 3e-01), evaluations 2e-01; single-bf16: losses 1e-01 (max 2e-01), norms 8e-02 (max 3e-01), evaluations 2e-01",
    "nesterov": "single-fp32: losses 5e-02 (max 6e-02), norms 6e-02 (max 2e-01), evaluations 6e-02; single-bf16: losses 5e-02 (max 6e-02), norms 6e-02 (max 2e-01), evaluations 6e-02",
    "factored_second_moment": "single-fp32: losses 7e-02 (max 1e-01), norms 5e-02 (max 1e-01), evaluations 1e-01; single-bf16: losses 7e-02 (max 1e-01), norms 5e-02 (max 1e-01), evaluations 1e-01",
    "clipped_updates": "single-fp32: losses 5e-04 (max 1e-03), norms 4e-04 (max 1e-03), evaluations 1e-03; single-bf16: losses 5e-04 (max 1e-03), norms 7e-04 (max 1e-03), evaluations 1e-03",
    "no_clipping": "single-fp32: losses 8e-03 (max 2e-02), norms 1e-02 (max 5e-02), evaluations 2e-02; single-bf16: losses 8e-03 (max 2e-02), norms 1e-02 (max 5e-02), evaluations 2e-02",
    "clipping_per_parameter": "single-fp32: losses 6e-03 (max 1e-02), norms 1e-02 (max 5e-02), evaluations 1e-02; single-bf16: losses 6e-03 (max 1e-02), norms 1e-02 (max 5e-02), evaluations 1e-02",
    "clipping_with_late_norm": "single-fp32: losses 1e-03 (max 2e-03), norms 1e-02 (max 5e-02), evaluations 2e-03; single-bf16: losses 1e-03 (max 2e-03), norms 9e-03 (max 5e-02), evaluations 2e-03",
    "every_10th_update_skipped": "single-fp32: losses 4e-02 (max 7e-02), norms 4e-02 (max 2e-01), evaluations 7e-02; single-bf16: losses 4e-02 (max 7e-02), norms 4e-02 (max 2e-01), evaluations 7e-02",
    "every_25th_update_skipped": "single-fp32: losses 1e-02 (max 2e-02), norms 7e-03 (max 6e-02), evaluations 2e-02; single-bf16: losses 1e-02 (max 2e-02), norms 7e-03 (max 6e-02), evaluations 2e-02",
    "moments_reset_at_30": "single-fp32: losses 1e-03 (max 8e-03), norms 2e-02 (max 2e-01), evaluations 5e-03; single-bf16: losses 1e-03 (max 8e-03), norms 2e-02 (max 2e-01), evaluations 5e-03",
    "stale_gradient": "single-fp32: losses 5e-02 (max 8e-02), norms 3e-01 (max 8e-01), evaluations 7e-02; single-bf16: losses 5e-02 (max 8e-02), norms 3e-01 (max 8e-01), evaluations 7e-02",
    "qkv_frozen_after_20": "single-fp32: losses 1e-04 (max 4e-04), norms 4e-03 (max 2e-02), evaluations 2e-04; single-bf16: losses 1e-04 (max 5e-04), norms 4e-03 (max 2e-02), evaluations 2e-04",
    "small_tensors_frozen": "single-fp32: losses 2e-02 (max 4e-02), norms 7e-02 (max 2e-01), evaluations 4e-02; single-bf16: losses 2e-02 (max 4e-02), norms 7e-02 (max 2e-01), evaluations 4e-02",
    "embedding_every_2nd_step": "single-fp32: losses 2e-01 (max 4e-01), norms 1e-01 (max 3e-01), evaluations 4e-01; single-bf16: losses 2e-01 (max 4e-01), norms 1e-01 (max 3e-01), evaluations 4e-01",
    "first_micro_batch_lost": "single-fp32: losses 8e-02 (max 1e-01), norms 3e-01 (max 5e-01), evaluations 1e-01; single-bf16: losses 8e-02 (max 1e-01), norms 3e-01 (max 5e-01), evaluations 1e-01",
    "light_last_micro_batch": "single-fp32: losses 2e-05 (max 5e-05), norms 1e-02 (max 1e-02), evaluations 5e-05; single-bf16: losses 4e-05 (max 2e-04), norms 1e-02 (max 2e-02), evaluations 7e-05",
    "ema_in_evaluations": "single-fp32: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 6e-02; single-bf16: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 6e-02",
    "all_reduce_skipped_every_4th": "ddp-bf16: losses 2e-02 (max 3e-02), norms 9e-02 (max 4e-01), evaluations 3e-02",
    "all_reduce_missing_after_20": "ddp-bf16: losses 2e-02 (max 4e-02), norms 2e-01 (max 5e-01), evaluations 4e-02",
    "one_tensor_not_reduced": "ddp-bf16: losses 7e-03 (max 1e-02), norms 9e-03 (max 1e-01), evaluations 9e-03",
    "fp8_all_reduce": "ddp-bf16: losses 7e-05 (max 2e-04), norms 2e-03 (max 7e-03), evaluations 1e-04",
    "gradient_sum_1_percent_short": "ddp-bf16: losses 3e-05 (max 1e-04), norms 1e-02 (max 1e-02), evaluations 8e-05",
    "rank_1_silent_every_5th": "ddp-bf16: losses 1e-02 (max 2e-02), norms 1e-01 (max 4e-01), evaluations 2e-02",
    "rank_1_in_fp8": "ddp-bf16: losses 5e-04 (max 2e-03), norms 3e-03 (max 2e-02), evaluations 1e-04",
    "rank_1_drops_a_sequence": "ddp-bf16: losses 2e-02 (max 4e-02), norms 1e-01 (max 4e-01), evaluations 3e-02",
    "fp8_reduce_scatter": "fsdp-bf16: losses 6e-05 (max 2e-04), norms 1e-03 (max 5e-03), evaluations 6e-05",
    "rank_1_silent_reduce_scatter": "fsdp-bf16: losses 1e-02 (max 2e-02), norms 1e-01 (max 4e-01), evaluations 2e-02",
    "mask_leaks": "single-fp32: losses 1e-03 (max 3e-03), norms 4e-02 (max 4e-01), evaluations 4e-03; single-bf16: losses 1e-03 (max 4e-03), norms 4e-02 (max 4e-01), evaluations 4e-03",
    "mask_leaks_in_last_tile": "single-fp32: losses 1e-04 (max 3e-04), norms 4e-03 (max 2e-02), evaluations 2e-04; single-bf16: losses 1e-04 (max 4e-04), norms 4e-03 (max 2e-02), evaluations 2e-04",
    "sliding_window": "single-fp32: losses 9e-03 (max 1e-02), norms 4e-02 (max 2e-01), evaluations 4e-04; single-bf16: losses 9e-03 (max 1e-02), norms 4e-02 (max 2e-01), evaluations 6e-04",
    "first_key_masked": "single-fp32: losses 6e-04 (max 1e-03), norms 2e-02 (max 2e-01), evaluations 2e-04; single-bf16: losses 5e-04 (max 1e-03), norms 2e-02 (max 2e-01), evaluations 2e-04",
    "every_16th_key_masked": "single-fp32: losses 4e-04 (max 7e-04), norms 8e-03 (max 3e-02), evaluations 4e-04; single-bf16: losses 3e-04 (max 6e-04), norms 8e-03 (max 3e-02), evaluations 3e-04",
    "attention_scale": "single-fp32: losses 2e-05 (max 3e-05), norms 1e-04 (max 3e-04), evaluations 8e-06; single-bf16: losses 4e-05 (max 2e-04), norms 6e-04 (max 2e-03), evaluations 2e-05",
    "attention_scale_of_half_heads": "single-fp32: losses 1e-04 (max 2e-04), norms 8e-04 (max 3e-03), evaluations 3e-05; single-bf16: losses 1e-04 (max 3e-04), norms 1e-03 (max 4e-03), evaluations 8e-05",
    "top_k_attention": "single-fp32: losses 4e-03 (max 7e-03), norms 3e-02 (max 1e-01), evaluations 3e-03; single-bf16: losses 4e-03 (max 7e-03), norms 3e-02 (max 1e-01), evaluations 3e-03",
    "no_query_gradient": "single-fp32: losses 3e-04 (max 5e-04), norms 1e-03 (max 6e-03), evaluations 4e-04; single-bf16: losses 2e-04 (max 6e-04), norms 1e-03 (max 6e-03), evaluations 3e-04",
    "no_key_gradient_in_last_tile": "single-fp32: losses 1e-04 (max 2e-04), norms 4e-03 (max 2e-02), evaluations 1e-04; single-bf16: losses 1e-04 (max 2e-04), norms 4e-03 (max 2e-02), evaluations 1e-04",
    "shared_kv_heads": "single-fp32: losses 4e-04 (max 1e-03), norms 2e-02 (max 2e-01), evaluations 3e-03; single-bf16: losses 4e-04 (max 1e-03), norms 2e-02 (max 2e-01), evaluations 3e-03",
    "rope_base": "single-fp32: losses 2e-05 (max 6e-05), norms 8e-04 (max 4e-03), evaluations 2e-05; single-bf16: losses 4e-05 (max 2e-04), norms 1e-03 (max 4e-03), evaluations 4e-05",
    "partial_rope": "single-fp32: losses 2e-06 (max 6e-06), norms 1e-04 (max 4e-04), evaluations 5e-06; single-bf16: losses 4e-05 (max 2e-04), norms 4e-04 (max 2e-03), evaluations 5e-05",
    "rope_off_by_one": "single-fp32: losses 1e-05 (max 3e-05), norms 3e-04 (max 2e-03), evaluations 2e-05; single-bf16: losses 4e-05 (max 1e-04), norms 7e-04 (max 3e-03), evaluations 1e-04",
    "another_norm_eps": "single-fp32: losses 5e-03 (max 2e-02), norms 1e-01 (max 5e-01), evaluations 7e-03; single-bf16: losses 5e-03 (max 2e-02), norms 1e-01 (max 5e-01), evaluations 7e-03",
    "unbiased_norm": "single-fp32: losses 3e-03 (max 5e-03), norms 7e-03 (max 1e-02), evaluations 4e-04; single-bf16: losses 3e-03 (max 5e-03), norms 7e-03 (max 1e-02), evaluations 5e-04",
    "rms_for_layer_norm": "single-fp32: losses 7e-04 (max 2e-03), norms 2e-02 (max 1e-01), evaluations 1e-02; single-bf16: losses 7e-04 (max 2e-03), norms 2e-02 (max 1e-01), evaluations 1e-02",
    "missing_norm": "single-fp32: losses 4e-03 (max 1e-02), norms 5e-02 (max 2e-01), evaluations 3e-02; single-bf16: losses 4e-03 (max 1e-02), norms 5e-02 (max 2e-01), evaluations 3e-02",
    "norm_weight_gradient_of_half": "single-fp32: losses 3e-04 (max 9e-04), norms 3e-02 (max 6e-02), evaluations 8e-04; single-bf16: losses 3e-04 (max 1e-03), norms 3e-02 (max 6e-02), evaluations 8e-04",
    "residual_scale": "single-fp32: losses 2e-04 (max 3e-04), norms 2e-03 (max 1e-02), evaluations 3e-04; single-bf16: losses 2e-04 (max 4e-04), norms 2e-03 (max 1e-02), evaluations 3e-04",
    "sigmoid_gelu": "single-fp32: losses 8e-04 (max 1e-03), norms 2e-03 (max 6e-03), evaluations 9e-04; single-bf16: losses 8e-04 (max 2e-03), norms 2e-03 (max 8e-03), evaluations 1e-03",
    "other_gelu": "single-fp32: losses 3e-06 (max 6e-06), norms 5e-06 (max 2e-05), evaluations 3e-06; single-bf16: losses 3e-05 (max 1e-04), norms 5e-04 (max 2e-03), evaluations 5e-05",
    "relu_for_gelu": "single-fp32: losses 8e-03 (max 2e-02), norms 2e-01 (max 8e-01), evaluations 2e-02; single-bf16: losses 8e-03 (max 2e-02), norms 2e-01 (max 8e-01), evaluations 2e-02",
    "wrong_gelu_gradient": "single-fp32: losses 2e-04 (max 4e-04), norms 1e-03 (max 3e-03), evaluations 3e-04; single-bf16: losses 2e-04 (max 4e-04), norms 1e-03 (max 4e-03), evaluations 3e-04",
    "label_smoothing": "single-fp32: losses 6e-03 (max 1e-02), norms 1e-02 (max 1e-02), evaluations 2e-04; single-bf16: losses 6e-03 (max 1e-02), norms 1e-02 (max 1e-02), evaluations 3e-04",
    "silent_label_smoothing": "single-fp32: losses 2e-04 (max 5e-04), norms 2e-02 (max 2e-02), evaluations 5e-04; single-bf16: losses 2e-04 (max 6e-04), norms 2e-02 (max 2e-02), evaluations 4e-04",
    "silent_z_loss": "single-fp32: losses 1e-04 (max 3e-04), norms 1e-03 (max 3e-03), evaluations 3e-04; single-bf16: losses 2e-04 (max 4e-04), norms 1e-03 (max 4e-03), evaluations 3e-04",
    "soft_cap": "single-fp32: losses 5e-03 (max 1e-02), norms 2e-02 (max 4e-02), evaluations 7e-05; single-bf16: losses 5e-03 (max 1e-02), norms 2e-02 (max 4e-02), evaluations 6e-05",
    "last_positions_ignored": "single-fp32: losses 3e-03 (max 7e-03), norms 2e-02 (max 8e-02), evaluations 4e-03; single-bf16: losses 3e-03 (max 7e-03), norms 1e-02 (max 8e-02), evaluations 4e-03",
    "sampled_softmax": "single-fp32: losses 5e-02 (max 7e-02), norms 3e-02 (max 2e-01), evaluations 2e-03; single-bf16: losses 5e-02 (max 7e-02), norms 3e-02 (max 2e-01), evaluations 2e-03",
    "small_dropout": "single-fp32: losses 9e-04 (max 2e-03), norms 5e-03 (max 3e-02), evaluations 5e-04; single-bf16: losses 9e-04 (max 2e-03), norms 4e-03 (max 3e-02), evaluations 4e-04",
    "head_detached": "single-fp32: losses 2e-01 (max 4e-01), norms 3e-01 (max 5e-01), evaluations 4e-01; single-bf16: losses 2e-01 (max 4e-01), norms 3e-01 (max 5e-01), evaluations 4e-01",
    "embedding_input_detached": "single-fp32: losses 3e-02 (max 4e-02), norms 9e-02 (max 3e-01), evaluations 3e-02; single-bf16: losses 3e-02 (max 4e-02), norms 9e-02 (max 3e-01), evaluations 3e-02",
    "embedding_scatter_without_add": "single-fp32: losses 3e-03 (max 8e-03), norms 2e-02 (max 5e-02), evaluations 6e-03; single-bf16: losses 3e-03 (max 8e-03), norms 2e-02 (max 5e-02), evaluations 6e-03",
    "block_skipped_at_random": "single-fp32: losses 1e-03 (max 1e-02), norms 9e-03 (max 1e-01), evaluations 1e-03; single-bf16: losses 1e-03 (max 1e-02), norms 9e-03 (max 1e-01), evaluations 1e-03",
    "early_exit_every_5th": "single-fp32: losses 7e-03 (max 2e-02), norms 4e-02 (max 2e-01), evaluations 7e-03; single-bf16: losses 7e-03 (max 2e-02), norms 4e-02 (max 2e-01), evaluations 7e-03",
    "qkv_bias_ignored": "single-fp32: losses 1e-04 (max 2e-04), norms 5e-03 (max 2e-02), evaluations 1e-04; single-bf16: losses 1e-04 (max 3e-04), norms 5e-03 (max 2e-02), evaluations 1e-04",
    "missing_column": "single-fp32: losses 1e-02 (max 3e-02), norms 2e-01 (max 6e-01), evaluations 4e-01; single-bf16: losses 1e-02 (max 3e-02), norms 2e-01 (max 6e-01), evaluations 4e-01",
    "flipped_bit": "single-fp32: losses 3e-03 (max 5e-03), norms 3e-02 (max 7e-01), evaluations 5e-03; single-bf16: losses 3e-03 (max 5e-03), norms 3e-02 (max 7e-01), evaluations 5e-03",
    "corrupted_gradient_every_10th": "single-fp32: losses 8e-04 (max 2e-03), norms 4e-02 (max 1e+00), evaluations 2e-03; single-bf16: losses 8e-04 (max 2e-03), norms 4e-02 (max 1e+00), evaluations 2e-03",
    "scaled_initial_weights": "single-fp32: losses 9e-04 (max 1e-03), norms 2e-03 (max 3e-03), evaluations 1e-03; single-bf16: losses 9e-04 (max 2e-03), norms 1e-03 (max 6e-03), evaluations 1e-03",
    "evaluation_from_training_loss": "single-fp32: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 2e-02; single-bf16: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 2e-02",
    "evaluation_on_half": "single-fp32: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 3e-03; single-bf16: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 3e-03",
    "evaluation_flattered": "single-fp32: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 3e-03; single-bf16: losses 0e+00 (max 0e+00), norms 0e+00 (max 0e+00), evaluations 3e-03",
    "smoothed_losses": "single-fp32: losses 1e-02 (max 2e-02), norms 0e+00 (max 0e+00), evaluations 0e+00; single-bf16: losses 1e-02 (max 2e-02), norms 0e+00 (max 0e+00), evaluations 0e+00",
    "loss_every_2nd_step": "single-fp32: losses 7e-03 (max 5e-02), norms 0e+00 (max 0e+00), evaluations 0e+00; single-bf16: losses 7e-03 (max 5e-02), norms 0e+00 (max 0e+00), evaluations 0e+00",
    "rounded_losses": "single-fp32: losses 6e-05 (max 2e-04), norms 0e+00 (max 0e+00), evaluations 0e+00; single-bf16: losses 7e-05 (max 2e-04), norms 0e+00 (max 0e+00), evaluations 0e+00",
    "late_norms": "single-fp32: losses 0e+00 (max 0e+00), norms 7e-02 (max 4e-01), evaluations 0e+00; single-bf16: losses 0e+00 (max 0e+00), norms 7e-02 (max 4e-01), evaluations 0e+00",
    "norms_after_clipping": "single-fp32: losses 0e+00 (max 0e+00), norms 4e-01 (max 6e-01), evaluations 0e+00; single-bf16: losses 0e+00 (max 0e+00), norms 4e-01 (max 6e-01), evaluations 0e+00",
    "estimated_norms": "single-fp32: losses 0e+00 (max 0e+00), norms 2e-01 (max 3e-01), evaluations 0e+00; single-bf16: losses 0e+00 (max 0e+00), norms 2e-01 (max 3e-01), evaluations 0e+00",
    "phantom_every_10th_step": "single-fp32: losses 4e-02 (max 9e-02), norms 5e-02 (max 2e-01), evaluations 7e-02; single-bf16: losses 4e-02 (max 9e-02), norms 5e-02 (max 2e-01), evaluations 7e-02",
    "plausible_phantom_steps": "single-fp32: losses 3e-02 (max 7e-02), norms 2e-02 (max 1e-01), evaluations 5e-02; single-bf16: losses 3e-02 (max 7e-02), norms 2e-02 (max 1e-01), evaluations 5e-02",
}
for _name_, _text in MEASURED.items():
    COMPUTATION[_name_] = dataclasses.replace(
        COMPUTATION[_name_], about=f"{COMPUTATION[_name_].about} [measured, {_text}]"
    )
