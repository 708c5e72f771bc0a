"""Build of the emulated CANN: a folder like an installation of it, for the installed torch and torch-npu.

It needs g++ only. A build is cached by the hash of its inputs: the sources, torch, torch-npu, the compiler.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from harness.backends.ascend.host import package_problems
from tests.cann_emulator.symbols import cann_names, stubs_source

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
# These files include torch's headers, which take ten times as long to compile as the code. So they are compiled as one
# unit for each core, and not file by file.
HEAVY_SOURCES = SOURCES / "kernels"
PROJECT = HERE.parent.parent
# Folder of the builds, unless CANN_EMULATOR_BUILDS names another.
BUILDS = PROJECT / "build" / "cann_emulator"
VERSION = "9.1.0"

MAIN_LIBRARY = "libascendcl.so"
# Other libraries that torch-npu links against or opens: empty ones that depend on the main one.
OTHER_LIBRARIES = (
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libopapi.so",
    "libnnopbase.so",
    "libascend_hal.so",
    "libhcomm.so",
    "libmsprofiler.so",
    "libcust_opapi.so",
)


class CannotBuild(Exception):
    """Compilation failed: a bug of the emulator, or an incompatible torch-npu."""


class Missing(CannotBuild):
    """A prerequisite is missing. The message fits behind "skipped:"."""


def missing() -> str | None:
    """Return the first missing prerequisite, or None."""
    if shutil.which(_compiler()) is None:
        return f"no C++ compiler ({_compiler()} is not on the PATH)"
    for package in ("torch", "torch-npu"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"the package {package} is not installed"
    problems = package_problems()
    return problems[0].what if problems else None


def build() -> Path:
    """Return the folder of the emulated CANN, which holds `set_env.sh`, `lib64` and more. Build it if necessary.

    Raises:
        Missing: there is no compiler, or no torch-npu.
        CannotBuild: compilation failed.
    """
    lack = missing()
    if lack is not None:
        raise Missing(lack)
    folder = Path(os.environ.get("CANN_EMULATOR_BUILDS", BUILDS)) / _fingerprint()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Test processes start together: one builds, the others wait. The kernel ends the lock of a process that is killed.
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "set_env.sh").is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / "cann"
                _compile(Path(scratch), made / "lib64")
                _lay_out(made, folder)
                made.rename(folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that `set_env.sh` of a build sets."""
    return {
        "ASCEND_HOME_PATH": str(folder),
        "ASCEND_OPP_PATH": str(folder / "opp"),
        "LD_LIBRARY_PATH": ":".join(filter(None, (str(folder / "lib64"), os.environ.get("LD_LIBRARY_PATH")))),
    }


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _package_folder(package: str, module: str) -> Path:
    # Located without an import: importing torch_npu needs the build.
    return Path(str(metadata.distribution(package).locate_file(module)))


def _wheel_libraries() -> list[Path]:
    folder = _package_folder("torch-npu", "torch_npu")
    return sorted({*folder.glob("*.so"), *(folder / "lib").glob("*.so")})


def _source_files() -> list[Path]:
    return sorted(SOURCES.rglob("*.cpp"))


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for file in (*_source_files(), *sorted(SOURCES.rglob("*.h")), HERE / "build.py", HERE / "symbols.py"):
        digest.update(file.name.encode() + file.read_bytes())
    version = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    # The libraries link against torch's own by path.
    torch = _package_folder("torch", "torch")
    for part in (metadata.version("torch"), metadata.version("torch-npu"), str(torch), version):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-3000:]}")


def _compile(scratch: Path, libraries: Path) -> None:
    torch = _package_folder("torch", "torch")
    flags = [
        "-std=c++20", "-O1", "-fPIC", "-w", "-D_GLIBCXX_USE_CXX11_ABI=1",
        "-isystem", f"{torch}/include", "-isystem", f"{torch}/include/torch/csrc/api/include",
    ]  # fmt: skip
    compiler = _compiler()
    stubs = scratch / "stubs.c"
    stubs.write_text(stubs_source(cann_names(_wheel_libraries())), encoding="utf-8")
    cores = len(os.sched_getaffinity(0))
    jobs = {}
    for unit in (*_units(scratch, cores), *sorted(SOURCES.glob("*.cpp"))):
        jobs[scratch / f"{unit.stem}.o"] = [compiler, *flags, f"-I{SOURCES}", "-c", str(unit)]
    jobs[scratch / "stubs.o"] = [compiler, "-x", "c", "-c", "-w", "-O0", "-fPIC", str(stubs)]
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda job: _run([*job[1], "-o", str(job[0])]), jobs.items()))
    libraries.mkdir(parents=True)
    main = libraries / MAIN_LIBRARY
    link = [compiler, "-shared", f"-Wl,-soname,{MAIN_LIBRARY}", "-o", str(main), *map(str, jobs)]
    _run([*link, f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-ltorch_cpu", "-lc10", "-lpthread", "-lrt"])
    empty = scratch / "empty.c"
    empty.write_text("", encoding="utf-8")
    for name in OTHER_LIBRARIES:
        _run([
            compiler, "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{name}", "-o", str(libraries / name),
            "-x", "c", str(empty), "-x", "none", f"-L{libraries}", "-lascendcl", "-Wl,-rpath,$ORIGIN",
            "-Wl,--allow-shlib-undefined",
        ])  # fmt: skip


def _units(scratch: Path, count: int) -> list[Path]:
    """Return `count` files that include the heavy sources, of about the same length."""
    shares: list[list[Path]] = [[] for _ in range(count)]
    for file in sorted(HEAVY_SOURCES.glob("*.cpp"), key=lambda file: file.stat().st_size, reverse=True):
        min(shares, key=lambda share: sum(other.stat().st_size for other in share)).append(file)
    units = []
    for number, share in enumerate(filter(None, shares), 1):
        units.append(scratch / f"unit_{number}.cpp")
        units[-1].write_text("".join(f'#include "{file}"\n' for file in share), encoding="utf-8")
    return units


def _lay_out(made: Path, final: Path) -> None:
    """Add the files of a CANN installation that torch-npu and the harness read."""
    for name in ("opp", "runtime", "compiler"):
        (made / name).mkdir()
    install_info = f"package_name=Ascend-cann-toolkit\nversion={VERSION}-emulated\narch=x86_64\n"
    (made / "ascend_toolkit_install.info").write_text(install_info, encoding="utf-8")
    script = f"""\
# The emulated CANN of the training harness's tests: for functional tests on a CPU, never for speed.
export ASCEND_HOME_PATH='{final}'
export ASCEND_OPP_PATH='{final}/opp'
export LD_LIBRARY_PATH='{final}/lib64'"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
"""
    (made / "set_env.sh").write_text(script, encoding="utf-8")
