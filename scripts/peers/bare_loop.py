"""Bare PyTorch loop with its own model, in the style of nanoGPT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import Measured, Sequences, read_work
from torch import nn

work = read_work()
measured = Measured(work)
shape = work.model
llama = shape["norm"] == "rmsnorm"
hidden_size, heads, length = shape["hidden_size"], shape["num_attention_heads"], work.seq_len
kv_heads, size = shape["num_key_value_heads"] or heads, shape["hidden_size"] // shape["num_attention_heads"]
intermediate_size = shape["intermediate_size"] or 4 * hidden_size


def norm():
    return nn.RMSNorm(hidden_size, eps=shape["norm_eps"]) if llama else nn.LayerNorm(hidden_size, bias=shape["bias"])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.qkv = nn.Linear(hidden_size, (heads + 2 * kv_heads) * size, bias=shape["bias"])
        self.proj = nn.Linear(hidden_size, hidden_size, bias=shape["bias"])
        self.up = nn.Linear(hidden_size, intermediate_size * (2 if llama else 1), bias=shape["bias"])
        self.down = nn.Linear(intermediate_size, hidden_size, bias=shape["bias"])

    def forward(self, x, cos, sin):
        batch, seq, _ = x.shape
        parts = self.qkv(self.norm1(x)).split([hidden_size, kv_heads * size, kv_heads * size], dim=2)
        q, k, v = (part.view(batch, seq, -1, size).transpose(1, 2) for part in parts)
        if llama:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != heads)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, seq, hidden_size))
        h = self.up(self.norm2(x))
        if llama:
            gate, h = h.chunk(2, dim=-1)
            h = F.silu(gate) * h
        else:
            h = F.gelu(h, approximate="tanh")
        return x + self.down(h)


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(shape["vocab_size"], hidden_size)
        self.positions = None if llama else nn.Embedding(shape["max_position_embeddings"], hidden_size)
        self.blocks = nn.ModuleList(Block() for _ in range(shape["num_hidden_layers"]))
        self.norm = norm()
        self.head = nn.Linear(hidden_size, shape["vocab_size"], bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        if shape["tie_word_embeddings"]:
            self.head.weight = self.tokens.weight
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


model = Model().to(work.device)
run = torch.compile(model) if work.compile else model
optimizer = torch.optim.AdamW(
    model.parameters(), lr=work.learning_rate, weight_decay=0.1, **({"fused": True} if work.tuned else {})
)
loader = iter(torch.utils.data.DataLoader(Sequences(work), batch_size=work.micro_batch_size))
loss = torch.zeros(())
for _ in range(work.steps):
    for _ in range(work.accumulation):
        batch = next(loader).to(work.device)
        with torch.autocast(work.device, dtype=torch.bfloat16):
            loss = run(batch[:, :-1], batch[:, 1:]) / work.accumulation
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    measured.step_done()
measured.report(loss.item() * work.accumulation)
