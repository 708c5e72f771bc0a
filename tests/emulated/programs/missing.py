"""Call a kernel and a runtime function that the emulator does not implement, and print the errors."""

from __future__ import annotations

import ctypes
import json
import re

import torch
import torch_npu  # type: ignore[import-not-found] # noqa: F401


def main(_: object = ()) -> None:
    library = ctypes.CDLL("libascendcl.so")
    library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    # The kernel's error ends the task queue: it comes last.
    code = library.aclmdlRICaptureBegin()
    message = library.aclGetRecentErrMsg().decode()
    ones = torch.ones(1, 1, 4, 4, device="npu:0")
    try:
        torch.nn.functional.conv2d(ones, ones)
        torch.npu.synchronize()  # pyright: ignore[reportAttributeAccessIssue]
        error = "nothing"
    except RuntimeError as raised:
        error = str(raised)
    kernels = sorted(set(re.findall(r"aclnn\w+", error)))
    print(json.dumps({"kernel": kernels, "function": code, "message": message}))


if __name__ == "__main__":
    main()
