"""Host, software and process. No torch, no device words; unknown is None."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
from harness.errors import ConfigError
from harness.text import true_name

# Variables that can change what is computed or how fast on any device; backends add their own prefixes.
COMMON_PREFIXES = (
    "TORCH",
    "PYTORCH",
    "ATEN_",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "PYTHONHASHSEED",
    "MALLOC_",
    "SLURM_JOB_ID",
)
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
# Lines of /proc/cpuinfo with a name, by architecture: x86 and LoongArch, some 32-bit Arm boards, MIPS, POWER, RISC-V.
NAME_KEYS = ("model name", "Model Name", "Hardware", "cpu model", "cpu", "uarch")
# Implementer and part of Arm cores in servers: Linux prints only these numbers. As in util-linux, lscpu-arm.c.
ARM_CORES = {
    ("0x41", "0xd03"): "Arm Cortex-A53",
    ("0x41", "0xd07"): "Arm Cortex-A57",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse N1",
    ("0x41", "0xd40"): "Arm Neoverse V1",
    ("0x41", "0xd49"): "Arm Neoverse N2",
    ("0x41", "0xd4f"): "Arm Neoverse V2",
    ("0x43", "0x0af"): "Cavium ThunderX2 99xx",
    ("0x46", "0x001"): "Fujitsu A64FX",
    ("0x48", "0xd01"): "HiSilicon TaiShan v110 (Kunpeng 920)",
    ("0x48", "0xd02"): "HiSilicon TaiShan v120",
    ("0x4e", "0x004"): "NVIDIA Carmel",
    ("0x70", "0x662"): "Phytium FTC662",
    ("0x70", "0x663"): "Phytium FTC663",
    ("0xc0", "0xac3"): "Ampere-1",
    ("0xc0", "0xac4"): "Ampere-1a",
}
# What platform.processor() returns where it knows no name.
ARCHITECTURES = ("x86_64", "i386", "i686", "amd64", "aarch64", "arm64", "arm", "ppc64le", "riscv64", "s390x")
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "tqdm", "tokenizers")


def collect(extra_prefixes: Iterable[str] = (), extra_packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return the environment part of a record."""
    return {
        "harness_version": harness.__version__,
        "git": git_state(Path(harness.__file__).resolve().parent),
        "source_sha256": source_digest(Path(harness.__file__).resolve().parent),
        "host": host_name(),
        **describe_host(),
        "packages": {name: _version(name) for name in dict.fromkeys((*PACKAGES, *extra_packages))},
        "variables": relevant_variables(extra_prefixes),
        "command": sys.orig_argv,
    }


