"""Facts about the host: unknown is None, limits of the container count, and no secret gets into a record."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness import environment


def fake_files(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(environment, "_read", files.get)


class TestCores:
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, 8),
            ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
            ({"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
            ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
            ({"/sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),
            ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
            ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ],
    )
    def test_the_lesser_of_affinity_and_quota(
        self, files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_files(monkeypatch, files)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
        assert environment.allowed_cores() == expected


class TestMemory:
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, None),
            ({"/proc/meminfo": "MemTotal:  1024 kB\n"}, 1 << 20),
            ({"/proc/meminfo": "MemTotal:  1024 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}, 1 << 20),
            ({"/proc/meminfo": "MemTotal:  1024 kB\n", "/sys/fs/cgroup/memory.max": "4096\n"}, 4096),
            ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ],
    )
    def test_the_lesser_of_host_and_container(
        self, files: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_files(monkeypatch, files)
        assert environment.memory_limit_bytes() == expected


V2 = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "36 31 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "42 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
CPU_V1 = "/sys/fs/cgroup/cpu,cpuacct"


class TestOwnCgroup:
    """Of 8 cores and 1024 kB: the limits of the process's own cgroup and of all above it count."""

    @pytest.mark.parametrize(
        ("mounts", "cgroup", "files", "cores", "memory"),
        [
            # A systemd unit with CPUQuota=100% and MemoryMax=.
            (V2, "0::/system.slice/run.service\n",
             {"/sys/fs/cgroup/system.slice/run.service/cpu.max": "100000 100000\n",
              "/sys/fs/cgroup/system.slice/run.service/memory.max": "4096\n"}, 1, 4096),
            # The limit is of a cgroup above: Slurm's job above its step and task.
            (V2, "0::/slurm/job_1/step_0/task_0\n",
             {"/sys/fs/cgroup/slurm/job_1/cpu.max": "300000 100000\n",
              "/sys/fs/cgroup/slurm/job_1/step_0/task_0/cpu.max": "max 100000\n",
              "/sys/fs/cgroup/slurm/job_1/step_0/memory.max": "max\n",
              "/sys/fs/cgroup/slurm/job_1/memory.max": "8192\n"}, 3, 8192),
            # The least of both, wherever it is.
            (V2, "0::/a/b\n",
             {"/sys/fs/cgroup/a/cpu.max": "200000 100000", "/sys/fs/cgroup/a/b/cpu.max": "500000 100000",
              "/sys/fs/cgroup/a/memory.max": "8192", "/sys/fs/cgroup/a/b/memory.max": "4096"}, 2, 4096),
            # A container with a namespace of its own is the root of what it sees.
            (V2, "0::/\n",
             {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": "4096"}, 1, 4096),
            # One without sees its cgroup mounted as the root, by its path on the host.
            (V2.replace(" / ", " /docker/1f ", 1), "0::/docker/1f\n",
             {"/sys/fs/cgroup/cpu.max": "200000 100000", "/sys/fs/cgroup/memory.max": "4096"}, 2, 4096),
            # One that entered another's namespace stands outside of it.
            (V2, "0::/../other\n", {"/sys/fs/cgroup/cpu.max": "200000 100000"}, 2, 1 << 20),
            # Mounted elsewhere.
            (V2.replace("/sys/fs/cgroup", "/cgroup2"), "0::/a\n",
             {"/cgroup2/a/cpu.max": "100000 100000", "/cgroup2/a/memory.max": "4096"}, 1, 4096),
            (V1, "3:cpu,cpuacct:/job\n4:memory:/job/step\n",
             {f"{CPU_V1}/job/cpu.cfs_quota_us": "200000\n", f"{CPU_V1}/job/cpu.cfs_period_us": "100000\n",
              f"{CPU_V1}/cpu.cfs_quota_us": "-1\n", f"{CPU_V1}/cpu.cfs_period_us": "100000\n",
              "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4096\n",
              "/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes": "9223372036854771712\n"}, 2, 4096),
            # Version 1 for these controllers, version 2 for none.
            (HYBRID, "3:cpu,cpuacct:/job\n4:memory:/job\n0::/elsewhere\n",
             {f"{CPU_V1}/job/cpu.cfs_quota_us": "100000", f"{CPU_V1}/job/cpu.cfs_period_us": "100000",
              "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4096"}, 1, 4096),
            # No limit, and files of another form.
            (V2, "0::/a\n", {"/sys/fs/cgroup/a/cpu.max": "max\n", "/sys/fs/cgroup/a/memory.max": "?\n"}, 8, 1 << 20),
            (V2, "0::/a\n", {"/sys/fs/cgroup/a/cpu.max": "0 0\n", "/sys/fs/cgroup/a/memory.max": ""}, 8, 1 << 20),
        ],
    )  # fmt: skip
    def test_limits(
        self, mounts: str, cgroup: str, files: dict[str, str], cores: int, memory: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = {"/proc/meminfo": "MemTotal:  1024 kB\n", "/proc/self/mountinfo": mounts, "/proc/self/cgroup": cgroup}
        fake_files(monkeypatch, {**host, **files})
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
        assert environment.allowed_cores() == cores
        assert environment.memory_limit_bytes() == memory


class TestCpuModel:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("processor\t: 0\nmodel name\t: AMD EPYC 9654\n", "AMD EPYC 9654"),
            (
                "CPU implementer\t: 0x48\nCPU variant\t: 0x1\nCPU part\t: 0xd01\n",
                "HiSilicon TaiShan v110 (Kunpeng 920)",
            ),
            ("CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n", "Arm Neoverse V2"),
            # A Jetson's model name is an architecture.
            ("model name : ARMv8 Processor rev 0 (v8l)\nCPU implementer : 0x4e\nCPU part : 0x004\n", "NVIDIA Carmel"),
            ("CPU implementer\t: 0x70\nCPU part\t: 0x663\n", "Phytium FTC663"),
            ("processor : 0\ncpu\t\t: POWER9, altivec supported\n", "POWER9, altivec supported"),
            ("hart : 0\nisa : rv64imafdc\nuarch : sifive,u74-mc\n", "sifive,u74-mc"),
            ("system type : x\ncpu model : ICT Loongson-3 V0.13\n", "ICT Loongson-3 V0.13"),
            # An emulator's model name is a word for none, and the board's name is one.
            ("model name\t: unknown\nHardware\t: BCM2835\n", "BCM2835"),
        ],
    )
    def test_is_read_from_cpuinfo(self, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_files(monkeypatch, {"/proc/cpuinfo": text})
        assert environment.cpu_model() == expected

    @pytest.mark.parametrize(
        "text",
        ["", "processor\t: 0\nCPU part\t: 0xd01\n", "CPU implementer : 0x48\nCPU part : 0xfff\n", "model name : 0x1\n",
         "model name\t:\nprocessor : 0\n", "model name : unknown\n", "Hardware : (null)\n",
         "cpu family : 6\nmodel : 85\n", "model name : To be filled by O.E.M.\n"],
    )  # fmt: skip
    @pytest.mark.parametrize("architecture", ["", "aarch64", "x86_64"])
    def test_is_unknown_rather_than_a_number(
        self, text: str, architecture: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_files(monkeypatch, {"/proc/cpuinfo": text})
        monkeypatch.setattr("platform.processor", lambda: architecture)
        assert environment.cpu_model() is None

    def test_a_mac_s_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_files(monkeypatch, {})
        monkeypatch.setattr("platform.processor", lambda: "arm")
        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.setattr(environment, "_output", lambda *argv: "Apple M2 Ultra\n")
        assert environment.cpu_model() == "Apple M2 Ultra"


class TestVariables:
    def test_relevant_ones_and_the_backends_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("TORCH_LOGS", "LD_PRELOAD", "ABC_MODE", "UNRELATED"):
            monkeypatch.setenv(name, "x")
        found = environment.relevant_variables(("ABC_",))
        assert {"TORCH_LOGS", "LD_PRELOAD", "ABC_MODE"} <= found.keys()
        assert "UNRELATED" not in found

    @pytest.mark.parametrize(
        "name", ["TORCH_HUB_TOKEN", "PYTORCH_API_KEY", "TORCH_PASSWORD", "TORCH_ACCESSKEY", "torch_secret"]
    )
    def test_nothing_that_sounds_like_a_secret(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "hunter2")
        assert "hunter2" not in json.dumps(environment.relevant_variables(("torch",)))


class TestGit:
    def test_commit_and_dirtiness(self, tmp_path: Path) -> None:
        def git(*words: str) -> None:
            subprocess.run(
                ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                check=True,
                capture_output=True,
            )

        git("init")
        (tmp_path / "a").write_text("1")
        git("add", "a")
        git("commit", "-m", "first")
        state = environment.git_state(tmp_path)
        assert state is not None
        assert len(state["commit"]) == 40
        assert state["dirty"] is False
        (tmp_path / "a").write_text("2")
        assert environment.git_state(tmp_path) == {**state, "dirty": True}

    def test_files_beside_the_source_are_no_change_of_it(self, tmp_path: Path) -> None:
        def git(*words: str) -> None:
            identity = ("-c", "user.name=a", "-c", "user.email=a@b")
            subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

        source = tmp_path / "harness"
        source.mkdir()
        (source / "a.py").write_text("1")
        git("init")
        git("add", ".")
        git("commit", "-m", "first")

        def dirty() -> bool:
            state = environment.git_state(source)
            assert state is not None
            return state["dirty"]

        (tmp_path / "my-run").mkdir()
        (tmp_path / "my-run" / "record.json").write_text("{}")
        assert dirty() is False
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "new.yaml").write_text("a: 1")
        assert dirty() is True
        (tmp_path / "configs" / "new.yaml").unlink()
        (source / "b.py").write_text("new, and not known to git")
        assert dirty() is True

    def test_none_outside_a_checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert environment.git_state(tmp_path) is None

    def test_none_without_git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert environment.git_state(tmp_path) is None

    def test_an_image_says_what_it_was_built_of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.setenv("HARNESS_COMMIT", "abc123")
        assert environment.git_state(tmp_path) == {"commit": "abc123", "dirty": None}


class TestContainer:
    def test_an_engine_says_so_in_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setattr(Path, "exists", lambda path: False)
        monkeypatch.setenv("container", "podman")
        assert environment.container_kind() == "podman"

    def test_kubernetes_says_so_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert environment.container_kind() == "kubernetes"


def test_whole_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.collect(("ABC_",), ("no-such-package",))
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["no-such-package"] is None
    assert found["packages"]["torch"]
    assert found["cpu_cores_allowed"] >= 1


class TestContention:
    """Ticks of 10 ms: user nice system idle iowait irq softirq steal."""

    def busy(
        self, monkeypatch: pytest.MonkeyPatch, before: str, after: str, *, own: float, wall: float
    ) -> float | None:
        samples = iter([before, after])
        monkeypatch.setattr(environment, "_read", lambda path: next(samples) if path == "/proc/stat" else None)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2})
        monkeypatch.setattr("os.sysconf", lambda _: 100)
        times = iter([os.times_result((0.0, 0.0, 0.0, 0.0, 0.0)), os.times_result((own, 0.0, 0.0, 0.0, 0.0))])
        monkeypatch.setattr("os.times", lambda: next(times))
        clock = iter([0.0, wall])
        monkeypatch.setattr("time.monotonic", lambda: next(clock))
        return environment.CpuContention().other_fraction()

    def test_what_others_and_the_hypervisor_took_of_the_allowed_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = "cpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0\n"
        # In 10 s: 6 s of user time and 1 s stolen on core 0, 4 s on core 2, and core 1, which is not ours, busy.
        after = "cpu0 600 0 0 300 0 0 0 100\ncpu1 1000 0 0 0 0 0 0 0\ncpu2 0 0 400 600 0 0 0 0 0 0\n"
        assert self.busy(monkeypatch, before, after, own=7.0, wall=10.0) == pytest.approx((11 - 7) / 20)

    def test_never_below_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        line = "cpu0 {} 0 0 0 0 0 0 0\n"
        assert self.busy(monkeypatch, line.format(0), line.format(100), own=1.1, wall=10.0) == 0.0

    def test_unknown_where_the_system_does_not_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_files(monkeypatch, {})
        assert environment.CpuContention().other_fraction() is None
        assert environment.CpuContention().throttled_fraction() is None

    @pytest.mark.parametrize(
        ("file", "line"),
        [
            ("/sys/fs/cgroup/cpu.stat", "usage_usec 9\nnr_throttled 3\nthrottled_usec {}000000\n"),
            ("/sys/fs/cgroup/cpu/cpu.stat", "nr_periods 9\nnr_throttled 3\nthrottled_time {}000000000\n"),
        ],
        ids=["version 2", "version 1"],
    )
    def test_a_quota_that_held_processes_back(self, file: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([100.0, 110.0, 120.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(clock))
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2})
        fake_files(monkeypatch, {file: line.format(5)})
        contention = environment.CpuContention()
        assert contention.throttled_fraction() == 0.0
        fake_files(monkeypatch, {file: line.format(12)})
        assert contention.throttled_fraction() == 7.0 / (20 * 2)


