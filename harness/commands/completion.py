"""`python -m harness completion`: a script that completes verbs, options and settings in a shell. No torch."""

from __future__ import annotations

from argparse import Action
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module

from harness.commands import VERBS
from harness.commands.arguments import Parser, expand_path
from harness.commands.train import OPTIONS
from harness.composition import group_options
from harness.config import PATH_SETTINGS, Config, iter_settings
from harness.errors import ExitCode
from harness.report.completion import SHELLS, render_completion
from harness.suites import suite_names

# Verbs that take settings of a run.
WITH_SETTINGS = ("suite", "torchrun", "peak")


@dataclass(frozen=True)
class Verb:
    """The words that may follow a verb."""

    candidates: tuple[str, ...]
    """Its options, and other arguments with fixed words."""
    choices: dict[str, tuple[str, ...]]
    """By option with fixed values, these."""
    takes_paths: bool
    """True if files and folders may follow too."""


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "completion",
        "Prints a script for bash, zsh or fish that completes verbs, options, settings and their values, of "
        "`python -m harness` and of `harness`. It holds all words, so that no Python starts while you type; print it "
        "again after an upgrade.",
        "0 ok, 2 bad usage",
        notes="to use it:\n"
        '  bash: eval "$(python -m harness completion bash)", in ~/.bashrc\n'
        '  zsh: eval "$(python -m harness completion zsh)", in ~/.zshrc, after compinit\n'
        "  fish: python -m harness completion fish > ~/.config/fish/completions/harness.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell to print the script for")
    return parser


def main(argv: list[str]) -> int:
    """Print the script, and return the exit code."""
    options = build_parser().parse(argv)
    settings = tuple(_settings())
    verbs = {name: _verb(name, settings) for name in VERBS}
    paths = [f"{name}=" for name in PATH_SETTINGS]
    print(render_completion(options.shell, verbs, (*VERBS, *OPTIONS, *settings), paths), end="")
    return ExitCode.OK


def _verb(name: str, settings: tuple[str, ...]) -> Verb:
    actions = import_module(f"harness.commands.{name}").build_parser().actions()
    words = [word for action in actions for word in _words(action)]
    words += suite_names() if name == "suite" else []
    choices = {
        option: tuple(map(str, action.choices))
        for action in actions
        if action.choices is not None
        for option in action.option_strings
    }
    positional = [action for action in actions if not action.option_strings]
    takes_paths = any(action.type is expand_path for action in positional)
    return Verb((*words, *(settings if name in WITH_SETTINGS else ())), choices, takes_paths)


def _words(action: Action) -> Iterable[str]:
    return action.option_strings or map(str, action.choices or ())


def _settings() -> Iterable[str]:
    """Yield every setting as KEY=VALUE for each of its values, or as KEY= if it may have any."""
    groups = group_options()
    for group, names in groups.items():
        yield from (f"{group}={name}" for name in names)
    for key, item, _ in iter_settings(Config):
        if key in groups:
            continue
        values = ("true", "false") if item.type in (bool, "bool") else item.metadata.get("choices")
        yield from (f"{key}={value}" for value in values) if values else (f"{key}=",)
