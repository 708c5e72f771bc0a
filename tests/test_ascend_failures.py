"""Classification of torch-npu's and CANN's messages: status, a cause in one line, and a remedy.

The messages are those of torch-npu 2.13.0, recorded with failures injected into the emulated CANN; those of older
releases are from public issues.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from harness.backends.ascend import failures
from harness.backends.ascend.failures import classify_message, explain_import_failure
from harness.backends.failures import Failure
from harness.records.record import STATUSES

STAMP = "[ERROR] 2026-11-23-21:26:59 (PID:12582, Device:0, RankID:-1)"
ASCEND_LOG = "Rectify the fault based on the error information in the ascend log."


def acl(where: str, call: str, code: int, said: str) -> str:
    """Return a message in torch-npu's format for a failed call of CANN's runtime."""
    return (
        f"{where} NPU function error: {call}, error code is {code}\n"
        f"{STAMP} ERR00100 PTA call acl api failed\n[Error]: {said}\nEZ9999: Inner Error!"
    )


def classified(text: str) -> Failure:
    failure = classify_message(text)
    assert failure is not None
    assert failure.status in STATUSES
    assert failure.cause.strip()
    assert "\n" not in failure.cause + failure.remedy
    return failure


SYNCHRONIZE = "npuSynchronizeDevice:../torch_npu/csrc/core/npu/NPUStream.cpp:748"
SET_DEVICE = "ExchangeDevice:../torch_npu/csrc/core/npu/sys_ctrl/npu_sys_ctrl.cpp:337"
INITIALIZE = "Initialize:../torch_npu/csrc/core/npu/sys_ctrl/npu_sys_ctrl.cpp:217"
COPY = "copy_between_host_and_device_opapi:../torch_npu/csrc/aten/ops/op_api/CopyKernelOpApi.cpp:89"
COUNT = "init:../torch_npu/csrc/core/npu/NPUCachingAllocator.h:366"
STREAM = "initGlobalStreamState:../torch_npu/csrc/core/npu/NPUStream.cpp:242"
MATMUL = "matmul_implement_npu:../third_party/op-plugin/op_plugin/ops/opapi/MatmulKernelNpuOpApi.cpp:94"

WAIT = "AclrtSynchronizeDeviceWithTimeout"
KERNEL_FAULTS = [
    (507014, acl(SYNCHRONIZE, WAIT, 507014, "The aicore execution times out."), "timed out"),
    (507015, acl(SYNCHRONIZE, WAIT, 507015, "The aicore execution is abnormal."), "AI core"),
    (507018, acl(SYNCHRONIZE, WAIT, 507018, "The aicpu execution is abnormal."), "AI CPU"),
    (507035, acl(COPY, "aclrtMemcpy", 507035, "The vector core execution is abnormal."), "vector core"),
]
START_FAULTS = [
    (507008, acl(INITIALIZE, "aclInit", 507008, "Failed to obtain the SOC version."), "version could not be read"),
    (507033, acl(SET_DEVICE, "c10_npu::SetDevice(device)", 507033, "Failed to start the device."), "not be started"),
    (
        507899,
        acl(COUNT, "aclrtGetDeviceCount(&device_count)", 507899, "An internal error occurs in the Driver module."),
        "driver",
    ),
]
CREATE = "acl::AclrtCreateStreamWithConfig(&default_streamsi.stream, 0, (0x00000001U | 0x00000002U))"
OTHER_FAILURES = [
    acl(STREAM, CREATE, 100000, "Parameter verification failed."),
    acl(SET_DEVICE, "c10_npu::SetDevice(device)", 100001, "ACL uninitialized."),
    acl(SET_DEVICE, "c10_npu::SetDevice(device)", 107001, "Invalid device ID."),
    f"No NPUs are available\n{STAMP} ERR00009 PTA resource unavailable",
    f"Invalid device id\n{STAMP} ERR00003 PTA invalid value",
    f"invalid argument to reset_peak_memory_stats\n{STAMP} ERR00001 PTA invalid parameter",
    f"Both events must be recorded before calculating elapsed time.\n{STAMP} ERR00005 PTA internal error",
    "HCCL function error: HcclAllReduce(...), error code is 4\nERR02200 DIST call hccl",
]
# message, part of the cause, part of the remedy
OF_SEVERAL_RANKS = {
    "EI0006": (
        "EI0006: Getting socket times out. Reason: 1. The remote does not initiate a connect request.",
        "HCCL_CONNECT_TIMEOUT",
        "every rank was started",
    ),
    "EI0002": (
        "EI0002: [PID: 1] Notify register times out. Possible Cause: the remote rank has failed",
        "timed out in a collective",
        "other ranks' output",
    ),
    "EJ0001": (
        "EJ0001: Failed to initialize the HCCP process. Reason: Maybe the last training process is running.",
        "an earlier run is still alive",
        "wait ten seconds",
    ),
    "two on one device": (
        "HCCL function error: HcclCommInitRootInfo(numRanks, &id, rank, &comm), error code is 2\n"
        "ERR02200 DIST call hccl",
        "two processes use one device",
        "one process for each device",
    ),
    "two on one device, newer": (
        "create_config:../torch_npu/csrc/distributed/HCCLUtils.cpp:180 HCCL function error: "
        "hcclCommInitRootInfoConfig(numRanks, &rootInfo, rank, config, &comm), error code is 2\nERR02200 DIST",
        "two processes use one device",
        "one process for each device",
    ),
    "EJ0003": (
        "EJ0003: [PID: 7] Failed to bind the IP port. Reason: The IP address and port have been bound already.",
        "a port of the collective library is in use",
        "HCCL_IF_BASE_PORT",
    ),
    "EI0015": ("EI0015: [PID: 7] rootInfo detection timed out.", "did not find each other", "HCCL_SOCKET_IFNAME"),
    "507048": (
        acl(SYNCHRONIZE, WAIT, 507048, "The execution of the internal task times out.") + "\nEI0002: Notify register",
        "HCCL_EXEC_TIMEOUT",
        "the rank that is missing",
    ),
    "507057": (acl(SYNCHRONIZE, WAIT, 507057, "SUSPECT REMOTE ERROR"), "remote device", "other ranks' output"),
}
# Those that may be the consequence of another rank's failure.
ECHOES = {"EI0002", "507048", "507057"}
OF_THE_SET_UP = {
    "stub libraries": (
        acl(INITIALIZE, "aclInit", 100039, "The dynamic library path is the path of the compilation stub."),
        "for compilers only",
        "LD_LIBRARY_PATH",
    ),
    "no device in this thread": (acl(STREAM, CREATE, 107002, "The context is empty."), "thread", "set_device"),
    "operator compiler": (
        acl(INITIALIZE, "AclSetCompileopt(ACL_OP_COMPILER_CACHE_MODE)", 500001, "The internal ACL is incorrect."),
        "operator compiler could not start",
        "Python packages",
    ),
}


@pytest.mark.parametrize("name", OF_SEVERAL_RANKS)
def test_an_echo_is_known_as_one(name: str) -> None:
    assert classified(OF_SEVERAL_RANKS[name][0]).secondary is (name in ECHOES)


class TestFaults:
    @pytest.mark.parametrize(("code", "text", "cause"), KERNEL_FAULTS, ids=[str(code) for code, _, _ in KERNEL_FAULTS])
    def test_a_kernel_fault_is_reported_late(self, code: int, text: str, cause: str) -> None:
        failure = classified(text)
        assert failure.status == "device_fault"
        assert cause in failure.cause
        assert f"ACL {code}" in failure.cause
        assert "not the culprit" in failure.cause
        # The harness itself refuses to run with that variable set: its timings would be worthless.
        assert "ASCEND_LAUNCH_BLOCKING=1 outside the harness" in failure.remedy
        assert "ascend/log/debug/plog" in failure.remedy

    @pytest.mark.parametrize(("code", "text", "cause"), START_FAULTS, ids=[str(code) for code, _, _ in START_FAULTS])
    def test_a_device_that_does_not_start(self, code: int, text: str, cause: str) -> None:
        failure = classified(text)
        assert failure.status == "device_fault"
        assert cause in failure.cause
        assert f"ACL {code}" in failure.cause
        assert "driver's and CANN's versions" in failure.remedy
        assert "doctor npu" in failure.remedy
        assert "LAUNCH_BLOCKING" not in failure.remedy
        # Nothing was queued yet, so nothing can have been reported late.
        assert "not the culprit" not in failure.cause

    def test_an_operation_that_the_task_queue_rejected_is_named(self) -> None:
        failure = classified(
            "The Inner error is reported as above. The process exits for this inner error, and the current working "
            "operator name is aclnnMatmul.\nSince the operator is called asynchronously, the stacktrace may be "
            "inaccurate. If you want to get the accurate stacktrace, please set the environment variable "
            f"ASCEND_LAUNCH_BLOCKING=1.\n{STAMP} ERR00100 PTA call acl api failed\nEZ9999: Inner Error!"
        )
        assert failure.status == "device_fault"
        assert "aclnnMatmul" in failure.cause
        assert "not the culprit" in failure.cause

    def test_an_operation_without_a_kernel_is_named(self) -> None:
        """CANN's kernels come in a package for each chip; without it every operation fails like this."""
        failure = classified(
            f"{MATMUL} NPU function error: call aclnnMatmul failed, error code is 561103\n"
            f"{STAMP} ERR00100 PTA call acl api failed.\nEZ9999: Inner Error!"
        )
        assert failure.status == "device_fault"
        assert "aclnnMatmul" in failure.cause
        assert "561103" in failure.cause
        assert "kernels package" in failure.remedy

    def test_operands_that_an_operation_refuses_are_named(self) -> None:
        failure = classified(
            f"{MATMUL} NPU function error: call aclnnMatmul failed, error code is 161002\n"
            f"{STAMP} ERR00100 PTA call acl api failed.\n"
            "EZ1001: [PID: 7] 2026-11-23-21:26:59.000.000 tensor 0 not implemented for DT_UINT64."
        )
        assert failure.status == "device_fault"
        assert failure.cause.startswith("CANN refuses the operands of aclnnMatmul: ")
        assert "tensor 0 not implemented for DT_UINT64" in failure.cause
        assert "kernels package" not in failure.remedy

    @pytest.mark.parametrize(
        "text",
        [
            "OPS function error: HcclAllreduce, error code is 24\nERR02200 DIST call hccl",
            acl("x:y:1", "HcclAllReduce", 100000, "no")
            + "\nEL0004: Failed to allocate memory requested by HCCL module",
            "The Inner error is reported as above. The process exits for this inner error, and the current working "
            "operator name is aclnnMatmul.\nEL0004: [PID: 7] Failed to allocate memory.\nruntime result = 207001",
            acl(COPY, "aclrtMemcpy", 507899, "An internal error occurs in the Driver module.") + "\nEL0004: no memory",
            acl(SET_DEVICE, "c10_npu::SetDevice(device)", 507033, "Failed to start the device.") + "\nEL0004: none",
            "ACL stream synchronize failed.\n[Error]: driver error:out of memory",
        ],
    )
    def test_memory_that_torch_does_not_manage_can_end_too(self, text: str) -> None:
        assert classified(text).status == "oom"

    def test_an_older_message_about_memory_hides_no_fault(self) -> None:
        text = (
            acl(SYNCHRONIZE, WAIT, 507015, "The aicore execution is abnormal.") + "\nEL0004: Failed to allocate memory"
        )
        assert classified(text).status == "device_fault"

    @pytest.mark.parametrize(("code", "secondary"), [(507056, True), (507904, True), (507054, False), (107020, False)])
    def test_links_and_memories_that_fail(self, code: int, secondary: bool) -> None:
        failure = classified(acl(SYNCHRONIZE, WAIT, code, "something"))
        assert f"ACL {code}" in failure.cause
        assert failure.secondary is secondary

    @pytest.mark.parametrize("text", OTHER_FAILURES, ids=lambda text: text[:30])
    def test_every_other_failure_keeps_its_first_line(self, text: str) -> None:
        failure = classified(text)
        assert failure.status == "device_fault"
        assert failure.cause == text.splitlines()[0]
        assert "ascend/log/debug/plog" in failure.remedy

    @pytest.mark.parametrize(
        ("text", "cause", "remedy"),
        [*OF_SEVERAL_RANKS.values(), *OF_THE_SET_UP.values()],
        ids=[*OF_SEVERAL_RANKS, *OF_THE_SET_UP],
    )
    def test_failures_with_a_remedy_of_their_own(self, text: str, cause: str, remedy: str) -> None:
        failure = classified(text)
        assert failure.status == "device_fault"
        assert cause in failure.cause
        assert remedy in failure.remedy
        # Another rank caused it: no operation of this one is to blame.
        assert "LAUNCH_BLOCKING" not in failure.remedy

    def test_a_missing_kernel_without_a_code_is_known_by_its_words(self) -> None:
        failure = classified(
            "EZ9999: Inner Error!\n[OpParamInfo] Cannot find bin of op GroupedMatmul, integral key 0/1/"
        )
        assert "no kernel" in failure.cause
        assert "kernels package" in failure.remedy

    def test_the_compact_form_is_known_too(self) -> None:
        """With TORCH_NPU_COMPACT_ERROR_OUTPUT=1 neither torch-npu's nor CANN's codes are in the message."""
        failure = classified("CANN error: The vector core execution is abnormal. Solution: see the log.")
        assert failure.status == "device_fault"
        assert "The vector core execution is abnormal" in failure.cause

    def test_the_first_of_several_codes_is_enough(self) -> None:
        failure = classified(acl(COPY, "aclrtMemcpy", 507035, "x") + "\n" + acl(SYNCHRONIZE, "Sync", 107002, "y"))
        assert "vector core" in failure.cause

    def test_every_fault_code_has_a_cause(self) -> None:
        for code, cause in {**failures.LATE_FAULTS, **failures.START_FAULTS, **failures.PEER_FAULTS}.items():
            failure = classified(acl(SYNCHRONIZE, "AclrtSynchronizeDeviceWithTimeout", code, "..."))
            assert cause in failure.cause


