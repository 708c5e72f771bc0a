"""Checks of a host for torch-npu: files, packages, permissions and variables. No torch, no CANN call."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.backends.host_checks import Problem, installed_version, torch_build, unsafe_env_vars, version_file

# Libraries that libtorch_npu.so is linked against: without any one of them its import fails.
REQUIRED_LIBRARIES = (
    "libhccl.so",
    "libascendcl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
)
SET_ENV_SCRIPTS = ("/usr/local/Ascend/cann/set_env.sh", "/usr/local/Ascend/ascend-toolkit/set_env.sh")
DEVICE_FOLDER = Path("/dev")
MANAGEMENT_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")
# Opened by name when the runtime starts, so nothing is linked against it.
DRIVER_LIBRARY = "libascend_hal.so"
DRIVER_LIBRARIES = Path("/usr/local/Ascend/driver/lib64")
DRIVER_VERSION_FILE = Path("/usr/local/Ascend/driver/version.info")
VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"
FIRMWARE_VERSION_FILE = Path("/usr/local/Ascend/firmware/version.info")

# Variables that would falsify a run: their safe values, and the effect of all others.
UNSAFE_ENV_VARS = {
    "TORCH_TRANSFER_TO_NPU": (
        ("", "0"),
        "redirects other devices' calls to the NPU, so records could name the wrong one",
    ),
    "ASCEND_LAUNCH_BLOCKING": (("", "0"), "makes every launch wait for the device, so timings are worthless"),
    "PYTORCH_NO_NPU_MEMORY_CACHING": (("",), "sends every allocation to the driver, so timings are worthless"),
    "INF_NAN_MODE_FORCE_DISABLE": (
        ("", "0"),
        "makes overflows saturate instead of becoming infinite, which hides them",
    ),
    "INF_NAN_MODE_ENABLE": (("", "1"), "makes overflows saturate instead of becoming infinite, which hides them"),
    "TORCH_NPU_DISABLED_WARNING": (("", "0"), "hides the warning that an operation runs on the host"),
    "TORCH_NPU_WARNING_DISABLE": (("", "0"), "hides the warning that an operation runs on the host"),
    "NPU_ASD_ENABLE": (("", "0"), "checks gradients for silent corruption while they are timed"),
    "OOM_SNAPSHOT_ENABLE": (("", "0"), "records every allocation, which takes time"),
    "ASCEND_GLOBAL_LOG_LEVEL": (("", "2", "3", "4"), "makes CANN write a log line for every call, which takes time"),
}

# Releases of torch-npu that pyproject.toml allows, each for the torch of the same version.
PLUGINS = ("2.9.0", "2.10.0", "2.11.0", "2.12.0", "2.13.0")
# CANN release by torch-npu release (Ascend/pytorch, COMPATIBILITY.en.md of 2026-08). An older CANN lacks functions.
# Releases outside the table are not checked.
CANN_FOR_PLUGIN = {
    "2.12.0": "9.1.0",
    "2.11.0": "9.1.0",
    "2.10.0.post4": "9.1.0",
    "2.9.0.post6": "9.1.0",
    "2.9.0.post2": "9.0.0",
    "2.9.0": "8.5.0",
}


def disables_cpu_fallback() -> bool | None:
    """Return whether operations without a kernel fail; None for releases of torch-npu that may not have the switch."""
    release = _base_version(installed_version("torch-npu") or "0").split(".")
    known = [int(part) for part in release[:2] if part.isdigit()] >= [2, 13]
    return os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1" if known else None


def _plugin_for(torch: str | None) -> str:
    """Return the command that installs torch-npu beside a torch, or with another one if there is none for it."""
    if torch is None or _base_version(torch) in PLUGINS:
        return f"pip install torch-npu=={_base_version(torch) if torch else '<the version of torch>'}"
    newest = PLUGINS[-1]
    return (
        f"pip install torch=={newest} (a CPU build) torch-npu=={newest}; pyproject.toml allows none for torch {torch}"
    )


def package_problems() -> list[Problem]:
    """Return the problems of the torch and torch-npu packages: absent, or of different versions."""
    torch, plugin = installed_version("torch"), installed_version("torch-npu")
    if plugin is None:
        return [Problem("the package torch-npu is not installed", _plugin_for(torch))]
    if torch is not None and _base_version(torch) != _base_version(plugin):
        return [
            Problem(
                f"torch-npu {plugin} is made for torch {_base_version(plugin)}, but torch {torch} is installed",
                f"pip install torch=={_base_version(plugin)} (a CPU build)"
                + (f", or torch-npu=={_base_version(torch)}" if _base_version(torch) in PLUGINS else ""),
            )
        ]
    build = torch_build()
    if platform := next((name for name in ("cuda", "hip", "xpu") if build.get(name)), None):
        return [
            Problem(
                f"the installed torch is built for {platform.upper()}, and torch-npu needs a CPU build",
                f"install a CPU build of torch {_base_version(plugin)}",
            )
        ]
    return []


def library_problems() -> list[Problem]:
    """Return the problem that CANN's libraries are not on the loader's path, if so."""
    missing = [name for name in REQUIRED_LIBRARIES if not on_loader_path(name)]
    if not missing:
        return []
    script = next((path for path in SET_ENV_SCRIPTS if Path(path).is_file()), None)
    if len(missing) == len(REQUIRED_LIBRARIES):
        what = f"CANN is not on the loader's path ({', '.join(missing[:2])} and {len(missing) - 2} more not found)"
    else:
        what = f"CANN on the loader's path is incomplete ({', '.join(missing)} not found)"
    remedy = f"source {script}" if script else f"install the CANN toolkit, then: source {SET_ENV_SCRIPTS[0]}"
    return [Problem(what, remedy)]


def installation_problems(variables: Mapping[str, str] = os.environ) -> list[Problem]:
    """Return the problems of the CANN installation that the environment names, its version included.

    Called only if CANN's libraries were found: either its `set_env.sh` has run, or the user set a part of it by hand.
    """
    script = next((path for path in SET_ENV_SCRIPTS if Path(path).is_file()), SET_ENV_SCRIPTS[0])
    for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH"):
        value = variables.get(name)
        if not value:
            return [Problem(f"{name} is not set, though CANN is on the loader's path", f"source {script}")]
        if not Path(value).is_dir():
            return [Problem(f"{name}={value} is not a directory", f"source {script}, or correct {name}")]
    plugin, cann = installed_version("torch-npu"), cann_version()
    needed = CANN_FOR_PLUGIN.get(plugin or "")
    if needed and cann and _release(cann) < _release(needed):
        return [
            Problem(
                f"CANN {cann} is too old for torch-npu {plugin}, which was made for CANN {needed}",
                f"install CANN {needed}, or the torch-npu that belongs to CANN {cann}",
            )
        ]
    return []


def device_problems(folder: Path | None = None) -> list[Problem]:
    """Return the problems of the device nodes: absent, or closed to this user."""
    folder = folder or DEVICE_FOLDER
    devices = device_nodes(folder)
    if not devices:
        return [
            Problem(
                f"no Ascend device node ({folder}/davinci0 and so on)",
                "install the Ascend driver; in a container pass --device /dev/davinci0 --device /dev/davinci_manager "
                "--device /dev/devmm_svm --device /dev/hisi_hdc",
            )
        ]
    absent = [name for name in MANAGEMENT_NODES if not (folder / name).exists()]
    if absent:
        flags = " ".join(f"--device /dev/{name}" for name in absent)
        return [Problem(f"{folder}/{absent[0]} is missing beside {devices[0]}", f"in a container pass {flags}")]
    nodes = [*devices, *(folder / name for name in MANAGEMENT_NODES)]
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        return [
            Problem(
                f"{closed[0]} may not be opened by this user (uid {os.getuid()})",
                "sudo usermod -aG HwHiAiUser $USER and log in again; in a container --group-add the group's number, "
                "and keep CAP_DAC_OVERRIDE if running as root",
            )
        ]
    return []


def driver_problems(folder: Path | None = None) -> list[Problem]:
    """Return the problem that the driver's library cannot be found, if so. A container most likely lacks the mount."""
    folder = folder or DRIVER_LIBRARIES
    if on_loader_path(DRIVER_LIBRARY):
        return []
    if folder.is_dir():
        paths = ":".join(f"{folder}/{part}" for part in ("driver", "common"))
        return [
            Problem(
                f"the driver's {DRIVER_LIBRARY} is not on the loader's path",
                f"export LD_LIBRARY_PATH={paths}:{folder}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}",
            )
        ]
    return [
        Problem(
            f"the driver's {DRIVER_LIBRARY} is not on the loader's path, and {folder} is missing",
            f"install the Ascend driver; in a container pass -v {folder}:{folder}:ro and, for its version, "
            f"-v {DRIVER_VERSION_FILE}:{DRIVER_VERSION_FILE}:ro",
        )
    ]


