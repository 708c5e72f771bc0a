"""Table of layouts: each trains the same steps as one process, and the largest differences are shown.

    python scripts/layout_table.py                       every model in every layout
    python scripts/layout_table.py --models gpt2 --layouts 'tensor=2' 'tensor=2 data=2'
    python scripts/layout_table.py --precision bf16      within the gate of *same computation*?
    python scripts/layout_table.py --resume 'fsdp=4'     each goes on in another layout from a checkpoint of step 6

Processes are forks and exchange over Gloo. In float32 losses and gradient norms of all steps have to agree within 1e-5.
Exit code 1 if a layout differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from harness.text import layered_settings  # noqa: E402
from tests.layouts import MODELS, WORK, difference, train, train_in_two  # noqa: E402
from tests.ranks import run_harness  # noqa: E402

LAYOUTS = (
    "tensor=2",
    "tensor=4",
    "shard=2 tensor=2",
    "data=2 shard=1 tensor=2",
    "data=2 shard=2",
    "data=2 shard=2 tensor=2",
    "pipeline=2",
    "pipeline=4",
    "pipeline=2 shard=2",
    "pipeline=2 tensor=2",
    "pipeline=2 context=2",
    "context=2",
    "context=4",
    "context=2 tensor=2",
    "context=2 shard=2",
    "data=2 context=2",
    "data=2 context=2 tensor=2",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), metavar="'AXIS=N ...'")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--resume", metavar="LAYOUT", help="`fsdp=4`, `one process`, or axes as in --layouts")
    parser.add_argument("overrides", nargs="*", help="further settings")
    options = parser.parse_args()
    print(f"{'layout':<40}" + "".join(f"{model:>24}" for model in options.models))
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in options.models:
            settings = layered_settings(WORK, MODELS[model], [f"precision={options.precision}"], options.overrides)
            ended = run_harness(folder, *settings, f"out={model}")
            if ended.code:
                sys.exit(f"{model}: {ended.err}")
        for layout in options.layouts:
            cells = []
            for model in options.models:
                settings = layered_settings(WORK, MODELS[model], [f"precision={options.precision}"], options.overrides)
                name = f"{model}-{layout.replace(' ', '-').replace('=', '')}"
                if options.resume is None:
                    found = train(folder, layout, settings, name)
                else:
                    found = train_in_two(folder, (layout, options.resume), settings, name)
                cell = found if isinstance(found, str) else difference(folder / model, found, options.precision)
                failed |= not cell.startswith("ok")
                cells.append(cell)
            print(f"{layout:<40}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
