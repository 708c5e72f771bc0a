"""The help texts of a run: usage, settings, and the composed settings."""

from __future__ import annotations

import ast
import inspect
import textwrap

from harness import config as config_module
from harness.composition import group_options, load
from harness.config import Config, iter_settings, to_yaml
from harness.errors import ExitCode

HELP = """\
usage: python -m harness [key=value ...]          train and time one run
       python -m harness -m key=value1,value2     a run for each combination, one after another
       python -m harness compare REF OTHER ...    what the records of two or more runs allow to be said
       python -m harness claim [NAME]             what was claimed of chips, and what would test it
       python -m harness audit FILE               is a published table of training speeds possible?
       python -m harness project ...              a training that does not fit here: days, device-hours, energy
       python -m harness doctor [BACKEND] [--json]   what can run here, and what is missing
       python -m harness peak backend=...         what this device can do at most, measured
       python -m harness health                   does what runs here still get further? (for health checks)
       python -m harness torchrun [--option ...] [key=value ...]   one run on several devices

Every setting has a default: a bare `python -m harness` trains a small model on the CPU. Often set:
  backend=cuda  precision=fp32|bf16|fp16  seed=1  repeats=5  out=DIR  target_loss=1.5
  profile=true  experiment=autotune  track=tuned  log=json  --metrics-file PATH.prom
  data=text data.path=DIR  workload.steps=500  workload.global_batch_size=64  backend.threads=8
  checkpoint.every=500 resume=auto out=DIR; several devices: python -m harness torchrun --nproc-per-node=N parallel=ddp

Groups, each a set of values chosen by name:
{groups}

options:
  --cfg             print the composed settings and stop
  --settings        list every setting with its type, meaning and default
  -m, --multirun    run each combination of comma-separated values in a fresh process
  --version, -h, --help

exit codes: 0 ok, 2 bad usage or settings, 3 backend unavailable, 4 not comparable, 5 the run failed,
            130 or 143 interrupted (SIGINT, SIGTERM)\
"""


def print_help() -> int:
    """Print usage, groups and exit codes: one screen."""
    groups = [
        textwrap.fill(
            f"{group}=" + " | ".join(options),
            width=96,
            initial_indent="  ",
            subsequent_indent=" " * (len(group) + 3),
            break_on_hyphens=False,
        )
        for group, options in group_options().items()
    ]
    print(HELP.format(groups="\n".join(groups)))
    return ExitCode.OK


def print_settings() -> int:
    """Print every setting with its type, default and the meaning that stands beside it in config.py."""
    meanings = setting_meanings()
    defaults = {key: value for key, _, value in iter_settings(load([]))}
    for key, item, _ in iter_settings(Config):
        kind = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type))
        default = "null" if defaults[key] is None else defaults[key]
        print(f"{key}={default}  ({kind})")
        print(textwrap.fill(meanings[key], width=96, initial_indent="    ", subsequent_indent="    "))
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
    print(to_yaml(load(overrides)), end="")
    return ExitCode.OK