def variable_problems(variables: Mapping[str, str] = os.environ) -> list[Problem]:
    """Return a problem for every environment variable that is malformed or would falsify a run."""
    problems = unsafe_env_vars(UNSAFE_ENV_VARS, variables)
    visible = variables.get(VISIBLE_DEVICES)
    if visible is not None:
        flaw = visible_devices_problem(visible)
        if flaw:
            remedy = f"export {VISIBLE_DEVICES}=0,1 (ascending, no spaces)"
            problems.append(Problem(f"{VISIBLE_DEVICES}={visible!r} {flaw}", remedy))
    if "PYTORCH_NPU_ALLOC_CONF" in variables and "PYTORCH_ALLOC_CONF" in variables:
        problems.append(Problem("PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set", "unset one of the two"))
    return problems


def visible_devices_problem(value: str) -> str | None:
    """Return the flaw in a list of visible devices that the runtime would misread, or None.

    The runtime stops at a space, and finds no device in a descending list, both without a message.
    """
    if not value.strip():
        return "hides every device"
    if re.search(r"\s", value):
        return "contains a space, where the runtime stops reading"
    if not re.fullmatch(r"\d+(,\d+)*", value):
        return "is not a list of numbers"
    numbers = [int(part) for part in value.split(",")]
    if numbers != sorted(set(numbers)):
        return "is not in ascending order, so that the runtime finds no device"
    return None


