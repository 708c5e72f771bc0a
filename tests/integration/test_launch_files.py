"""Launch files for operations: each runs unedited on the CPU, under a fake scheduler."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.ranks import free_port, shared_zygote
from tests.tiny import TINY
from tests.zygote import last_values

LAUNCH = PROJECT / "scripts" / "launch"
# A moment's work for each process; the files' own settings are longer.
BRIEF = (*TINY, "parallel=ddp", "workload.micro_batch_size=1")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def variables(**more: str) -> dict[str, str]:
    """Return an environment in which PYTHON forks, unless `more` names a fresh interpreter."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    return {**own, "PYTHON": shared_zygote().python, **more}


def start(argv: list[str], folder: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        last_values(argv), cwd=folder, env=variables(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    _, errors = process.communicate(timeout=timeout)
    return process.returncode, errors


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


class TestTorchrun:
    SCRIPT = str(LAUNCH / "torchrun.sh")

    def test_unedited_and_without_words_on_one_host(self, tmp_path: Path) -> None:
        code, errors = ended(start([self.SCRIPT], tmp_path, PYTHON=sys.executable))
        assert code == 0, errors
        [run] = (tmp_path / "runs").iterdir()
        found = record(run)
        assert (found["status"], found["world_size"], found["config"]["experiment"]) == ("ok", 2, "smoke")

    def test_two_hosts_of_one_process_each(self, tmp_path: Path) -> None:
        head = f"127.0.0.1:{free_port()}"
        nodes = [
            start([self.SCRIPT, *BRIEF, "out=run"], tmp_path, NODES="2", NODE_RANK=str(rank), HEAD=head, PROCESSES="1")
            for rank in range(2)
        ]
        for node in nodes:
            code, errors = ended(node)
            assert code == 0, errors
        assert record(tmp_path / "run")["world_size"] == 2

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        code, errors = ended(start([self.SCRIPT], tmp_path, NODES="2"))
        assert code != 0
        assert "HEAD=HOST:PORT" in errors
        code, errors = ended(start([self.SCRIPT], tmp_path, NODES="2", HEAD="h:1"))
        assert code != 0
        assert "NODE_RANK" in errors

    @pytest.mark.parametrize(
        ("settings", "given", "expected"),
        [
            (["experiment=iflytek/node"], {}, []),
            (["experiment=iflytek/node"], {"PARALLEL": "fsdp"}, ["parallel=fsdp"]),
            (["experiment=iflytek/node"], {"PARALLEL": ""}, []),
            ([], {}, ["parallel=ddp"]),
            ([], {"PARALLEL": "fsdp"}, ["parallel=fsdp"]),
        ],
    )
    @pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sh"])
    def test_the_layout_is_the_experiments_unless_it_is_set(
        self, name: str, settings: list[str], given: dict[str, str], expected: list[str], tmp_path: Path
    ) -> None:
        for program, text in {"python": 'echo "$@"', "srun": 'shift 2; exec "$@"', "scontrol": "echo node0"}.items():
            (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / program).chmod(0o755)
        cluster = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_NODEID": "0",
                   "SLURM_JOB_NODELIST": "node0", "SLURM_JOB_NUM_NODES": "1"}  # fmt: skip
        done = subprocess.run(
            [str(LAUNCH / name), *settings], capture_output=True, text=True, check=True, timeout=60,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **cluster, **given},
        )  # fmt: skip
        found = done.stdout.split()
        assert [word for word in found if word.startswith("parallel=")] == expected
        assert (settings or ["experiment=smoke"])[0] in found

    def test_the_exit_code_is_the_runs_own(self, tmp_path: Path) -> None:
        code, errors = ended(start([self.SCRIPT, "backend=cpu", "model=nothing"], tmp_path))
        assert code == 2
        assert "nothing" in errors


SRUN = """\
#!/usr/bin/env bash
# Starts the command once for each node, passes SIGTERM on, and ends with the highest code, as Slurm's own does.
while [[ $1 == --* ]]; do shift; done
tasks=()
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
  SLURM_NODEID=$node "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > tasks
highest=0
trap 'kill -TERM "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do
  while kill -0 "$task" 2>/dev/null; do wait "$task"; done
  wait "$task"
  code=$?
  ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = """\
