"""The help texts of a run: usage, settings, and the composed settings."""

from __future__ import annotations

import ast
import inspect
import textwrap

from harness import config as config_module
from harness.commands import VERBS
from harness.composition import group_options, load
from harness.config import Config, iter_settings, to_yaml
from harness.errors import ExitCode

HELP_WIDTH = 96
HELP = """\
usage: python -m harness [key=value ...]          train and time one run
       python -m harness -m key=value1,value2     one run for each combination, one after another
       python -m harness VERB ...                 see python -m harness VERB --help

verbs:
{verbs}

Every setting has a default: python -m harness trains a small model on the CPU. Common settings:
  backend=cuda  precision=bf16|fp16|bf16_weights  seed=1  repeats=5  out=DIR  target_loss=1.5
  profile=true  experiment=autotune  track=tuned  log=json  --metrics-file PATH.prom
  data=text data.path=DIR  workload.steps=500  workload.global_batch_size=64  backend.threads=8
  checkpoint.every=500 resume=auto out=DIR
  several devices: python -m harness torchrun --nproc-per-node=8 parallel=ddp experiment=gpt2

Groups, each a named set of settings:
{groups}

options:
  --cfg             print the composed settings and exit
  --settings        list every setting with its type, default and meaning
  -m, --multirun    run each combination of comma-separated values in a fresh process
  --version, -h, --help

exit codes: 0 ok, 1 not as expected (--expect, a hanging run in health, a plan that does not fit),
            2 bad usage or settings, 3 backend unavailable, 4 not comparable, 5 run failed,
            130, 143, 129 or 138 interrupted (SIGINT, SIGTERM, SIGHUP, SIGUSR1)\
"""


def print_help() -> int:
    """Print usage, verbs, groups and exit codes on one screen."""
    groups = [
        textwrap.fill(
            f"{group}=" + " | ".join(options),
            width=HELP_WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * (len(group) + 3),
            break_on_hyphens=False,
        )
        for group, options in group_options().items()
    ]
    verbs = [f"  {verb:10} {summary}" for verb, summary in VERBS.items()]
    print(HELP.format(verbs="\n".join(verbs), groups="\n".join(groups)))
    return ExitCode.OK


def print_settings() -> int:
    """Print every setting with its default, type and meaning, the docstring of its field in config.py."""
    meanings = setting_meanings()
    defaults = {key: value for key, _, value in iter_settings(load([]))}
    for key, item, _ in iter_settings(Config):
        kind = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type))
        default = "null" if defaults[key] is None else defaults[key]
        print(f"{key}={default}  ({kind})")
        print(textwrap.fill(meanings[key], width=HELP_WIDTH, initial_indent="    ", subsequent_indent="    "))
    return ExitCode.OK


def setting_meanings() -> dict[str, str]:
    """Return the docstring under each field of the config classes, by dotted key."""
    tree = ast.parse(inspect.getsource(config_module))
    by_class: dict[str, dict[str, tuple[str, str]]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            by_class[node.name] = documented = {}
            for item, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    text = ""
                    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                        text = inspect.cleandoc(str(following.value.value))
                    documented[item.target.id] = (ast.unparse(item.annotation), text)
    meanings: dict[str, str] = {}

    def walk(class_name: str, prefix: str) -> None:
        for name, (kind, text) in by_class[class_name].items():
            if kind in by_class:
                walk(kind, f"{prefix}{name}.")
            else:
                meanings[prefix + name] = text

    walk("Config", "")
    return meanings


def print_config(overrides: list[str]) -> int:
    """Print the composed settings as YAML."""
    print(to_yaml(load(overrides)), end="")
    return ExitCode.OK
