"""Checks of an Ascend host before torch is imported: every problem is named with its remedy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.backends import host_checks
from harness.backends.ascend import host
from harness.backends.host_checks import Problem
from tests.conftest import PROJECT

# $ASCEND_HOME_PATH/<arch>-linux/ascend_toolkit_install.info of a CANN 8.0.0
CANN_INSTALL_INFO = """\
package_name=Ascend-cann-toolkit
version=8.0.0
innerversion=V100R001C20SPC001B251
compatible_version=[V100R001C15],[V100R001C17],[V100R001C18],[V100R001C19],[V100R001C20]
arch=aarch64
os=linux
path=/usr/local/Ascend/ascend-toolkit/8.0.0/aarch64-linux
"""
# /usr/local/Ascend/driver/version.info
DRIVER_VERSION_INFO = """\
Version=25.5.0
ascendhal_version=7.35.23
Innerversion=V100R001C23SPC005B219
"""


def only(problems: list[Problem]) -> Problem:
    [problem] = problems
    assert problem.what.strip()
    assert problem.remedy.strip()
    assert "\n" not in problem.what + problem.remedy
    return problem


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make these the only installed packages; an underscore in a keyword stands for a hyphen."""
    by_name = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(host, "installed_version", by_name.get)
    monkeypatch.setattr(host, "torch_build", dict)


class TestPackages:
    @pytest.mark.parametrize(
        ("torch", "plugin"),
        [
            ("2.13.0", "2.13.0"),
            ("2.13.0+cpu", "2.13.0"),
            ("2.10.0", "2.10.0.post4"),
            ("2.9.0+cpu", "2.9.0.post6"),
            ("2.7.1", "2.7.1.post8"),
            ("2.14.0", "2.14.0rc1"),
            ("2.14.0", "2.14.0.dev20261101"),
        ],
    )
    def test_made_for_each_other(self, torch: str, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch=torch, torch_npu=plugin)
        assert host.package_problems() == []

    @pytest.mark.parametrize(
        ("torch", "plugin"),
        [("2.13.0+cpu", "2.9.0"), ("2.9.0", "2.10.0.post4"), ("2.14.1", "2.14.0"), ("2.1.0", "2.10.0")],
    )
    def test_not_made_for_each_other(self, torch: str, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch=torch, torch_npu=plugin)
        problem = only(host.package_problems())
        base, plugin_base = torch.removesuffix("+cpu"), plugin.removesuffix(".post4")
        assert f"torch-npu {plugin} is made for torch {plugin_base}, but torch {torch} is installed" in problem.what
        assert f"pip install torch=={plugin_base}" in problem.remedy
        assert (f"torch-npu=={base}" in problem.remedy) == (base in host.PLUGINS)

    def test_a_build_for_another_accelerator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch="2.13.0", torch_npu="2.13.0")
        monkeypatch.setattr(host, "torch_build", lambda: {"version": "2.13.0+cu130", "cuda": "13.0", "hip": None})
        problem = only(host.package_problems())
        assert problem.what == "the installed torch is built for CUDA, and torch-npu needs a CPU build"
        assert problem.remedy == "install a CPU build of torch 2.13.0"

    def test_plugin_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch="2.13.0+cpu")
        problem = only(host.package_problems())
        assert problem.what == "the package torch-npu is not installed"
        assert problem.remedy == "pip install torch-npu==2.13.0"

    def test_plugin_absent_and_none_made_for_this_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch="2.14.1+cpu")
        assert only(host.package_problems()).remedy == (
            "pip install torch==2.13.0 (a CPU build) torch-npu==2.13.0; pyproject.toml allows none for torch 2.14.1+cpu"
        )

    def test_the_newest_plugin_is_that_of_the_extra(self) -> None:
        assert f'"torch-npu>=2.9,<={host.PLUGINS[-1]}"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")

    def test_torch_absent_is_reported_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch_npu="2.13.0")
        assert host.package_problems() == []

    def test_both_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch)
        assert only(host.package_problems()).what == "the package torch-npu is not installed"


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the loader's path with CANN's six libraries; the machine's own are hidden."""
    folder = tmp_path / "lib64"
    folder.mkdir()
    for name in host.REQUIRED_LIBRARIES:
        (folder / name).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{folder}:")
    monkeypatch.setattr(host, "_loader_cache", set)
    monkeypatch.setattr(host, "SET_ENV_SCRIPTS", (str(tmp_path / "cann.sh"), str(tmp_path / "toolkit.sh")))
    return folder


