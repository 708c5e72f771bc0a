"""Call the fused attention with the mask that it needs, then with another one, and print the error of each."""

from __future__ import annotations

import json

import torch
import torch_npu  # type: ignore[import-not-found]

CAUSAL = 2


def main(_: object = ()) -> None:
    q = torch.ones(1, 2, 8, 16, device="npu:0")
    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    attend = torch_npu.npu_fusion_attention  # pyright: ignore[reportAttributeAccessIssue]
    errors = {}
    for name in ("right", "wrong"):
        # The error ends the task queue: it comes last. One position in a mask of the same size is another.
        mask[3, 2] = name == "wrong"
        try:
            attend(q, q, q, 2, "BNSD", atten_mask=mask.to("npu:0"), scale=0.25, sparse_mode=CAUSAL)
            torch.npu.synchronize()  # pyright: ignore[reportAttributeAccessIssue]
            errors[name] = ""
        except RuntimeError as raised:
            errors[name] = str(raised)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
