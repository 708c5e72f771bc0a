"""Training loop with Lightning Fabric and litgpt's GPT, after litgpt's pretraining script.

litgpt has no learned positions: a GPT-2 shape gets rotary ones, which cost almost nothing.
"""

from __future__ import annotations

import lightning as L
import torch
from common import Measured, Sequences, read_work
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

work = read_work()
measured = Measured(work)
shape = work.model
llama = shape["norm"] == "rmsnorm"
config = Config(
    name="peer",
    block_size=work.seq_len,
    vocab_size=shape["vocab_size"],
    padded_vocab_size=shape["vocab_size"],
    n_layer=shape["num_hidden_layers"],
    n_head=shape["num_attention_heads"],
    n_query_groups=shape["num_key_value_heads"] or shape["num_attention_heads"],
    n_embd=shape["hidden_size"],
    intermediate_size=shape["intermediate_size"] or 4 * shape["hidden_size"],
    rotary_percentage=1.0,
    parallel_residual=False,
    bias=shape["bias"],
    norm_class_name="RMSNorm" if llama else "LayerNorm",
    mlp_class_name="LLaMAMLP" if llama else "GptNeoxMLP",
    gelu_approximate="none" if llama else "tanh",
    norm_eps=shape["norm_eps"],
)
fabric = L.Fabric(accelerator=work.device, devices=1, precision="bf16-mixed")
with fabric.init_module(empty_init=False):
    model = GPT(config)
if shape["tie_word_embeddings"]:
    model.transformer.wte.weight = model.lm_head.weight
if work.compile:
    model = torch.compile(model)
model = fabric.setup(model)
optimizer = torch.optim.AdamW(
    model.parameters(), lr=work.learning_rate, weight_decay=0.1, **({"fused": True} if work.tuned else {})
)
optimizer = fabric.setup_optimizers(optimizer)
loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(Sequences(work), batch_size=work.micro_batch_size))
loss = torch.zeros(())
for number, batch in enumerate(loader, 1):
    accumulating = number % work.accumulation != 0
    with fabric.no_backward_sync(model, enabled=accumulating):
        logits = model(batch[:, :-1].contiguous())
        loss = chunked_cross_entropy(logits, batch[:, 1:].contiguous(), chunk_size=0)
        fabric.backward(loss / work.accumulation)
    if not accumulating:
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        measured.step_done()
measured.report(loss.item())
