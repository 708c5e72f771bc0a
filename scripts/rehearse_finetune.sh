#!/usr/bin/env bash
# Rehearses a fine-tuning comparison, on two CPU cores in about five minutes: a tokenizer and a small Llama are trained
# on Python code (the standard library's), exported, and fine-tuned in bf16 on this project's documentation here and on
# an emulated Ascend NPU. Prints the loss before and after, and whether both did the same computation. Exit code 1 if the
# loss did not fall, or they differ.
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment "[text,hf]"
out=${1:-$(mktemp -d)}
mkdir -p "$out"

python - "$out" <<'PYTHON'
import sys, sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

out, library = Path(sys.argv[1]), Path(sysconfig.get_path("stdlib"))
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=2048, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False)
tokenizer.train([str(path) for path in sorted(library.glob("*.py"))], trainer)
tokenizer.save(str(out / "tokenizer.json"))
PYTHON

python -m harness model=llama-30m model.num_hidden_layers=4 model.hidden_size=256 model.num_attention_heads=4 \
  model.num_key_value_heads=2 model.intermediate_size=704 model.vocab_size=2048 model.max_position_embeddings=512 \
  data=text data.path="'$(python -c 'import asyncio; print(asyncio.__path__[0])')'" data.glob="'*.py'" \
  data.tokenizer="'$out/tokenizer.json'" workload=smoke workload.steps=300 workload.timing_warmup_steps=5 \
  workload.lr_warmup_steps=30 workload.seq_len=256 workload.global_batch_size=8 workload.micro_batch_size=4 \
  workload.learning_rate=1e-3 workload.eval_every=150 precision=bf16 checkpoint.every=300 \
  out="'$out/pretrained'" > "$out/pretrained.log"
python -m harness export "$out/pretrained" --out "$out/model"

finetune=(experiment=finetune model.path="'$out/model'" init="'$out/model'" data.path="'$project/harness/docs'"
  data.glob="'*.md'" data.tokenizer="'$out/tokenizer.json'" workload.steps=60 workload.seq_len=256
  workload.micro_batch_size=4 workload.eval_sequences=12 workload.learning_rate=5e-4)
python -m harness "${finetune[@]}" out="'$out/cpu'" > "$out/cpu.log"
folders=("$out/cpu")
if python -c "from importlib.metadata import version; version('torch-npu')" 2> /dev/null; then
  "$project/scripts/emulated_npu.sh" python -m harness "${finetune[@]}" backend=npu out="'$out/npu'" > "$out/npu.log"
  folders+=("$out/npu")
  python -m harness compare "${folders[@]}" > "$out/compare.txt"
else
  echo "not checked: an emulated NPU: torch-npu is not installed"
fi

python - "$out" <<'PYTHON'
import json, sys
from pathlib import Path

out, failed = Path(sys.argv[1]), False
for folder in ("cpu", "npu"):
    file = out / folder / "record.json"
    if file.exists():
        points = json.loads(file.read_text())["eval"]["points"]
        first, last = points[0], points[-1]
        print(f"{folder}: {first['loss']:.4f} nats/token before, {last['loss']:.4f} after {last['step']} steps")
        failed |= not last["loss"] < first["loss"] - 0.1
if (out / "compare.txt").exists():
    [gate] = [line for line in (out / "compare.txt").read_text().splitlines() if line.startswith("same computation")]
    print(gate)
    failed |= "pass" not in gate
sys.exit(failed)
PYTHON
