"""Training with Hugging Face Trainer and a transformers model."""

from __future__ import annotations

import tempfile

from common import Measured, Sequences, read_work, transformers_model
from transformers import Trainer, TrainerCallback, TrainingArguments

work = read_work()
measured = Measured(work)


class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **more):
        measured.step_done()


class Causal(Sequences):
    def __getitem__(self, index):
        tokens = super().__getitem__(index)[:-1]
        return {"input_ids": tokens, "labels": tokens}


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        bf16=True,
        use_cpu=work.device == "cpu",
        per_device_train_batch_size=work.micro_batch_size,
        gradient_accumulation_steps=work.accumulation,
        max_steps=work.steps,
        learning_rate=work.learning_rate,
        weight_decay=0.1,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        torch_compile=work.compile,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=work.steps,
        **({"optim": "adamw_torch_fused"} if work.tuned else {}),
    )
    trainer = Trainer(transformers_model(work), arguments, train_dataset=Causal(work), callbacks=[Clock()])
    result = trainer.train()
# The mean over all steps: to log that of the last one, Trainer would read every step's.
measured.report(result.training_loss)