def test_a_dangling_link_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("a = 1\n")
    before = environment.source_digest(tmp_path)
    (tmp_path / ".#one.py").symlink_to("user@host.1234")
    assert environment.source_digest(tmp_path) == before


def test_any_changed_file_is_another_source(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.py").write_text("a = 1\n")
    before = environment.source_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    assert environment.source_digest(tmp_path) == before
    (tmp_path / "part" / "one.py").write_text("a = 2\n")
    changed = environment.source_digest(tmp_path)
    (tmp_path / "part" / "one.py").rename(tmp_path / "part" / "two.py")
    assert len({before, changed, environment.source_digest(tmp_path)}) == 3


class TestClocks:
    def clocks(self, *samples: tuple[float, float, float | None]) -> environment.Clocks:
        """Return clocks that read the samples (wall, steady, since boot), one after another."""
        wall, steady, since_boot = (iter(values) for values in zip(*samples, strict=True))
        return environment.Clocks(lambda: next(wall), lambda: next(steady), lambda: next(since_boot))

    @pytest.mark.parametrize(
        ("later", "shift", "suspended"),
        [
            ((1060.0, 70.0, 90.0), 0.0, 0.0),
            ((4660.0, 70.0, 90.0), 3600.0, 0.0),
            ((-2540.0, 70.0, 90.0), -3600.0, 0.0),
            # An hour asleep: the wall clock and the one since boot went on, the steady one did not.
            ((4660.0, 70.0, 3690.0), 0.0, 3600.0),
        ],
    )
    def test_tell_what_happened(self, later: tuple[float, float, float], shift: float, suspended: float) -> None:
        found = self.clocks((1000.0, 10.0, 30.0), later).to_record()
        assert found == {"wall_clock_shift_seconds": pytest.approx(shift), "suspended_seconds": suspended}

    def test_a_system_without_a_clock_since_boot(self) -> None:
        found = self.clocks((1000.0, 10.0, None), (1060.0, 70.0, None)).to_record()
        assert found == {"wall_clock_shift_seconds": 0.0, "suspended_seconds": None}

    def test_of_this_host_run(self) -> None:
        found = environment.Clocks().to_record()
        assert found["wall_clock_shift_seconds"] == pytest.approx(0.0, abs=0.5)
