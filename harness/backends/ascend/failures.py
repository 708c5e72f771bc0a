"""Meaning of torch-npu's and CANN's messages, by their error codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from harness.backends.failures import OUT_OF_MEMORY_REMEDY, PEER_REMEDY, Failure, find_line

ACL_CODE = re.compile(r"error code is (\d+)")
PLUGIN_CODE = re.compile(r"\bERR(\d{2})(\d{3})\b")
CANN_CODE = re.compile(r"\bE[A-Z]\d{4}\b")
OPERATOR = re.compile(r"current working operator name is (\w+)")

OUT_OF_MEMORY_CODES = {200000, 207001, 207005, 207018}
# Memory that torch's allocator does not manage: CANN's own, and the collective library's (HCCL_E_OOM is 24).
OUTSIDE_MEMORY = re.compile(
    r"EL0004|Failed to allocate memory|driver error:\s*out of memory|[Hh]ccl\w+.*error code is 24\b"
)
# Kernel or device faults, reported at a later synchronize, after which the context is lost.
LATE_FAULTS = {
    107019: "a task did not finish within its time",
    507010: "the device's task scheduler stopped answering",
    507013: "a DMA copy failed in hardware",
    507014: "a kernel on an AI core timed out",
    507015: "a kernel on an AI core raised an exception",
    507016: "a kernel on an AI core trapped",
    507017: "a kernel on an AI CPU timed out",
    507018: "a kernel on an AI CPU raised an exception",
    507034: "a kernel on a vector core timed out",
    507035: "a kernel on a vector core raised an exception",
    507036: "a kernel on a vector core trapped",
    507042: "a kernel on an AI core read outside its memory",
    507043: "a kernel on an AI core wrote outside its memory",
    507044: "a kernel on a vector core read outside its memory",
    507045: "a kernel on a vector core wrote outside its memory",
    507046: "a stream did not finish within the time set for it",
    507047: "an event was not recorded within the time set for it",
    507049: "an internal task of the device raised an exception",
    507050: "an internal task of the device trapped",
    507053: "the device's memory has an error that cannot be corrected",
    507054: "the device's memory has errors of several bits",
    507055: "the device's memory is suspected of a fault",
    107020: "a stream did not finish within the time set for it",
    507900: "the AI CPU module reported an internal error",
}
# Faults before any work was queued: these are not late.
START_FAULTS = {
    207004: "the device is not available",
    507008: "the chip's version could not be read",
    507033: "the device could not be started",
    507899: "the driver reported an internal error",
    507901: "the connection between host and device was lost",
}
# Faults that another rank caused.
PEER_FAULTS = {
    507048: "a collective waited longer than HCCL_EXEC_TIMEOUT",
    507056: "a link between devices failed",
    507057: "a remote device is suspected of a fault, or a kernel used an invalid address",
    507904: "a collective failed, also when it was repeated",
}
# Errors of the operator library: CANN's kernels for this chip or dtype are not installed, or it refuses the operands.
NO_KERNEL_CODE, BAD_OPERAND_CODE = 561103, 161002
CALLED_OPERATOR = re.compile(r"call (aclnn\w+) failed")
# The message under TORCH_NPU_COMPACT_ERROR_OUTPUT=1.
COMPACT = re.compile(r"^\s*CANN error:\s*(.+)$", re.MULTILINE)
LOGS = "device logs are in ~/ascend/log/debug/plog"


def classify_message(text: str) -> Failure | None:
    """Return the failure that a message of the NPU stack means, or None if it is not from the NPU stack."""
    codes = {int(code) for code in ACL_CODE.findall(text)}
    if "NPU out of memory" in text or "NPUWorkspaceAllocator tried to allocate" in text or codes & OUT_OF_MEMORY_CODES:
        return Failure("oom", _first_line(text), OUT_OF_MEMORY_REMEDY)
    if "CPU fallback is disabled" in text or "will fall back to run on the CPU" in text:
        return Failure(
            "failed",
            f"an operation of this model would run on the host instead of the NPU: {_first_line(text)}",
            "a newer torch-npu may support it; a run that falls back to the host is not timed",
        )
    return _classify_fault(text, codes)


def _classify_fault(text: str, codes: set[int]) -> Failure | None:
    found = OPERATOR.search(text)
    operator = found.group(1) if found else None
    failure = _by_code(codes, LATE_FAULTS, _late, operator) or _by_code(codes, PEER_FAULTS, _from_a_peer)
    if failure is not None:
        return failure
    # CANN's messages may also hold an older one, beside a fault.
    if OUTSIDE_MEMORY.search(text):
        return Failure("oom", _cause(text), OUT_OF_MEMORY_REMEDY)
    return _by_code(codes, START_FAULTS, _at_start) or _by_words(text) or _of_an_operation(text, codes, operator)


def _by_code(
    codes: set[int],
    faults: Mapping[int, str],
    explain: Callable[[str, str | None], Failure],
    operator: str | None = None,
) -> Failure | None:
    known = sorted(codes & faults.keys())
    return explain(f"{faults[known[0]]} (ACL {known[0]})", operator) if known else None


def _by_words(text: str) -> Failure | None:
    for pattern, cause, remedy in _RUN_FAILURES:
        if re.search(pattern, text):
            return Failure("device_fault", f"{cause}: {_cause(text)}", remedy, secondary=remedy == PEER_REMEDY)
    return None


def _of_an_operation(text: str, codes: set[int], operator: str | None) -> Failure | None:
    """Return the failure of an operation, or any other with a code of the NPU stack."""
    if operator is not None:
        return _late("an operation was rejected", operator)
    called = CALLED_OPERATOR.search(text)
    name = called.group(1) if called else "an operation"
    if NO_KERNEL_CODE in codes or "Cannot find bin of op" in text:
        cause = f"CANN has no kernel for {name} on this chip or for this dtype: {_cause(text)}"
        remedy = f"install CANN's kernels package for this chip, in the toolkit's version; {LOGS}"
        return Failure("device_fault", cause, remedy)
    if BAD_OPERAND_CODE in codes:
        return Failure("device_fault", f"CANN refuses the operands of {name}: {_cause(text)}", LOGS)
    if codes or PLUGIN_CODE.search(text) or CANN_CODE.search(text):
        return Failure("device_fault", _cause(text), LOGS)
    compact = COMPACT.search(text)
    return Failure("device_fault", compact.group(0).strip(), LOGS) if compact else None


def _late(what: str, operator: str | None) -> Failure:
    named = f" in {operator}" if operator else ""
    return Failure(
        "device_fault",
        f"{what}{named}; reported late: the line of Python in the traceback is not the culprit",
        f"run again with ASCEND_LAUNCH_BLOCKING=1 outside the harness to find the operation; {LOGS}",
    )


def _at_start(what: str, _operator: str | None) -> Failure:
    return Failure("device_fault", what, "compare the driver's and CANN's versions (python -m harness doctor npu)")


def _from_a_peer(what: str, _operator: str | None) -> Failure:
    return Failure(
        "device_fault",
        what,
        f"{PEER_REMEDY}; stop the remaining processes and wait ten seconds before the next run",
        secondary=True,
    )


# Other failures of a run that have a remedy of their own: pattern, cause, remedy.
_RUN_FAILURES = (
    (
        r"EI0006|Getting socket times out",
        "a rank did not connect to its peers within HCCL_CONNECT_TIMEOUT (120 s if not set)",
        "check that every rank was started, that the hosts reach each other, and that no earlier run is alive",
    ),
    (
        r"EI0015",
        "the ranks did not find each other when the communicator was created",
        "check that every rank was started, that the hosts reach each other, and that HCCL_SOCKET_IFNAME names their "
        "network interface",
    ),
    (
        r"EJ0003|EI0019|EI0020|[Bb]ind the IP port|already been bound",
        "a port of the collective library is in use, by another run on this host or one that has just ended",
        "wait ten seconds, or set HCCL_IF_BASE_PORT (default 60000, 16 ports) to a free range for each run",
    ),
    (
        r"EI0002|Notify register times out",
        "a rank timed out in a collective, waiting for its peers",
        PEER_REMEDY,
    ),
    (
        r"EJ0001|initialize the HCCP process",
        "the collective library's helper process could not start, most likely because an earlier run is still alive",
        "stop the processes of earlier runs and wait ten seconds",
    ),
    (
        r"[Hh]cclCommInit\w*\(.*error code is 2\b",
        "the collective library refused the communicator, most likely because two processes use one device",
        "start one process for each device",
    ),
    (
        r"error code is 107002\b",
        "no device was set in this thread",
        "call torch.npu.set_device in every thread that uses the device",
    ),
    (
        r"error code is 100039\b",
        "the loader found CANN's stub libraries, which are for compilers only",
        "remove the stub directories (devlib, stub) from LD_LIBRARY_PATH, and source CANN's set_env.sh",
    ),
    (
        r"AclSetCompileopt.*error code is 50000[12]\b",
        "CANN's operator compiler could not start",
        "source CANN's set_env.sh, and install the Python packages that CANN's tools need (decorator, scipy, attrs, "
        "psutil, cffi)",
    ),
    (
        # What a copy from pageable memory says of an operation that failed before it.
        r"ACL stream synchronize failed",
        "the device stopped at an operation before this one",
        f"run again with ASCEND_LAUNCH_BLOCKING=1 outside the harness to find the operation; {LOGS}",
    ),
)

# Failures of the import of torch_npu or of opening the device: pattern, cause, remedy; {0} is the pattern's group.
_SET_UP_FAILURES = (
    (
        r"(libascend_hal\.so[\w.]*): cannot open shared object file",
        "the Ascend driver's library is not on the loader's path (missing {0})",
        "install the driver; in a container pass -v /usr/local/Ascend/driver/lib64/:/usr/local/Ascend/driver/lib64/",
    ),
    (
        r"(lib\w+\.so[\w.]*): cannot open shared object file",
        "CANN is not on the loader's path (missing {0})",
        "source /usr/local/Ascend/cann/set_env.sh (or ascend-toolkit/set_env.sh)",
    ),
    (
        r"undefined symbol: ((?:acl|Hccl|ge|rt)[A-Z]\w*|acl(?:rt|nn|op|mdl|prof|sys)[A-Z]\w*)",
        "CANN is too old for this torch-npu (it has no {0})",
        "install the CANN release that this torch-npu was built for",
    ),
    (
        r"(undefined symbol)",
        "torch and torch-npu do not match ({0})",
        "install the torch-npu that is made for this torch",
    ),
    (
        r"Failed to find function (\w+)",
        "CANN is too old for this torch-npu (it has no {0})",
        "install the CANN release that this torch-npu was built for",
    ),
    (
        r"Unsupported soc version: (\S+)",
        "this torch-npu does not know the chip {0}",
        "install a newer torch-npu",
    ),
    (
        r"No module named '(torch_npu\._C)'|(torch_npu)' has no attribute '_autoload'",
        "another directory named torch_npu hides the installed package",
        "change to a directory without one, or reinstall torch-npu",
    ),
    (
        r"(Two accelerators cannot be used)",
        "the installed torch is a build for another accelerator",
        "install a CPU build of torch beside torch-npu",
    ),
    (
        r"(ASCEND_OPP_PATH|opp package)",
        "CANN's operator package is missing or ASCEND_OPP_PATH is not set",
        "source CANN's set_env.sh, and install the kernels package for this chip",
    ),
)


def explain_import_failure(error: BaseException) -> tuple[str, str]:
    """Return the cause and the remedy of a failed `import torch_npu`, walking the chain of exceptions."""
    texts = []
    link: BaseException | None = error
    while link is not None and len(texts) < 10:
        texts.append(str(link))
        link = link.__cause__ or link.__context__
    explained = explain_set_up_failure("\n".join(texts))
    if explained is not None:
        return explained
    return f"torch_npu cannot be imported: {_first_line(texts[-1])}", "run python -c 'import torch_npu'"


def explain_set_up_failure(text: str) -> tuple[str, str] | None:
    """Return the cause and the remedy of a message about a mismatch of package, CANN, driver and chip, or None."""
    for pattern, cause, remedy in _SET_UP_FAILURES:
        found = re.search(pattern, text)
        if found:
            return cause.format(found.group(1)), remedy
    return None


def _cause(text: str) -> str:
    """Return the first line of a message, a place in C++, and the reason of CANN, if it gives one."""
    reasons = [
        line.strip() for line in text.splitlines() if CANN_CODE.match(line.strip()) and "Inner Error" not in line
    ]
    first = _first_line(text)
    return f"{first}; {reasons[0]}" if reasons and reasons[0] not in first else first


def _first_line(text: str) -> str:
    return find_line(text) or "no message"
