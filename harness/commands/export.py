"""`python -m harness export`: writes the weights of a run's newest checkpoint as safetensors with a config.json."""

from __future__ import annotations

from harness.commands.arguments import Parser, expand_path
from harness.errors import ExitCode

DTYPES = ("float32", "bfloat16", "float16")


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "export",
        "Reads the newest checkpoint in the folder of a run that was started with checkpoint.every, and writes its "
        "weights in Hugging Face's names as safetensors files of at most 5 GB, with a config.json: transformers loads "
        "the folder, and so does init=DIR. The model has to fit in memory, twice. No device is used.",
        "0 ok, 2 bad usage, no checkpoint, or a model that no family of transformers describes, 5 a file cannot be "
        "written",
    )
    parser.add_argument("run", type=expand_path, help="folder of the run")
    parser.add_argument("--out", type=expand_path, required=True, metavar="DIR", help="new folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights written")
    return parser


def main(argv: list[str]) -> int:
    """Write the files, name them, and return the exit code."""
    options = build_parser().parse(argv)
    # Imported here, because it imports torch.
    from harness.training.export import export_checkpoint

    for file in export_checkpoint(options.run, options.out, options.dtype):
        print(file)
    return ExitCode.OK
