"""Training loop with Hugging Face accelerate and a transformers model."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from common import Measured, Sequences, read_work, transformers_model

work = read_work()
measured = Measured(work)
accelerator = Accelerator(
    mixed_precision="bf16",
    cpu=work.device == "cpu",
    gradient_accumulation_steps=work.accumulation,
    dynamo_backend="inductor" if work.compile else "no",
)
model = transformers_model(work)
optimizer = torch.optim.AdamW(
    model.parameters(), lr=work.learning_rate, weight_decay=0.1, **({"fused": True} if work.tuned else {})
)
loader = torch.utils.data.DataLoader(Sequences(work), batch_size=work.micro_batch_size)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, work.steps)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
model.train()
loss = torch.zeros(())
for batch in loader:
    with accelerator.accumulate(model):
        tokens = batch[:, :-1]
        loss = model(input_ids=tokens, labels=tokens).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if accelerator.sync_gradients:
        measured.step_done()
measured.report(loss.item())