def describe_host() -> dict[str, Any]:
    """Return the host's properties and the part of it that this process may use."""
    return {
        "os": _os_name(),
        "kernel": platform.release() or None,
        "architecture": platform.machine() or None,
        "container": container_kind(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_cores_allowed": allowed_cores(),
        "memory_total_bytes": _memory_total_bytes(),
        "memory_limit_bytes": memory_limit_bytes(),
        "python": platform.python_version(),
    }


def check_working_directory() -> None:
    """Raise ConfigError if the working directory has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the working directory does not exist any more; cd to an existing folder") from error


def host_name() -> str | None:
    """Return this host's name, or None."""
    return platform.node() or None


def relevant_variables(extra_prefixes: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment variables that can change a run; never one whose name sounds like a secret."""
    prefixes = (*COMMON_PREFIXES, *extra_prefixes)
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes) and not SECRET.search(name)
    }


def allowed_cores() -> int:
    """Return the number of cores that this process may use: the smaller of affinity mask and cgroup quota."""
    affinity = _affinity_size()
    quota = _cgroup_cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


class CpuContention:
    """Load by other processes on the cores that this one may use, over a period."""

    def __init__(self, all_own: Callable[[float], float] = lambda own: own) -> None:
        """
        Args:
            all_own: maps this process's CPU seconds to those of all processes of the run on this host.
        """
        self._all_own = all_own
        self._began, self._throttled, self._began_seconds = self._sample(), _throttled_seconds(), time.perf_counter()

    def other_fraction(self) -> float | None:
        """Return the fraction of the allowed cores' time that others used since the start; None if unknown.

        A hypervisor's steal time counts as others.
        """
        now = self._sample()
        if self._began is None or now is None:
            return None
        (wall, busy, own), (wall_then, busy_then, own_then) = now, self._began
        elapsed = (wall - wall_then) * _affinity_size()
        if elapsed <= 0:
            return None
        return min(1.0, max(0.0, ((busy - busy_then) - (own - own_then)) / elapsed))

    def throttled_fraction(self) -> float | None:
        """Return the fraction of the allowed cores' time in which a CPU quota held this cgroup's processes back since
        the start; None if unknown.
        """
        now = _throttled_seconds()
        held = max((now[group] - self._throttled[group] for group in now.keys() & self._throttled), default=None)
        elapsed = (time.perf_counter() - self._began_seconds) * _affinity_size()
        return None if held is None or elapsed <= 0 else min(1.0, max(0.0, held / elapsed))

    def _sample(self) -> tuple[float, float, float] | None:
        used = os.times()
        own = self._all_own(used.user + used.system + used.children_user + used.children_system)
        text = _read("/proc/stat")
        if text is None or not hasattr(os, "sched_getaffinity"):
            return None
        cores = os.sched_getaffinity(0)
        ticks = 0
        for number, fields in re.findall(r"^cpu(\d+) (.+)$", text, re.MULTILINE):
            if int(number) in cores:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields.split()[:8])
                ticks += user + nice + system + irq + softirq + steal
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own


class Clocks:
    """Changes of the host's clocks over a period. Step times come from the steady clock, so neither a wall clock that
    is set nor a suspended host changes them; but the dates in records and logs are then inconsistent.
    """

    def __init__(
        self,
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] | None = None,
        since_boot: Callable[[], float | None] | None = None,
    ) -> None:
        self._wall, self._steady = wall or time.time, steady or time.monotonic
        self._since_boot = since_boot or _seconds_since_boot
        self._began = self._sample()

    def to_record(self) -> dict[str, float | None]:
        """Return by how much the wall clock was set since the start, and how long the host was suspended, seconds."""
        (wall, steady, since_boot), (wall_then, steady_then, since_boot_then) = self._sample(), self._began
        elapsed, suspended = steady - steady_then, None
        if since_boot is not None and since_boot_then is not None:
            suspended = max(0.0, since_boot - since_boot_then - elapsed)
        return {
            "wall_clock_shift_seconds": wall - wall_then - elapsed - (suspended or 0.0),
            "suspended_seconds": suspended,
        }

    def _sample(self) -> tuple[float, float, float | None]:
        return self._wall(), self._steady(), self._since_boot()


def _seconds_since_boot() -> float | None:
    """Return the seconds since boot, including suspension, or None if unknown."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def _affinity_size() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name_in_cpuinfo(text: str) -> str | None:
    """Return the processor's name, or None if only numbers are printed that stand for no known core."""
    for key in NAME_KEYS:
        if (name := true_name(_cpuinfo_value(text, key))) is not None:
            return name
    return ARM_CORES.get((_cpuinfo_value(text, "CPU implementer").lower(), _cpuinfo_value(text, "CPU part").lower()))


def _cpuinfo_value(text: str, key: str) -> str:
    found = re.search(rf"^{key}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return "" if found is None else found[1].strip()


def cpu_model() -> str | None:
    """Return the processor's name, or None if unknown: never its part number or its architecture."""
    found = _name_in_cpuinfo(_read("/proc/cpuinfo") or "")
    if found is None and sys.platform == "darwin":
        found = true_name(_output("sysctl", "-n", "machdep.cpu.brand_string"))
    reported = platform.processor()
    return found or (None if reported in ARCHITECTURES else true_name(reported))


def _output(*argv: str) -> str | None:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None


def memory_limit_bytes() -> int | None:
    """Return the memory that the process may use: the host's, or its cgroup's limit if that is less."""
    limits = [_memory_total_bytes(), _cgroup_memory_limit()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def peak_resident_bytes() -> int:
    """Return this process's peak resident set, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def container_kind() -> str | None:
    """Return the kind of container that the process runs in, or None."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if Path("/.dockerenv").exists():
        return "docker"
    # podman's file is missing where the root file system is read-only; it sets a variable too, as others do.
    if Path("/run/.containerenv").exists():
        return "podman"
    if os.environ.get("container"):  # noqa: SIM112 (that is its name)
        return os.environ["container"]  # noqa: SIM112
    found = re.search(r"docker|containerd|kubepods|lxc", _read("/proc/1/cgroup") or "")
    return found.group(0) if found else None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit and whether the work tree differs from it (None in an image), or None if neither is known."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        # The image's build sets the commit; whether files were changed since is unknown.
        built_of = os.environ.get("HARNESS_COMMIT")
        return {"commit": built_of, "dirty": None} if built_of else None
    # Source and settings only: runs, notes and data in the checkout do not matter.
    status = _git(folder, "status", "--porcelain", "--", ".", ":/configs")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def source_digest(package: Path) -> str:
    """Return a digest of a package's Python files: an installed one and an image know no commit, or were edited."""
    digest = hashlib.sha256()
    # An editor may leave a dangling link.
    for path in sorted(filter(Path.is_file, package.rglob("*.py"))):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _os_name() -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release") or "", re.MULTILINE)
    return found.group(1) if found else platform.platform() or None


def _memory_total_bytes() -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _cgroup_cpu_quota() -> float | None:
    """Return the least quota of CPUs in the process's own cgroup and those above it, or None."""
    quotas = []
    for folder in _cgroups("cpu"):
        both = (_read(f"{folder}/cpu.max") or "").split()
        if not both:
            both = [(_read(f"{folder}/cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")]
        # Without a limit the quota is "max", in version 1 -1.
        if len(both) == 2 and all(text.isdigit() and int(text) for text in both):
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def _throttled_seconds() -> dict[str, float]:
    """Return for how long a CPU quota held back the own cgroup, and those above it, summed over the cores."""
    found = {}
    for folder in _cgroups("cpu"):
        # Version 2 counts in microseconds, version 1 in nanoseconds.
        units = {"throttled_usec": 1e-6, "throttled_time": 1e-9}
        for line in (_read(f"{folder}/cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name in units and value.isdigit():
                found[folder] = int(value) * units[name]
    return found


def _cgroup_memory_limit() -> int | None:
    """Return the least memory limit of the process's own cgroup and those above it, or None."""
    limits = []
    for folder in _cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = (_read(f"{folder}/{name}") or "").strip()
            # Version 1 writes "no limit" as a number near 2**63.
            if text.isdigit() and int(text) < 2**60:
                limits.append(int(text))
    return min(limits, default=None)


def _cgroups(controller: str) -> list[str]:
    """Return the folders of the process's own cgroup and of those above it that this host or container shows.

    Of both versions, since a host may have mounted version 1 for some controllers and version 2 for others.
    """
    paths: dict[str, str] = {}
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(",") if number != "0" else [""]:
            paths[name] = path
    # Where they are mounted on almost every host.
    mounts = {"": ("/", "/sys/fs/cgroup"), controller: ("/", f"/sys/fs/cgroup/{controller}")}
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            mounts[""] = (root, mount)
        elif kind == "cgroup" and controller in options.split(","):
            mounts[controller] = (root, mount)
    folders = []
    for name, (root, mount) in mounts.items():
        # A container sees a part of the tree, and the paths of those outside it start with "/..".
        inside = os.path.relpath(paths.get(name, root), root)
        own = [] if inside.startswith("..") else [part for part in inside.split("/") if part != "."]
        folders += ["/".join([mount, *own[:depth]]) for depth in range(len(own), -1, -1)]
    return folders


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
