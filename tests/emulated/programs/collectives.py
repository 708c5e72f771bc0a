"""One rank of a process group on emulated NPUs that checks every collective for the exact result.

    RANK=r WORLD_SIZE=n python -m tests.emulated.programs.collectives STORE_FILE [die]

Writes {"results": {name: whether it was exact}, "launched": [...]} to STORE_FILE.RANK.json. With `die` the last rank
exits after the first collective without notice, and the others write the outcome: {"error": ..., "seconds": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch_npu  # type: ignore[import-not-found] # noqa: F401

from tests.cann_emulator import control

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
DEVICE = f"npu:{RANK}"
# More elements than a slot of the emulator's shared memory holds, so that they are sent in pieces of unequal size.
MANY = 3_000_017


def main(argv: Sequence[str]) -> None:
    store, *mode = argv
    torch.npu.set_device(RANK)  # pyright: ignore[reportAttributeAccessIssue]
    dist.init_process_group(
        "hccl", init_method=f"file://{store}", rank=RANK, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    if mode == ["die"]:
        found = survive()
    else:
        found = {"results": everything(), "launched": control.launched()}
        dist.destroy_process_group()
    # torch-npu prints to standard output too.
    Path(f"{store}.{RANK}.json").write_text(json.dumps(found))
    if mode == ["die"]:
        os._exit(0)  # a broken group cannot be destroyed


def everything() -> dict[str, bool]:
    results = {}

    def check(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        results[name] = torch.equal(found.cpu(), expected.to(found.dtype))

    def values(rank: int, count: int = 5) -> torch.Tensor:
        return torch.arange(float(count)) + rank

    def mine(count: int = 5) -> torch.Tensor:
        return values(RANK, count).to(DEVICE)

    everyone = [values(rank) for rank in range(WORLD)]
    total = torch.stack(everyone).sum(0)
    others = {"sum": total, "max": values(WORLD - 1), "min": values(0), "product": torch.stack(everyone).prod(0)}
    for name, operation in zip(others, (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT),
                               strict=True):  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32):
            tensor = mine().to(dtype)
            dist.all_reduce(tensor, op=operation)
            check(f"all_reduce {name} {dtype}", tensor, others[name])
    tensor = torch.full((MANY,), float(RANK + 1), device=DEVICE)
    dist.all_reduce(tensor)
    check("all_reduce, large", tensor, torch.full((MANY,), WORLD * (WORLD + 1) / 2))

    tensor = mine()
    dist.reduce(tensor, 1)
    if RANK == 1:
        check("reduce", tensor, total)
    gathered = [torch.empty(5, device=DEVICE) for _ in range(WORLD)]
    dist.all_gather(gathered, mine())
    check("all_gather", torch.cat(gathered), torch.cat(everyone))
    into = torch.empty(WORLD * MANY, device=DEVICE)
    dist.all_gather_into_tensor(into, torch.full((MANY,), float(RANK), device=DEVICE))
    check("all_gather, large", into, torch.arange(float(WORLD)).repeat_interleave(MANY))
    part = torch.empty(3, device=DEVICE)
    dist.reduce_scatter_tensor(part, mine(3 * WORLD))
    check(
        "reduce_scatter",
        part,
        torch.stack([values(rank, 3 * WORLD) for rank in range(WORLD)]).sum(0)[3 * RANK : 3 * RANK + 3],
    )
    part = torch.empty(MANY, device=DEVICE)
    dist.reduce_scatter_tensor(part, torch.full((WORLD * MANY,), float(RANK + 1), device=DEVICE))
    check("reduce_scatter, large", part, torch.full((MANY,), WORLD * (WORLD + 1) / 2))
    part = torch.empty(5, device=DEVICE)
    dist.scatter(part, [tensor.to(DEVICE) for tensor in everyone] if RANK == 1 else None, 1)
    check("scatter", part, values(RANK))
    tensor = mine()
    dist.broadcast(tensor, 1)
    check("broadcast", tensor, values(1))
    into = torch.empty(2 * WORLD, device=DEVICE)
    dist.all_to_all_single(into, torch.arange(2.0 * WORLD, device=DEVICE) + 100 * RANK)
    sent = [torch.arange(2.0 * WORLD)[2 * RANK : 2 * RANK + 2] + 100 * rank for rank in range(WORLD)]
    check("all_to_all", into, torch.cat(sent))

    following, previous = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    tensor = torch.empty(5, device=DEVICE)
    if RANK == 0:
        dist.send(mine(), following)
        dist.recv(tensor, previous)
    else:
        dist.recv(tensor, previous)
        dist.send(mine(), following)
    check("send and receive", tensor, values(previous))
    # Everyone sends before anyone receives, and more than a mailbox holds.
    tensor, large = torch.empty(MANY, device=DEVICE), torch.full((MANY,), float(RANK), device=DEVICE)
    pair = [dist.P2POp(dist.isend, large, following), dist.P2POp(dist.irecv, tensor, previous)]
    for work in dist.batch_isend_irecv(pair):
        work.wait()
    check("send and receive in a ring, large", tensor, torch.full((MANY,), float(previous)))
    group = dist.new_group([0, 1])
    if RANK < 2:
        tensor = mine()
        dist.all_reduce(tensor, group=group)
        check("all_reduce in a smaller group", tensor, values(0) + values(1))
    dist.barrier()
    return results


def survive() -> dict[str, object]:
    tensor = torch.ones(4, device=DEVICE)
    dist.all_reduce(tensor)
    torch.npu.synchronize()  # pyright: ignore[reportAttributeAccessIssue]
    if RANK == WORLD - 1:
        os._exit(0)
    began = time.monotonic()
    try:
        dist.all_reduce(tensor)
        torch.npu.synchronize()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # noqa: BLE001 (its type is part of the result)
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - began}
    return {"error": None, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main(sys.argv[1:])