#!/usr/bin/env bash
if [ "$1" = show ]; then printf '127.0.0.1\\n127.0.0.2\\n'; else echo "$@" >> requeued; fi
"""
SQUEUE = """\
#!/usr/bin/env bash
cat state
"""


class TestSlurm:
    @pytest.fixture
    def cluster(self, tmp_path: Path) -> dict[str, str]:
        programs = tmp_path / "bin"
        programs.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (tmp_path / "state").write_text("RUNNING\n")
        return {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            # slurm.sh listens on this port.
            "SLURM_JOB_ID": str(next(port for port in iter(free_port, None) if 20_000 <= port < 40_000)),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[0-1]",
            "PROCESSES": "1",
        }

    def submit(self, folder: Path, cluster: dict[str, str], *argv: str, **more: str) -> subprocess.Popen[str]:
        # sbatch copies the script: nothing beside it may be needed.
        copy = folder / "job"
        shutil.copy(LAUNCH / "slurm.sh", copy)
        return start(["bash", str(copy), *argv], folder, **cluster, **more)

    def test_unedited_and_without_words(self, tmp_path: Path, cluster: dict[str, str]) -> None:
        del cluster["PROCESSES"]
        code, errors = ended(self.submit(tmp_path, cluster))
        assert code == 0, errors
        found = record(tmp_path / "runs" / f"slurm-{cluster['SLURM_JOB_ID']}")
        assert (found["world_size"], found["config"]["experiment"]) == (4, "smoke")

    def test_two_nodes(self, tmp_path: Path, cluster: dict[str, str]) -> None:
        code, errors = ended(self.submit(tmp_path, cluster, *BRIEF))
        assert code == 0, errors
        found = record(tmp_path / "runs" / f"slurm-{cluster['SLURM_JOB_ID']}")
        assert (found["status"], found["world_size"]) == ("ok", 2)
        assert not (tmp_path / "requeued").exists()

    def test_pre_empted_it_saves_is_queued_again_and_goes_on(self, tmp_path: Path, cluster: dict[str, str]) -> None:
        argv = [*BRIEF, "workload.steps=400", "workload.interval_steps=5"]
        job = self.submit(tmp_path, cluster, *argv, CHECKPOINT_EVERY="50")
        run = tmp_path / "runs" / f"slurm-{cluster['SLURM_JOB_ID']}"
        deadline = time.monotonic() + 90
        while not ((run / "steps.jsonl").exists() and len((run / "steps.jsonl").read_text().splitlines()) > 60):
            assert time.monotonic() < deadline
            assert job.poll() is None, job.communicate()[1]
            time.sleep(0.05)
        # As --signal=TERM@120 has it: to the tasks, not to the script.
        for task in (tmp_path / "tasks").read_text().split():
            os.kill(int(task), signal.SIGTERM)
        code, errors = ended(job)
        assert code == 143, errors
        assert (tmp_path / "requeued").read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"
        first = record(run)
        assert first["status"] == "interrupted"
        code, errors = ended(self.submit(tmp_path, cluster, *argv, CHECKPOINT_EVERY="50"))
        assert code == 0, errors
        found = record(run)
        assert found["status"] == "ok"
        assert [attempt["status"] for attempt in found["attempts"]] == ["interrupted", "ok"]
        assert found["attempts"][1]["from_step"] >= 60
        assert found["losses"]["train"][: len(first["losses"]["train"])] == first["losses"]["train"]

    def test_cancelled_it_is_not_queued_again(self, tmp_path: Path, cluster: dict[str, str]) -> None:
        job = self.submit(tmp_path, cluster, *BRIEF, "workload.steps=100000", "workload.interval_steps=5")
        run = tmp_path / "runs" / f"slurm-{cluster['SLURM_JOB_ID']}"
        deadline = time.monotonic() + 90
        while not (run / "steps.jsonl").exists():
            assert time.monotonic() < deadline
            assert job.poll() is None, job.communicate()[1]
            time.sleep(0.05)
        (tmp_path / "state").write_text("COMPLETING\n")
        for task in (tmp_path / "tasks").read_text().split():
            os.kill(int(task), signal.SIGTERM)
        code, errors = ended(job)
        assert code == 143, errors
        assert record(run)["status"] == "interrupted"
        assert not (tmp_path / "requeued").exists()

    def test_wrong_settings_are_not_queued_again(self, tmp_path: Path, cluster: dict[str, str]) -> None:
        code, _ = ended(self.submit(tmp_path, cluster, "model=nothing"))
        assert code == 2
        assert not (tmp_path / "requeued").exists()


def documents(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((LAUNCH / "kubernetes" / name).read_text()) if each]


def pod_of(name: str) -> dict[str, Any]:
    [job] = [each for each in documents(name) if each["kind"] == "Job"]
    return job["spec"]["template"]["spec"]


class TestKubernetes:
    @pytest.mark.parametrize("name", ["job.yaml", "indexed-job.yaml"])
    def test_hardened_probed_and_given_time_to_save(self, name: str) -> None:
        pod = pod_of(name)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["terminationGracePeriodSeconds"] >= 60
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"]["limits"]["memory"]
        [container] = pod["containers"]
        assert container["livenessProbe"]["exec"]["command"] == ["python", "-m", "harness", "health"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/work/runs", "/tmp"} <= mounts

    def test_the_job_as_it_stands(self, tmp_path: Path) -> None:
        pod = pod_of("job.yaml")
        for container, code in ((pod["initContainers"][0], 0), (pod["containers"][0], 0)):
            argv = [word.replace("/work/runs", str(tmp_path)) for word in container["args"]]
            found, errors = ended(start([shared_zygote().python, "-m", "harness", *argv], tmp_path))
            assert found == code, errors
        assert record(tmp_path / "job")["status"] == "ok"

    def test_the_indexed_job_as_two_pods(self, tmp_path: Path) -> None:
        [container] = pod_of("indexed-job.yaml")["containers"]
        [service] = [each for each in documents("indexed-job.yaml") if each["kind"] == "Service"]
        port = str(service["spec"]["ports"][0]["port"])
        assert f"--master-port={port}" in container["args"]
        own = str(free_port())
        pods = []
        for rank in range(2):
            argv = [
                word.replace("$(NODE_RANK)", str(rank))
                .replace("harness-nodes-0.harness-nodes", "127.0.0.1")
                .replace(port, own)
                .replace("/work/runs", str(tmp_path))
                for word in container["args"]
            ]
            pods.append(start([shared_zygote().python, "-m", "harness", *argv], tmp_path))
        for pod in pods:
            code, errors = ended(pod)
            assert code == 0, errors
        assert record(tmp_path / "nodes")["world_size"] == 2

    def test_what_is_not_to_be_tried_again_is_the_harnesss_own_exit_codes(self) -> None:
        for name, codes in (("job.yaml", [2, 3]), ("indexed-job.yaml", [3])):
            [job] = [each for each in documents(name) if each["kind"] == "Job"]
            rule = job["spec"]["podFailurePolicy"]["rules"][0]
            # Of whichever container: the doctor's too.
            assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": codes}}


class TestCompose:
    def test_as_it_stands(self, tmp_path: Path) -> None:
        [service] = yaml.safe_load((LAUNCH / "compose.yaml").read_text())["services"].values()
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["stop_grace_period"] == "2m"
        argv = [word.replace("/work/runs", str(tmp_path)) for word in service["command"]]
        code, errors = ended(start([shared_zygote().python, "-m", "harness", *argv], tmp_path))
        assert code == 0, errors
        assert "harness_tokens_total" in (tmp_path / "harness.prom").read_text()
        # Every line is one JSON object.
        lines = [json.loads(line) for line in errors.splitlines()]
        assert lines[-1]["message"] == "run ended"


def test_the_image_and_the_files_agree() -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text()
    assert re.search(r'^HEALTHCHECK .* CMD \["python", "-m", "harness", "health"\]$', dockerfile, re.MULTILINE)
    assert re.search(r"^USER 1000:0$", dockerfile, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["', dockerfile, re.MULTILINE)
    for name in ("job.yaml", "indexed-job.yaml"):
        assert pod_of(name)["securityContext"]["runAsUser"] == 1000


def test_the_workflow_shows_its_report_also_when_the_check_is_red() -> None:
    text = (PROJECT / "scripts" / "ci" / "github-actions.yml").read_text()
    [job] = yaml.safe_load(text)["jobs"].values()
    [compared] = [place for place, step in enumerate(job["steps"]) if "harness compare" in step.get("run", "")]
    shown = [step for step in job["steps"][compared + 1 :] if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    assert [step.get("if") for step in shown] == ["always()"]
    # Every variable of the repository that it uses is named in its head.
    head = "".join(line for line in text.splitlines() if line.startswith("#"))
    assert all(name in head for name in re.findall(r"vars\.(\w+)", text))
