"""A made-up accelerator that owns the step: it compiles loss and gradients to one graph for each shape of batch.

An example of devices that compile, explained in harness/docs/backends.md. Torch is imported inside methods only, since
preflight checks run before torch is loaded.
"""

from harness.backends.base import Backend
from harness.backends.step import OpaqueStep, StepOutput
from harness.errors import BackendUnavailable


class GraphChip(Backend):
    """A device that runs compiled graphs only."""

    name = "graphchip"

    def load(self): ...  # there is no plug-in to import, and no device to open

    def device(self):
        import torch

        return torch.device("cpu")

    def apply(self, precision):
        super().apply(precision)
        if precision == "fp16":
            raise BackendUnavailable("precision=fp16: this chip has no loss scaling; use precision=bf16 or fp32")

    def prepare(self, model, optimizer, *, precision, max_grad_norm, grad_sync=None, skip_nonfinite=False):
        return GraphStep(model, optimizer, precision != "fp32", max_grad_norm)

    def synchronize(self): ...  # a call returns when its graph has run

    def describe(self):
        return {"kind": self.name, "name": "GraphChip", "index": 0, "count": 1, "memory_bytes": None, "emulated": True}


class GraphStep(OpaqueStep):
    def __init__(self, model, optimizer, bf16, clip):
        self.model, self.optimizer, self.bf16, self.clip, self.graphs = model, optimizer, bf16, clip, {}

    def __call__(self, micro_batches, learning_rate):
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        results = [self.run(torch.func.grad_and_value(self.loss), "train", batch) for batch in micro_batches]
        for name, weight in self.model.named_parameters():
            weight.grad = sum(gradients[name] for gradients, _ in results) / len(results)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return StepOutput(torch.stack([loss for _, loss in results]).mean(), norm)

    def evaluate(self, sequences):
        return self.run(self.loss, "evaluate", sequences)

    def run(self, function, kind, batch):
        from torch.fx.experimental.proxy_tensor import make_fx

        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        if (kind, batch.shape) not in self.graphs:
            self.graphs[kind, batch.shape] = make_fx(lambda *given: function(*given))(weights, batch)  # noqa: PLW0108
        return self.graphs[kind, batch.shape](weights, batch)

    def loss(self, weights, batch):
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            return torch.func.functional_call(self.model, weights, (batch,))