OLD_SOURCE = "operator():build/CMakeFiles/torch_npu.dir/compiler_depend.ts:70"
ALLOCATOR = (
    "NPU out of memory. Tried to allocate 2.00 MiB (NPU 0; 64.00 GiB total capacity; 0 bytes already allocated; "
    "0 bytes current active; 64.00 GiB free; 0 bytes reserved in total by PyTorch)"
    "If reserved memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation."
)


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "text",
        [
            ALLOCATOR,
            # Releases before 2.13, a plain RuntimeError with their own prefix.
            "[Error]: NPU out of memory. Tried to allocate 20.00 MiB (NPU 0; 60.97 GiB total capacity)",
            "NPUWorkspaceAllocator tried to allocate 1073741824 bytes",
            acl(OLD_SOURCE, "aclrtMallocAlign32", 207001, "Failed to apply for memory."),
            acl(OLD_SOURCE, "aclrtMallocAlign32", 207018, "The memory on the device is exhausted."),
            # Two more codes of Huawei's table with the text of 207001.
            acl(OLD_SOURCE, "aclrtMallocAlign32", 200000, "Failed to apply for memory."),
            acl(OLD_SOURCE, "aclrtMallocAlign32", 207005, "Failed to apply for memory."),
        ],
        ids=["allocator", "old release", "workspace", "207001", "207018", "200000", "207005"],
    )
    def test_is_a_result_and_no_crash(self, text: str) -> None:
        failure = classified(text)
        assert failure.status == "oom"
        assert failure.cause == text.splitlines()[0]
        assert "workload.micro_batch_size" in failure.remedy

    def test_outranks_a_code_in_the_same_message(self) -> None:
        assert (
            classified(ALLOCATOR + f"\n{STAMP} ERR00006 PTA memory error\nEL0004: alloc memory failed").status == "oom"
        )