class TestLibraries:
    def test_all_there(self, libraries: Path) -> None:
        assert host.library_problems() == []

    def test_the_six_that_the_plugin_is_linked_against(self) -> None:
        """From the DT_NEEDED entries of libtorch_npu.so 2.13.0 and 2.14.0."""
        names = {"hccl", "ascendcl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel"}
        assert set(host.REQUIRED_LIBRARIES) == {f"lib{name}.so" for name in names}

    def test_none_there(self, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LD_LIBRARY_PATH")
        problem = only(host.library_problems())
        assert "CANN is not on the loader's path" in problem.what
        assert "libhccl.so" in problem.what
        assert "4 more" in problem.what
        assert problem.remedy.startswith("install the CANN toolkit, then: source ")

    @pytest.mark.parametrize("name", host.REQUIRED_LIBRARIES)
    def test_each_one_missing_is_named(self, name: str, libraries: Path) -> None:
        (libraries / name).unlink()
        problem = only(host.library_problems())
        assert problem.what == f"CANN on the loader's path is incomplete ({name} not found)"

    @pytest.mark.parametrize("script", ["cann.sh", "toolkit.sh"])
    def test_an_installed_cann_is_to_be_sourced(
        self, script: str, libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / script).touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", "")
        assert only(host.library_problems()).remedy == f"source {tmp_path / script}"

    def test_the_loaders_cache_counts(self, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", "")
        monkeypatch.setattr(host, "_loader_cache", lambda: set(host.REQUIRED_LIBRARIES))
        assert host.library_problems() == []

    def test_an_empty_entry_is_no_folder(self, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", "::")
        monkeypatch.chdir(libraries)
        assert not host.on_loader_path("libhccl.so")


class TestLoaderCache:
    LISTING = (
        "2 libs found in cache `/etc/ld.so.cache'\n"
        "\tlibhccl.so (libc6,x86-64) => /usr/local/Ascend/lib64/libhccl.so\n"
        "\tlibz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1\n"
    )

    def test_names_are_read_from_ldconfig(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done = subprocess.CompletedProcess([], 0, stdout=self.LISTING, stderr="")
        monkeypatch.setattr(subprocess, "run", lambda *words, **options: done)
        assert host._loader_cache() == {"libhccl.so", "libz.so.1"}

    @pytest.mark.parametrize("error", [FileNotFoundError("ldconfig"), subprocess.TimeoutExpired("ldconfig", 10)])
    def test_without_ldconfig_nothing_is_known(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(*words: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", run)
        assert host._loader_cache() == set()
        assert not host.on_loader_path("libhccl.so")


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A /dev of a host with two NPUs."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc", "null"):
        (folder / name).touch()
    return folder


class TestDeviceNodes:
    def test_all_there(self, nodes: Path) -> None:
        assert host.device_problems(nodes) == []

    def test_are_listed_by_number(self, nodes: Path) -> None:
        (nodes / "davinci10").touch()
        (nodes / "davinci2").touch()
        (nodes / "davinci0p1").touch()
        assert [path.name for path in host.device_nodes(nodes)] == ["davinci0", "davinci1", "davinci2", "davinci10"]

    @pytest.mark.parametrize("only_management", [True, False])
    def test_none_there(self, nodes: Path, only_management: bool) -> None:
        for path in nodes.glob("davinci?" if only_management else "*"):
            path.unlink()
        problem = only(host.device_problems(nodes))
        assert f"{nodes}/davinci0" in problem.what
        assert "install the Ascend driver" in problem.remedy
        for name in ("davinci0", "davinci_manager", "devmm_svm", "hisi_hdc"):
            assert f"--device /dev/{name}" in problem.remedy

    @pytest.mark.parametrize("name", ["davinci_manager", "devmm_svm", "hisi_hdc"])
    def test_a_management_node_missing(self, name: str, nodes: Path) -> None:
        (nodes / name).unlink()
        problem = only(host.device_problems(nodes))
        assert f"{nodes}/{name} is missing" in problem.what
        assert "davinci0" in problem.what
        assert problem.remedy == f"in a container pass --device /dev/{name}"

    def test_every_missing_management_node_is_to_be_passed(self, nodes: Path) -> None:
        (nodes / "devmm_svm").unlink()
        (nodes / "hisi_hdc").unlink()
        problem = only(host.device_problems(nodes))
        assert "--device /dev/devmm_svm --device /dev/hisi_hdc" in problem.remedy

    @pytest.mark.parametrize("name", ["davinci1", "davinci_manager", "hisi_hdc"])
    def test_one_that_may_not_be_opened(self, name: str, nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # The nodes are HwHiAiUser's, mode 0660. Asked through os.access, since the tests may run as root.
        real, asked = os.access, []

        def access(path: str | os.PathLike[str], mode: int) -> bool:
            asked.append(mode)
            return Path(path).name != name and real(path, mode)

        monkeypatch.setattr(os, "access", access)
        problem = only(host.device_problems(nodes))
        assert f"{nodes}/{name} may not be opened by this user (uid {os.getuid()})" in problem.what
        assert "usermod -aG HwHiAiUser" in problem.remedy
        assert "--group-add" in problem.remedy
        assert "CAP_DAC_OVERRIDE" in problem.remedy
        assert set(asked) == {os.R_OK | os.W_OK}

    @pytest.mark.skipif(os.geteuid() == 0, reason="running as root, who may open everything")
    def test_real_permissions(self, nodes: Path) -> None:
        (nodes / "davinci0").chmod(0o440)
        assert "davinci0 may not be opened" in only(host.device_problems(nodes)).what


class TestDriver:
    def test_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "libascend_hal.so").touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        assert host.driver_problems() == []

    def test_a_container_without_the_mount_is_told_which(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "on_loader_path", lambda library: False)
        problem = only(host.driver_problems(tmp_path / "lib64"))
        assert "libascend_hal.so" in problem.what
        assert f"{tmp_path}/lib64 is missing" in problem.what
        assert f"-v {tmp_path}/lib64:{tmp_path}/lib64:ro" in problem.remedy
        assert "driver/version.info" in problem.remedy

    def test_mounted_but_not_on_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "on_loader_path", lambda library: False)
        problem = only(host.driver_problems(tmp_path))
        assert "missing" not in problem.what
        assert problem.remedy.startswith(f"export LD_LIBRARY_PATH={tmp_path}/driver:{tmp_path}/common:")


class TestVariables:
    def test_none_set(self) -> None:
        assert host.variable_problems({}) == []

    @pytest.mark.parametrize("name", ["TORCH_TRANSFER_TO_NPU", "ASCEND_LAUNCH_BLOCKING"])
    @pytest.mark.parametrize(("value", "hostile"), [("1", True), ("true", True), ("0", False), ("", False)])
    def test_hostile(self, name: str, value: str, hostile: bool) -> None:
        problems = host.variable_problems({name: value})
        assert bool(problems) is hostile
        if hostile:
            problem = only(problems)
            assert problem.what.startswith(f"{name}={value} ")
            assert problem.remedy == f"unset {name}"

    def test_every_hostile_variable_is_named(self) -> None:
        problems = host.variable_problems({"TORCH_TRANSFER_TO_NPU": "1", "ASCEND_LAUNCH_BLOCKING": "1"})
        assert len(problems) == 2

    def test_two_allocator_settings(self) -> None:
        both = {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True", "PYTORCH_ALLOC_CONF": ""}
        problem = only(host.variable_problems(both))
        assert "PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set" in problem.what
        for name in both:
            assert host.variable_problems({name: "x"}) == []

    @pytest.mark.parametrize(
        ("value", "flaw"),
        [
            ("0", None),
            ("0,1", None),
            ("2,5,11", None),
            ("", "hides every device"),
            (" ", "hides every device"),
            ("1, 2,3", "contains a space, where the runtime stops reading"),
            ("0 1", "contains a space, where the runtime stops reading"),
            ("0,1 ", "contains a space, where the runtime stops reading"),
            ("1,0", "is not in ascending order, so that the runtime finds no device"),
            ("0,2,1", "is not in ascending order, so that the runtime finds no device"),
            ("0,0", "is not in ascending order, so that the runtime finds no device"),
            ("10,9", "is not in ascending order, so that the runtime finds no device"),
            ("-1", "is not a list of numbers"),
            ("0-3", "is not a list of numbers"),
            ("0,", "is not a list of numbers"),
            (",0", "is not a list of numbers"),
            ("npu0", "is not a list of numbers"),
        ],
    )
    def test_visible_devices(self, value: str, flaw: str | None) -> None:
        assert host.visible_devices_problem(value) == flaw
        problems = host.variable_problems({"ASCEND_RT_VISIBLE_DEVICES": value})
        if flaw is None:
            assert problems == []
        else:
            problem = only(problems)
            assert problem.what == f"ASCEND_RT_VISIBLE_DEVICES={value!r} {flaw}"
            assert problem.remedy.startswith("export ASCEND_RT_VISIBLE_DEVICES=0,1")

    def test_the_processs_own_are_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,0")
        assert any("ascending order" in problem.what for problem in host.variable_problems())


class TestVersions:
    @pytest.fixture
    def cann(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty CANN folder that no variable names yet."""
        monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
        monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
        folder = tmp_path / "ascend-toolkit" / "8.0.0"
        (folder / "aarch64-linux").mkdir(parents=True)
        return folder

    @pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
    def test_cann(self, variable: str, cann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (cann / "aarch64-linux" / "ascend_toolkit_install.info").write_text(CANN_INSTALL_INFO)
        monkeypatch.setenv(variable, str(cann))
        assert host.cann_version() == "8.0.0"

    def test_cann_through_the_links_of_latest(self, cann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """CANN 8's set_env.sh names ascend-toolkit/latest, a folder whose entries are links into the release's own."""
        (cann / "aarch64-linux" / "ascend_toolkit_install.info").write_text(CANN_INSTALL_INFO)
        latest = cann.parent / "latest"
        latest.mkdir()
        (latest / "aarch64-linux").symlink_to(Path("..") / "8.0.0" / "aarch64-linux")
        monkeypatch.setenv("ASCEND_HOME_PATH", str(latest))
        assert host.cann_version() == "8.0.0"

    def test_cann_as_a_link(self, cann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """CANN 9's set_env.sh names /usr/local/Ascend/cann, a link to the release's folder."""
        (cann / "aarch64-linux" / "ascend_toolkit_install.info").write_text(CANN_INSTALL_INFO)
        link = cann.parent / "cann"
        link.symlink_to(cann)
        monkeypatch.setenv("ASCEND_HOME_PATH", str(link))
        assert host.cann_version() == "8.0.0"

    def test_unknown_is_null(self, cann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert host.cann_version() is None
        monkeypatch.setenv("ASCEND_HOME_PATH", str(cann))
        assert host.cann_version() is None
        (cann / "aarch64-linux" / "ascend_toolkit_install.info").write_text("innerversion=V100R001\n")
        assert host.cann_version() is None
        monkeypatch.setenv("ASCEND_HOME_PATH", str(cann / "nowhere"))
        assert host.cann_version() is None

    def test_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "version.info"
        monkeypatch.setattr(host, "DRIVER_VERSION_FILE", file)
        assert host.driver_version() is None
        file.write_text(DRIVER_VERSION_INFO)
        assert host.driver_version() == "25.5.0"
        file.write_bytes(b"\xff\xfe\nVersion = 24.1.rc3\n")
        assert host.driver_version() == "24.1.rc3"
        file.unlink()
        file.mkdir()
        assert host.driver_version() is None


class TestInstallation:
    """CANN's libraries are on the loader's path; the environment names their installation."""

    @pytest.fixture
    def cann(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        (tmp_path / "opp").mkdir()
        (tmp_path / "ascend_toolkit_install.info").write_text("version=9.0.0\n")
        variables = {"ASCEND_HOME_PATH": str(tmp_path), "ASCEND_OPP_PATH": str(tmp_path / "opp")}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        installed(monkeypatch, torch="2.9.0", torch_npu="2.9.0.post2")
        return variables

    def test_whole(self, cann: dict[str, str]) -> None:
        assert host.installation_problems(cann) == []

    @pytest.mark.parametrize("name", ["ASCEND_HOME_PATH", "ASCEND_OPP_PATH"])
    def test_a_variable_of_set_env_is_missing(self, name: str, cann: dict[str, str]) -> None:
        del cann[name]
        problem = only(host.installation_problems(cann))
        assert f"{name} is not set" in problem.what
        assert "set_env.sh" in problem.remedy

    @pytest.mark.parametrize("name", ["ASCEND_HOME_PATH", "ASCEND_OPP_PATH"])
    def test_a_folder_is_missing(self, name: str, cann: dict[str, str]) -> None:
        cann[name] = "/nowhere"
        assert f"{name}=/nowhere is not a directory" in only(host.installation_problems(cann)).what

    @pytest.mark.parametrize(
        ("plugin", "needed"), [("2.12.0", "9.1.0"), ("2.9.0.post6", "9.1.0"), ("2.10.0.post4", "9.1.0")]
    )
    def test_too_old_for_the_plug_in(
        self, plugin: str, needed: str, cann: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed(monkeypatch, torch="2.9.0", torch_npu=plugin)
        problem = only(host.installation_problems(cann))
        assert problem.what == f"CANN 9.0.0 is too old for torch-npu {plugin}, which was made for CANN {needed}"
        assert f"install CANN {needed}" in problem.remedy

    @pytest.mark.parametrize(("plugin"), ["2.9.0", "2.9.0.post2", "2.13.0"])
    def test_new_enough_or_unknown(self, plugin: str, cann: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, torch="2.9.0", torch_npu=plugin)
        assert host.installation_problems(cann) == []

    def test_a_release_candidate_is_of_its_release(
        self, cann: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "ascend_toolkit_install.info").write_text("version=8.3.RC1\n")
        installed(monkeypatch, torch="2.9.0", torch_npu="2.9.0")
        assert "CANN 8.3.RC1 is too old" in only(host.installation_problems(cann)).what


def test_firmware_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version.info"
    monkeypatch.setattr(host, "FIRMWARE_VERSION_FILE", file)
    assert host.firmware_version() is None
    file.write_text("Version=7.8.0.5.216\npackage_version=25.5.0\n")
    assert host.firmware_version() == "7.8.0.5.216"


class TestPluginCommit:
    class Distribution:
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def locate_file(self, name: str) -> Path:
            return self.folder / name

    def test_is_read_without_importing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "torch_npu").mkdir()
        (tmp_path / "torch_npu" / "version.py").write_text("__version__ = '2.13.0'\ngit_version = 'c798c653'\n")
        monkeypatch.setattr(host_checks.metadata, "distribution", lambda name: self.Distribution(tmp_path))
        assert host.plugin_git_hash() == "c798c653"

    def test_unknown_is_null(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host_checks.metadata, "distribution", lambda name: self.Distribution(tmp_path))
        assert host.plugin_git_hash() is None