def device_nodes(folder: Path) -> list[Path]:
    """Return the device nodes of the NPUs, in the order of their numbers."""
    found = [path for path in folder.glob("davinci*") if re.fullmatch(r"davinci\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("davinci")))


def on_loader_path(library: str) -> bool:
    """Return whether the dynamic loader would find a library, without loading it."""
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    if any((Path(folder) / library).exists() for folder in (*folders, "/usr/lib", "/usr/lib64", "/lib")):
        return True
    return library in _loader_cache()


def cann_version() -> str | None:
    """Return CANN's version from its install file, or None."""
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if not home:
        return None
    # CANN 8's `latest` is a folder of links, which ** does not follow; the file lies one folder below.
    files: Iterable[Path] = sorted(
        {*Path(home).glob("**/ascend_*_install.info"), *Path(home).glob("*/ascend_*_install.info")}
    )
    return next((found for file in files if (found := _field(file, "version"))), None)


def driver_version() -> str | None:
    """Return the Ascend driver's version from its file, or None."""
    return _field(DRIVER_VERSION_FILE, "Version")


def firmware_version() -> str | None:
    """Return the Ascend firmware's version from its file, or None."""
    return _field(FIRMWARE_VERSION_FILE, "Version")


def plugin_git_hash() -> str | None:
    """Return the commit that the installed torch-npu was built from, read without importing it, or None."""
    return version_file("torch-npu", "torch_npu/version.py").get("git_version")


def _release(version: str) -> tuple[int, ...]:
    """Return (8, 3) for 8.3.RC1 and (9, 1) for 9.1.0: the part that decides which functions exist."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _field(file: Path, key: str) -> str | None:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{key}\s*=\s*(\S+)", text, re.MULTILINE)
    return found.group(1) if found else None


def _base_version(version: str) -> str:
    """Return 2.10.0 for 2.10.0.post4 and 2.13.0 for 2.13.0+cpu: post releases differ in CANN, not in torch."""
    return re.split(r"\+|\.post|rc|\.dev", version)[0]


def _loader_cache() -> set[str]:
    for command in ("ldconfig", "/sbin/ldconfig"):
        try:
            done = subprocess.run([command, "-p"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return set(re.findall(r"^\s*(\S+) \(", done.stdout, re.MULTILINE))
    return set()