class TestFallback:
    @pytest.mark.parametrize(
        "text",
        [
            "The operator 'aten::linalg_lstsq.out' would execute its main computation on CPU. CPU fallback is disabled "
            "by TORCH_NPU_FALLBACK_CPU_DISABLE=1.",
            "CAUTION: The operator 'aten::_fused_adam_' is not currently supported on the NPU backend and will fall "
            "back to run on the CPU. This may have performance implications. (function _fused_adam_)",
        ],
    )
    def test_is_a_failure(self, text: str) -> None:
        failure = classified(text)
        assert failure.status == "failed"
        assert "aten::" in failure.cause
        assert "on the host instead of the NPU" in failure.cause
        assert "is not timed" in failure.remedy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0",
        "scaled_dot_product_attention(): argument 'query' (position 1) must be Tensor, not NoneType",
        "the exit code is 107001",
        "ERROR 12345",
    ],
)
def test_other_messages_are_not_from_there(text: str) -> None:
    assert classify_message(text) is None


def chained(*links: BaseException) -> BaseException:
    """Return the last of the exceptions, each raised from the one before it."""
    for cause, error in pairwise(links):
        error.__cause__ = cause
    return links[-1]


AUTOLOAD = RuntimeError(
    "Failed to load the backend extension: torch_npu. You can disable extension auto-loading with "
    "TORCH_DEVICE_BACKEND_AUTOLOAD=0."
)
NOT_FOUND = ": cannot open shared object file: No such file or directory"
IMPORT_FAILURES = {
    "no CANN": (f"libhccl.so{NOT_FOUND}", "libhccl.so", "set_env.sh"),
    "no ascendcl": (f"libascendcl.so{NOT_FOUND}", "libascendcl.so", "set_env.sh"),
    "with a version": (f"libgraph.so.1{NOT_FOUND}", "libgraph.so.1", "set_env.sh"),
    # The driver's own library, not CANN's: sourcing set_env.sh does not bring it into a container.
    "no driver library": (f"libascend_hal.so{NOT_FOUND}", "libascend_hal.so", "driver/lib64"),
    "mismatch": (
        "/x/libtorch_npu.so: undefined symbol: _ZN3c1010AutogradMeta",
        "torch and torch-npu do not match",
        "torch-npu that is made for this torch",
    ),
    "old CANN": (
        f"Failed to find function aclrtSetDeviceSatMode\n{STAMP} ERR04008 PROF resource not found",
        "aclrtSetDeviceSatMode",
        "CANN release that this torch-npu was built for",
    ),
    "old CANN at the link": (
        "/x/libtorch_npu.so: undefined symbol: aclrtCreateStreamWithConfig",
        "CANN is too old for this torch-npu (it has no aclrtCreateStreamWithConfig)",
        "CANN release that this torch-npu was built for",
    ),
    "new chip": ("Unsupported soc version: Ascend910B9Z", "Ascend910B9Z", "newer torch-npu"),
    "another directory": ("No module named 'torch_npu._C'", "another directory named torch_npu", "reinstall"),
    "another directory, autoload": (
        "module 'torch_npu' has no attribute '_autoload'",
        "another directory named torch_npu",
        "reinstall",
    ),
    "CUDA build": (
        "Two accelerators cannot be used at the same time in PyTorch: npu and cuda. You can install the cpu version",
        "another accelerator",
        "CPU build of torch",
    ),
    "no operators": (
        "ASCEND_OPP_PATH environment variable is not set. Please check whether the opp package has been installed.",
        "ASCEND_OPP_PATH",
        "set_env.sh",
    ),
}


