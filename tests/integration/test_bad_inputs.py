"""Bad input, typed as a user would type it: one line, no traceback, the documented exit code, nothing left behind.

Each case: the arguments, the exit code, and the parts of the message.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Harness
from tests.tiny import TINY

TEXT = "data=text data.path={data}/"
TOKENS = "data=tokens data.path={data}/"

CASES: list[tuple[str, int, list[str]]] = [
    # Misspelt and unknown
    ("workload.stps=5", 2, ["workload.stps", "did you mean workload.steps?"]),
    ("workloads.steps=5", 2, ["workloads.steps", "workload.steps"]),
    ("steps=5", 2, ["steps", "workload.steps"]),
    ("+typo=1", 2, ["typo", "no such setting"]),
    ("++model.dropout=0.1", 2, ["model.dropout", "no such setting"]),
    ("model=gpt3", 2, ["model", "gpt3", "gpt2-124m"]),
    ("backend=tpu", 2, ["backend", "tpu", "cpu, cuda, hpu, mps, npu, xpu"]),
    ("backend.name=tpu", 2, ["backend.name", "tpu", "cpu"]),
    ("track=fastest", 2, ["track", "tuned", "portable"]),
    ("experiment=nothing", 2, ["experiment", "nothing", "smoke"]),
    ("precision=fp8", 2, ["precision", "fp8", "fp32, bf16, fp16"]),
    ("model.norm=batchnorm", 2, ["model.norm", "batchnorm", "rmsnorm"]),
    ("~workload.steps", 2, ["workload.steps", "deleted"]),
    ("trian", 2, ["trian", "doctor"]),
    ("prject a b", 2, ["prject", "no such command"]),
    ("project a b", 2, ["project", "unrecognized arguments: a b"]),
    ("audit a b", 2, ["audit", "unrecognized arguments: b"]),
    ("claim a b", 2, ["claim", "unrecognized arguments: b"]),
    ("backend=xpu", 3, ["xpu", "built without XPU"]),
    ("backend=hpu", 3, ["hpu", "habana_frameworks is not installed"]),
    ("backend=mps", 3, ["mps", "macOS"]),
    ("compare a b", 2, ["a: no such file or folder"]),
    ("compare a", 2, ["found 1 side, expected"]),
    ("compare a b --margin wide", 2, ["--margin", "wide"]),
    ("--turbo", 2, ["--turbo", "no such option"]),
    ("\u2013help", 2, ["a dash as texts have it", "type --help"]),
    ("\u2013-help", 2, ["a dash as texts have it", "type --help"]),
    ("doctor tpu", 2, ["tpu", "cpu, cuda, hpu, mps, npu, xpu"]),
    ("doctor --jsno", 2, ["--jsno", "--json"]),
    # Wrong types and malformed arguments
    ("workload.steps=many", 2, ["workload.steps", "many", "whole number"]),
    ("workload.steps=2.5", 2, ["workload.steps", "2.5", "whole number"]),
    ("workload.steps=null", 2, ["workload.steps"]),
    ("workload.steps=[1,2]", 2, ["workload.steps"]),
    ("workload.steps=", 2, ["workload.steps"]),
    ("workload=3", 2, ["workload", "3", "standard"]),
    ("model.bias=perhaps", 2, ["model.bias", "perhaps", "true or false"]),
    ("workload.learning_rate=fast", 2, ["workload.learning_rate", "fast", "number"]),
    ("seed=1,2", 2, ["seed=1,2", "-m"]),
    ("out=a=b", 2, ["out=a=b", "quotes"]),
    ("model.hidden_size={{x}}", 2, ["model.hidden_size"]),
    ("seed=${{nowhere}}", 2, ["nowhere"]),
    # Out of range
    ("workload.steps=0", 2, ["workload.steps", "0", "at least 1"]),
    ("workload.global_batch_size=-4", 2, ["workload.global_batch_size", "-4", "at least 1"]),
    ("model.num_hidden_layers=-1", 2, ["model.num_hidden_layers", "-1"]),
    ("seed=-1", 2, ["seed", "-1", "at least 0"]),
    ("repeats=0", 2, ["repeats", "at least 1"]),
    ("workload.learning_rate=nan", 2, ["workload.learning_rate", "nan", "finite"]),
    ("workload.learning_rate=inf", 2, ["workload.learning_rate", "inf", "finite"]),
    ("workload.learning_rate=-1e-3", 2, ["workload.learning_rate", "more than 0"]),
    ("workload.beta2=1.0", 2, ["workload.beta2", "less than 1"]),
    ("data.eval_fraction=1.5", 2, ["data.eval_fraction", "less than 1"]),
    ("backend.threads=0", 2, ["backend.threads", "at least 1"]),
    ("target_loss=-1", 2, ["target_loss", "more than 0"]),
    # Combinations that cannot be
    ("model.num_attention_heads=3", 2, ["model.num_attention_heads", "3", "model.hidden_size", "32"]),
    (
        "model.num_key_value_heads=3 model.num_attention_heads=4",
        2,
        ["model.num_key_value_heads", "model.num_attention_heads"],
    ),
    ("model.hidden_size=6 model.num_attention_heads=2", 2, ["model.position_embedding", "even"]),
    ("workload.micro_batch_size=3", 2, ["workload.global_batch_size", "multiple", "micro_batch_size"]),
    (
        "workload.global_batch_size=1000000000 workload.micro_batch_size=1000000000",
        2,
        ["workload.global_batch_size", "1,000,000,000", "GiB of memory", "lower it"],
    ),
    ("workload.eval_every=5 workload.eval_sequences=9000000000", 2, ["workload.eval_sequences", "GiB of memory"]),
    ("workload.seq_len=513", 2, ["workload.seq_len", "513", "model.max_position_embeddings", "512"]),
    ("workload.timing_warmup_steps=6", 2, ["workload.timing_warmup_steps", "6", "workload.steps"]),
    ("workload.lr_warmup_steps=9", 2, ["workload.lr_warmup_steps", "workload.steps"]),
    ("target_loss=1 workload.eval_every=0", 2, ["target_loss", "workload.eval_every"]),
    ("resume=auto", 2, ["resume", "out=DIR"]),
    ("resume=auto out=r", 2, ["resume", "set checkpoint.every"]),
    ("resume=yes", 2, ["resume", "'yes'", "expected one of: auto"]),
    ("resume=auto out=r checkpoint.every=5 repeats=2", 2, ["resume", "repeats=1"]),
    ("checkpoint.every=-1", 2, ["checkpoint.every", "-1", "at least 0"]),
    ("checkpoint.keep=0", 2, ["checkpoint.keep", "at least 1"]),
    ("checkpoint.asynchronous=true", 2, ["checkpoint.asynchronous", "set checkpoint.every"]),
    ("checkpoint.evry=5", 2, ["checkpoint.evry", "did you mean checkpoint.every"]),
    ("parallel=ddp", 2, ["parallel", "RANK", "torchrun --nproc-per-node"]),
    ("parallel=ddp repeats=3", 2, ["repeats", "torchrun"]),
    ("parallel=dp", 2, ["parallel", "'dp'", "ddp, fsdp, mesh, single"]),
    ("parallel.cpu_offload=true", 2, ["parallel.cpu_offload", "parallel=fsdp"]),
    ("parallel.timeout_seconds=0", 2, ["parallel.timeout_seconds", "more than 0"]),
    ("on_nonfinite=ignore", 2, ["on_nonfinite", "'ignore'", "stop, skip"]),
    ("loss_spike_factor=1", 2, ["loss_spike_factor", "more than 1"]),
    ("data.path=somewhere", 2, ["data.path", "synthetic"]),
    ("model.vocab_size=3", 2, ["model.vocab_size", "3", "4"]),
    # Devices
    ("backend=npu", 3, ["backend npu is not available here", "First remedy", "doctor npu"]),
    ("backend=cuda", 3, ["backend cuda is not available here", "First remedy"]),
    ("backend.threads=4096", 3, ["backend.threads", "4096"]),
    ("backend.device_index=1", 3, ["backend.device_index", "1"]),
    # Data
    ("data=text", 2, ["data.path", "missing"]),
    (TEXT + "nowhere", 2, ["nowhere", "No such file or directory", "data.path"]),
    (TEXT + "empty.txt", 2, ["empty.txt", "no text"]),
    (TEXT + "empty_folder", 2, ["empty_folder", "data.glob"]),
    (TEXT + "latin1.txt", 2, ["latin1.txt", "not UTF-8", "byte 3"]),
    (TEXT + "short.txt", 2, ["short.txt", "training tokens", "workload.seq_len"]),
    (TEXT + "good.txt data.glob=*.md", 0, []),
    (TEXT + "folder data.glob=*.md", 2, ["folder", "data.glob", "*.md"]),
    (TEXT + "good.txt workload.eval_sequences=100000", 2, ["workload.eval_sequences", "100000"]),
    (TEXT + "good.txt model.vocab_size=100", 2, ["model.vocab_size", "100", "256"]),
    (TEXT + "good.txt data.tokenizer={data}/nowhere.json", 2, ["data.tokenizer", "nowhere.json"]),
    (TEXT + "good.txt data.tokenizer={data}/not-a-tokenizer.json", 2, ["not-a-tokenizer.json"]),
    (TOKENS + "nowhere.bin", 2, ["nowhere.bin", "No such file"]),
    (TOKENS + "truncated.bin", 2, ["truncated.bin", "10001 bytes", "truncated"]),
    (TOKENS + "empty.bin", 2, ["empty.bin", "0 bytes"]),
    (TOKENS + "folder", 2, ["folder", "holds no file whose name ends in .npy or .bin", "data.path"]),
    (TOKENS + "good.txt", 2, ["good.txt", ".npy or .bin"]),
    (TOKENS + "large-ids.bin", 2, ["large-ids.bin", "token id 999", "model.vocab_size", "256"]),
    (TOKENS + "truncated.npy", 2, ["truncated.npy"]),
    (TOKENS + "float.npy", 2, ["float.npy", "float64"]),
    (TOKENS + "pickled.npy", 2, ["pickled.npy"]),
    (TOKENS + "good.bin data.dtype=uint64", 2, ["data.dtype", "uint64"]),
    # Places to write to
    ("out={data}/good.txt", 2, ["out", "good.txt"]),
    ("out={data}/good.txt/below", 2, ["out", "below"]),
    ("out=/proc/nothing", 2, ["out", "/proc/nothing"]),
    ("out=''", 2, ["out", "empty"]),
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "empty_folder").mkdir()
    (folder / "folder").mkdir()
    text = "The quick brown fox jumps over the lazy dog. " * 200
    (folder / "folder" / "a.txt").write_text(text)
    (folder / "good.txt").write_text(text)
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("too short")
    (folder / "latin1.txt").write_bytes(b"caf\xe9 " * 2000)
    (folder / "not-a-tokenizer.json").write_text('{"a": 1}')
    tokens = (np.arange(5000) % 256).astype("<u2")
    tokens.tofile(folder / "good.bin")
    (folder / "truncated.bin").write_bytes(tokens.tobytes() + b"x")
    (folder / "empty.bin").write_bytes(b"")
    np.full(5000, 999, dtype="<u2").tofile(folder / "large-ids.bin")
    np.save(folder / "float.npy", np.zeros(5000))
    np.save(folder / "pickled.npy", np.array([{"a": 1}] * 10, dtype=object), allow_pickle=True)
    np.save(folder / "whole.npy", tokens)
    whole = (folder / "whole.npy").read_bytes()
    (folder / "truncated.npy").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize(("argv", "code", "named"), CASES, ids=[argv for argv, _, _ in CASES])
def test_bad_input_is_answered_with_one_line(
    argv: str, code: int, named: list[str], data: Path, harness: Harness, tmp_path: Path
) -> None:
    typed = [word.format(data=data) for word in argv.split(" ")]
    is_verb = typed[0] in ("trian", "prject", "compare", "project", "audit", "claim", "doctor") or typed[0].startswith(
        "--"
    )
    done = harness(*typed) if is_verb else harness(*TINY, *typed)
    assert done.returncode == code, done.stderr
    if code == 0:
        return
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for name in named:
        assert name in lines[0], lines[0]
    assert done.stdout == ""
    assert not list(tmp_path.rglob("record.json")), "a run was begun"
    assert not list(tmp_path.rglob("config.yaml")), "a run was begun"


def test_there_are_more_than_forty() -> None:
    assert sum(code != 0 for _, code, _ in CASES) >= 40


# Root reads everything; setpriv takes that right away.
needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="running as root, and setpriv is missing"
)


@needs_setpriv
@pytest.mark.parametrize("what", ["folder", "file"])
def test_unreadable_data_is_named(what: str, harness: Harness, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    file = folder / "a.txt"
    file.write_text("some text " * 500)
    target = folder if what == "folder" else file
    target.chmod(0)
    try:
        done = _as_nobody(harness, [*TINY, "data=text", f"data.path={folder}", f"out={tmp_path}/run"], tmp_path)
    finally:
        target.chmod(stat.S_IRWXU)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be read: Permission denied" in done.stderr


@needs_setpriv
def test_a_folder_that_cannot_be_written_is_named(harness: Harness, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = _as_nobody(harness, [*TINY, f"out={closed}/run"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "out" in done.stderr
    assert "Permission denied" in done.stderr


def _as_nobody(harness: Harness, argv: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run without root's right to read everything (CAP_DAC_OVERRIDE), if we are root."""
    if os.geteuid() != 0:
        return harness(*argv)
    drop = "-dac_override,-dac_read_search"
    return subprocess.run(
        ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "--no-new-privs",
         sys.executable, "-m", "harness", *argv],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_token_id_deep_in_the_data_ends_the_run_with_a_record(harness: Harness, tmp_path: Path) -> None:
    tokens = (np.arange(5000) % 256).astype("<u2")
    tokens[2000] = 700  # in one window of 148, which 40 steps of 4 sequences are bound to meet
    tokens.tofile(tmp_path / "bad.bin")
    argv = (*TINY, "data=tokens", "data.path=bad.bin", "workload.eval_every=0", "workload.steps=40", "out=run")
    done = harness(*argv)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "token id 700" in done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "failed"
    assert "token id 700" in record["error"]
