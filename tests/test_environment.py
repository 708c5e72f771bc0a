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