class TestImportFailures:
    @pytest.mark.parametrize(("text", "cause", "remedy"), IMPORT_FAILURES.values(), ids=IMPORT_FAILURES)
    def test_is_explained(self, text: str, cause: str, remedy: str) -> None:
        found_cause, found_remedy = explain_import_failure(ImportError(text))
        assert cause in found_cause
        assert remedy in found_remedy
        assert "\n" not in found_cause + found_remedy

    def test_the_chain_of_causes_is_walked(self) -> None:
        error = chained(ImportError(f"libhccl.so{NOT_FOUND}"), AUTOLOAD, ImportError("plug-in failed"))
        cause, remedy = explain_import_failure(error)
        assert cause == "CANN is not on the loader's path (missing libhccl.so)"
        assert "source " in remedy

    def test_an_exception_raised_while_handling_another_is_walked_too(self) -> None:
        try:
            try:
                raise ImportError(f"libhccl.so{NOT_FOUND}")
            except ImportError:
                raise KeyError("torch_npu")  # noqa: B904 (no cause, only a context)
        except KeyError as error:
            cause, _ = explain_import_failure(error)
        assert "libhccl.so" in cause

    def test_an_unknown_failure_tells_the_innermost_words(self) -> None:
        cause, remedy = explain_import_failure(chained(ModuleNotFoundError("No module named 'yaml'"), AUTOLOAD))
        assert cause == "torch_npu cannot be imported: No module named 'yaml'"
        assert remedy

    def test_no_words_at_all(self) -> None:
        cause, remedy = explain_import_failure(ImportError())
        assert "torch_npu cannot be imported" in cause
        assert remedy

    def test_a_chain_that_bites_its_tail_ends(self) -> None:
        class Counted(ImportError):
            asked = 0

            def __str__(self) -> str:
                Counted.asked += 1
                assert Counted.asked < 100, "walked round and round"
                return "again"

        one, two = Counted(), Counted()
        one.__cause__, two.__cause__ = two, one
        assert explain_import_failure(one)[0] == "torch_npu cannot be imported: again"


def test_a_copy_that_meets_an_earlier_fault_is_a_fault_of_the_device() -> None:
    failure = classified("ACL stream synchronize failed.")
    assert failure.status == "device_fault"
    assert failure.cause.startswith("the device stopped at an operation before this one")
