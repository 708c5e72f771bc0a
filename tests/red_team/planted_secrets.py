"""Secrets as real runs on real machines leave them in a record, to test `python -m harness bundle`.

    planted, secrets = plant(record)      # secrets: secret text -> "[category] place: why"
    leaks(published_bytes, secrets)       # [(secret, form in which it was found)], of unpacked bytes

The planted record passes `record_problems`, keeps its workload_id, and what makes it evidence is untouched. Two things are
less than honest, so that every secret is in every record, whatever run it came from: `error` is set also where status
is ok, and sections of a run that has none (attempts, parallel, search, profile, measured_peak) are made up.
All names, addresses, numbers and tokens are invented. Deterministic.
"""

# ruff: noqa: E501, RUF001

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import html
import json
import re
import unicodedata
from typing import Any
from urllib.parse import quote, unquote

from harness.config import workload_id
from harness.records.files import seal

SHA = "c0ffee" + "5" * 58  # stands for a public checksum of another file, which may stay
MAC_NUMBER = int("48b02d713c9e", 16)  # uuid.getnode() of 48:b0:2d:71:3c:9e


class _Secrets(dict[str, str]):
    """Calling it notes a secret and returns it, to be put into a text."""

    def __call__(self, secret: str, category: str, why: str) -> str:
        assert len(secret) >= 5, secret
        assert secret not in self, f"{secret} is noted twice"
        self[secret] = f"[{category}] {why}"
        return secret


def plant(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a copy of a valid record with secrets, sealed again, and the secrets with place and reason."""
    found, note = copy.deepcopy(record), _Secrets()
    who = _people(note)
    where = _hosts(note)
    _config(found, note, who, where)
    _environment(found, note, who, where)
    _variables(found, note, who, where)
    _device(found, note, where)
    _free_texts(found, note, who, where)
    _distributed(found, note, who, where)
    _other_files(found, note, who, where)
    _unknown_keys(found, note, who, where)
    assert found["workload_id"] == workload_id(found["config"]) == record["workload_id"]
    return seal(found), dict(note)


# What is known by several names, in several places.


def _people(note: _Secrets) -> dict[str, str]:
    return {
        "a": note("mhalvorsen", "user", "config.out, environment.command, TORCHINDUCTOR_CACHE_DIR, error, and in "
                  "capitals in config.model.name: login of the user who ran it; /tmp/torchinductor_USER is the default"),
        "b": note("tkurosawa", "user", "config.workload.name, config.data.path, contention.device_processes: "
                  "colleague, whose name is a part of a label (ablation_tkurosawa2) and of a process's name"),
        "c": note("jürgen.weiß", "user", "config.autotune_dir (UTF-8 home), environment.variables.TORCH_HOME: "
                  "directory services allow letters beyond ASCII; in JSON it is j\\u00fcrgen.wei\\u00df"),
        "project": note("velvet_otter", "internal name", "config.experiment, config.out, Slurm comment: unannounced "
                        "project, as a folder"),
    }  # fmt: skip


def _hosts(note: _Secrets) -> dict[str, str]:
    return {
        "short": note("qlgpu-a17", "host", "environment.host (QLGPU-A17.Fabric... in capitals, with domain), error and "
                      "telemetry.reason (short, lower case): the run's own host under two spellings"),
        "domain": note("hollowreed", "internal name", "environment.host, URLs, mail: the company's private domain"),
        "zone": note("fabric-zrh2", "internal name", "environment.host, NCCL_COMM_ID: sub-domain names site and fabric"),
        "cluster": note("stormpetrel", "internal name", "config.backend.pool, slurm.cluster: name of the cluster"),
        "filer": note("kelpfiler2", "host", "/net/kelpfiler2/... (automounter) in config.data.eval_path, error: NFS "
                      "server as a part of a path"),
        "registry": note("oci-brackish", "host", "environment.container: systemd and launchers set $container freely, "
                         "here to the image with its registry"),
    }  # fmt: skip


# The parts of a record.


def _config(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    config = record["config"]
    a, b, c, project = who["a"], who["b"], who["c"], who["project"]
    config["model"]["name"] = f"{config['model'].get('name')}-{a.upper()}-v3"
    config["model"]["path"] = "/gpfs/{}/ckpt/{}/config.json".format(
        note("u0417-lantern", "path", "config.model.path: GPFS fileset of a project group"),
        note("pinniped-70b-rc2", "internal name", "config.model.path: folder named after an unreleased model"),
    )
    config["workload"]["name"] = f"{config['workload'].get('name')} ablation_{b}2"
    config["experiment"] = f"{project}/sweep7"
    config["out"] = f"/home/{a}/{project}/runs/2026-11-24"
    config["peak_dir"] = "C:\\Users\\{}\\runs\\peaks".format(
        note("JUERGEN.WEISS.HR", "user", "config.peak_dir: Windows profile, the transliterated name with domain suffix")
    )
    config["autotune_dir"] = f"/home/{c}/runs/autotune"
    config["metrics_file"] = "\\\\{}\\{}$\\node.prom".format(
        note("QNAS07X", "host", "config.metrics_file: UNC path, host after two backslashes"),
        note("deeplab-metrics", "path", "config.metrics_file: hidden share of a UNC path"),
    )
    config["init"] = "file:///mnt/ceph/{}/ckpt%20final/model.safetensors".format(
        note("%C3%85sgeir%20K", "user", "config.init: home folder of 'Åsgeir K', percent-encoded in a URI")
    )
    config["data"]["path"] = "s3://{}:{}@{}/{}/train".format(
        note("AKIAQ7ZT5LMW2XEXAMPL", "token", "config.data.path: access key id in the user part of an S3 URI"),
        note("vK9+tR/3mWqLx0Zb7eUa/PdYh2sNcJ4gFo6iQ1yT", "token", "config.data.path: secret key with + and /, which "
             "no URL may hold, so that URL parsers cut it in two"),
        note("hr-datalake-restricted", "internal name", "config.data.path: bucket"),
        b,
    )  # fmt: skip
    config["data"]["eval_path"] = f"/net/{where['filer']}/export/" + note(
        "payroll-2025q4", "path", "config.data.eval_path: folder that tells what the data is"
    )
    config["data"]["tokenizer"] = (
        "https://models.{}.lan/tok.json?X-Amz-Credential={}%2F20261124%2Feu&X-Amz-Signature={}".format(
            where["domain"],
            note("ASIAY34FZKBOEXAMPLE7", "token", "config.data.tokenizer: credential of a presigned URL"),
            note("7d1b0a94c3ef58627d9ab14c60f3e25b8a7c9d01e6f4b3a2958c7d6e0f1a2b3c", "token", "config.data.tokenizer: "
                 "signature of a presigned URL: 64 hexadecimal digits, as a digest that must stay"),
        )
    )  # fmt: skip
    config["data"]["field"] = "text_" + note(
        "clientnotes_orsted", "internal name", "config.data.field: column named after a client; not part of the work"
    )
    config["parallel"]["scaling_reference"] = "abfss://runs@{}.dfs.core.windows.net/ref?sv=2024&sig={}".format(
        note("hrmlstore0west", "internal name", "config.parallel.scaling_reference: Azure storage account"),
        note("Zk8%2Fq1Rw0T%2BnB5yLxJcVhA%3D", "token", "config.parallel.scaling_reference: SAS signature, "
             "percent-encoded, under a name that sounds like nothing"),
    )  # fmt: skip
    # Settings of a backend outside the harness: any key, and not part of the workload_id.
    config["backend"] |= {
        "pool": f"{where['cluster']}-h200-prio",
        "license_server": "27000@"
        + note("flexnode-ochre", "host", "config.backend.license_server: custom setting of a plug-in, PORT@HOST"),
        "management": {
            "address": note("bmc-rk42u18", "host", "config.backend.management.address: a BMC, by rack and unit"),
            "login": note("svc-ipmi-ops", "user", "config.backend.management.login: service account"),
            "credential": note("Gr4nite=Wharf9", "password", "config.backend.management.credential: custom setting"),
        },
        "mirror": ["rsync://" + note("sandpiper@stagebox5", "user", "config.backend.mirror[0]: USER@HOST in a list")],
        note("lab_eel_river", "internal name", "KEY of config.backend: custom setting named after a lab"): 3,
    }


def _environment(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    environment = record["environment"]
    a = who["a"]
    environment["host"] = f"{where['short'].upper()}.{where['zone'].title()}.{where['domain'].title()}.lan"
    environment["os"] = f"{environment['os']} ({{}} 7)".format(
        note("QuartzLoom Golden Image", "internal name", "environment.os: PRETTY_NAME of a company's own image")
    )
    environment["kernel"] = f"{environment['kernel']}+" + note(
        "ambermill03", "host", "environment.kernel: LOCALVERSION of a kernel built in-house, with its build host"
    )
    environment["container"] = f"{where['registry']}.{where['domain']}.lan:5000/lantern/train:nightly"
    environment["packages"] |= {
        "torch-npu": "2.1.0+"
        + note("acme.internal", "internal name", "environment.packages.torch-npu: local part of a version (PEP 440)"),
        "triton": "3.5.0+git9a1b2c3d." + note("osprey.bld42", "host", "environment.packages.triton: local part with "
                                             "the machine that built the wheel"),
        note("brasswick-kernels", "internal name", "KEY of environment.packages, and profile.operations: private "
             "distribution of a plug-in (Backend.distributions)"): "0.4.1",
    }  # fmt: skip
    if isinstance(environment.get("git"), dict):
        environment["git"] |= {
            "remote": "git@{}:{}.git".format(
                note("gitlab.tidewrack.io", "host", "environment.git.remote: key of a later harness"),
                note("lantern/otter-core", "internal name", "environment.git.remote: private repository"),
            ),
            "branch": "users/" + note("n.oyelaran", "user", "environment.git.branch: branches begin with the login"),
        }
    else:
        record["source_control"] = {"remote": "git@" + note("gitlab.tidewrack.io", "host", "source_control.remote")}
    environment["command"] = [
        f"/home/{a}/.venvs/otter env/bin/python",
        "-c",
        "import os; os.environ['WANDB_API_KEY']='{}'; from harness.api import train; train()".format(
            note("3f8a1c7e9b2d4f60a5c8e1d7b9f2a4c6e8d0b3f5", "token", "environment.command[2]: code of python -c "
                 "(sys.orig_argv holds it): 40 hexadecimal digits, as a git commit that must stay")
        ),
        f"out=/home/{a}/{who['project']}/runs/2026-11-24",
        f"data.path=../../{note('velasco2', 'user', 'environment.command: sibling home by a relative path')}/shared",
        "autotune_dir=~" + note("ravnsborg", "user", "environment.command: ~USER/...") + "/searches",
        "--rdzv-conf=join_timeout=600,etcd_user=root,etcd_pw="
        + note("sluice.Gate.41", "password", "environment.command: inside a comma list of torchrun"),
        "--store-password",
        note("Wh4rf!Quay side", "password", "environment.command: an argument of its own behind --store-password, with a "
             "space and no sign of what it is"),
        "--rdzv-endpoint=" + note("[2001:db8:4f1c:2::a17]", "address", "environment.command: IPv6 in brackets") + ":29400",
        *environment["command"][-2:],
    ]  # fmt: skip


def _variables(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    a, c, domain = who["a"], who["c"], where["domain"]
    planted = {
        "ASCEND_PROCESS_LOG_PATH": "/var/log/npu/"
        + note("tenant-gannet", "internal name", "variables.ASCEND_PROCESS_LOG_PATH: tenant's log folder"),
        "ASCEND_HOME_PATH": "/opt/"
        + note("hrsw-modules", "path", "variables.ASCEND_HOME_PATH: software tree of a site") + "/cann/8.5.0",
        "CUDA_VISIBLE_DEVICES": "{},{}".format(
            note("GPU-4be2d8c0", "serial", "variables.CUDA_VISIBLE_DEVICES: UUID cut short, which CUDA accepts"),
            note("MIG-6d1f0a37-8c55-5b1e-9f02-77ab31c0de94", "serial", "variables.CUDA_VISIBLE_DEVICES: MIG UUID"),
        ),
        "CUDA_MPS_PIPE_DIRECTORY": "/run/user/"
        + note("1893204417", "user", "variables.CUDA_MPS_PIPE_DIRECTORY and owner_uid (as a number): uid that the "
               "directory service maps from a person") + "/mps",
        "HCCL_IF_IP": note("10.37.4.121", "address", "variables.HCCL_IF_IP: the host's address"),
        "HCCL_SOCKET_IFNAME": "=" + note("enx0c42a1b7d9e3", "address", "variables.HCCL_SOCKET_IFNAME: systemd's name "
                                        "of an interface holds its MAC address, without separators"),
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64::/home/{}/sw/lib:/cvmfs/{}/lib".format(
            a, note("sw.tidepool-hpc.ch", "host", "variables.LD_LIBRARY_PATH: CVMFS repository, third of a colon list")
        ),
        "LD_PRELOAD": "/scratch/" + note("grp_sealion", "path", "variables.LD_PRELOAD: group's scratch") + "/lib jemalloc.so",
        "MALLOC_CONF": "prof_prefix:/lustre/fs3/" + note("bpetrosyan", "user", "variables.MALLOC_CONF: path behind a "
                                                        "colon in a list of options") + "/jeprof,narenas:4",
        "NCCL_COMM_ID": note("192.168.213.77", "address", "variables.NCCL_COMM_ID: rendezvous, ADDRESS:PORT") + ":29500",
        "NCCL_DEBUG_FILE": f"/var/log/nccl/{where['zone']}.%h.%p.log",
        "NCCL_HOSTID": note("0xb83fd203004e7c1a", "serial", "variables.NCCL_HOSTID: set to the InfiniBand node GUID"),
        "NCCL_TOPO_FILE": "//" + note("dfs-cormorant", "host", "variables.NCCL_TOPO_FILE: //HOST/... path") + "/topo/h200.xml",
        "NVIDIA_VISIBLE_DEVICES": note("GPU-d41c07e5-3a9b-4f28-96be-0f7a5512c8d3", "serial",
                                       "variables.NVIDIA_VISIBLE_DEVICES: the device plug-in of Kubernetes sets UUIDs"),
        "PYTORCH_INDEX_URL": "https://__token__:{}@pypi.{}.lan/simple".format(
            note("glpat-Xw7Rt2QmVb9sLzKd", "token", "variables.PYTORCH_INDEX_URL: in a URL; the name has no TOKEN"), domain
        ),
        "PYTORCH_KERNEL_CACHE_PATH": "/mnt/c/Users/"
        + note("ZBIGNI~1", "user", "variables.PYTORCH_KERNEL_CACHE_PATH: WSL, a short (8.3) name of a home") + "/kc",
        "SLURM_JOB_ID": note("2214592517", "internal name", "variables.SLURM_JOB_ID: job number of a federated cluster "
                             "(sacct tells who and what)"),
        "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_q1/" + note("rdzv-petrel-0xF3", "internal name", "variables."
                                   "TORCHELASTIC_ERROR_FILE: rendezvous id in a path") + "_k2/attempt_0/0/error.json",
        "TORCHELASTIC_RUN_ID": note("nightly.skua.4417", "internal name", "variables.TORCHELASTIC_RUN_ID: --rdzv-id"),
        "TORCHINDUCTOR_CACHE_DIR": f"/tmp/torchinductor_{a}",
        "TORCHINDUCTOR_REDIS_URL": "redis://:{}@{}:6379".format(
            note("p%40ss-Mooring-88", "password", "variables.TORCHINDUCTOR_REDIS_URL: no user, percent-encoded"),
            note("::ffff:172.29.14.6", "address", "variables.TORCHINDUCTOR_REDIS_URL: IPv4-mapped IPv6, no brackets"),
        ),
        "TORCHX_TRACKER_MLFLOW_CONFIG": "https://ml.{}.lan/#access={}".format(
            domain,
            note("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJsYW50ZXJuIn0.tW8kQz3xYp0LrVb6NcJ2sA", "token",
                 "variables.TORCHX_TRACKER_MLFLOW_CONFIG: JSON Web Token in a fragment; the name has no secret's word"),
        ),
        "TORCH_HOME": f"/home/{c}/.cache/torch",
        "TORCH_HUB_PAT": note("ghp_R4mZt7Wq1LxVb0KsYd9NcJ3hFo6iPe8uAgT2", "token", "variables.TORCH_HUB_PAT: PAT is no "
                              "word of environment.SECRET"),
        "TORCH_TRACKER_SERVICE_HOST": note("10.96.118.7", "address", "variables.TORCH_TRACKER_SERVICE_HOST: Kubernetes "
                                          "makes such variables of a service named torch-tracker"),
        "TORCH_TRACKER_AUTH": "Basic "
        + note("c3ZjLXRyYWluOmtyaWxsLTc3", "token", "variables.TORCH_TRACKER_AUTH: user and password in base 64"),
        "TORCH_LOGS_OUT": "/Volumes/" + note(unicodedata.normalize("NFD", "Bjørn Sjöholm"), "user",
                          "variables.TORCH_LOGS_OUT: macOS writes letters and marks apart (NFD), with a space") + "/logs",
        note("TORCH_SKERRYVORE_DSN", "internal name", "KEY of environment.variables: named after an internal service"):
            "postgresql://u:" + note("kelp&Tide;12", "password", "variables.TORCH_SKERRYVORE_DSN: in a DSN, with & and ;, "
                                     "which HTML pages escape") + "@db/x",
    }  # fmt: skip
    hardware = {
        "CPU_AFFINITY_CONF": "1,npu0:0-23",
        "NCCL_ALGO": "Ring",
        "NCCL_IB_HCA": "mlx5_0:1,mlx5_1:1",
        "OMP_NUM_THREADS": "16",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:512",
    }
    record["environment"]["variables"] = hardware | record["environment"]["variables"] | planted


def _device(record: dict[str, Any], note: _Secrets, where: dict[str, str]) -> None:
    record["device"] |= {
        "uuid": note(
            "9f3c71ab-52d4-4e0f-8b6a-1d7e0c95fa23", "serial", "device.uuid: as torch.cuda reports it, no GPU-"
        ),
        "serial": int(note("1654922003174", "serial", "device.serial: the board's serial number, as a NUMBER")),
        "pci_serial": note("48-b0-2d-ff-ff-5a-17-e4", "serial", "device.pci_serial: of PCI Express, by lspci"),
        "vdie_id": note("5C0A1E20 20C01D0C B6B3BC2E 10CC040A", "serial", "device.vdie_id: as npu-smi prints a die"),
        "firmware_build": "25.2.0 "
        + note("fwsmith@lot-eider", "user", "device.firmware_build: builder, as the kernel's banner has it"),
    }
    record["backend"]["versions"] |= {
        "ofed": "MLNX_OFED_LINUX-24.10 (rebuilt on {})".format(
            note("mole-bld42", "host", "backend.versions.ofed: free text of a vendor's or a site's version file")
        ),
        note("libskerry-comm", "internal name", "KEY of backend.versions: private library of a plug-in"): "1.7",
    }
    record["effective_settings"] |= {
        "allocator_settings": "expandable_segments:True,record_context:/nfs/"
        + note("ygreenblatt", "user", "effective_settings.allocator_settings: an environment variable read back"),
        "kernel_library": {"root": "/afs/" + note("cell.heronsgate.edu", "host", "effective_settings.kernel_library.root: "
                                                "AFS cell, nested, in a section that reports compare") + "/lib"},
    }  # fmt: skip
    # As NvmlSensor's reading, by a later harness.
    state = {"clock_mhz": None, "clock_limit_mhz": None, "throttle_reasons": None, "temperature_celsius": None}
    condition: dict[str, Any] = record["contention"].get("device_condition") or {"before": None, "after": None}
    condition["before"] = {
        **(condition["before"] or state),
        "sensor": "ipmi@" + note("198.51.100.83", "address", "contention.device_condition.before.sensor: free object"),
    }
    record["contention"]["device_condition"] = condition
    if record["memory"] is not None:
        record["memory"][
            "/kubepods/burstable/pod{}/limit_bytes".format(
                note("6b1d93f0_4e27_4c8a_9d15_c07f2ae8b364", "serial", "KEY of memory: cgroup of a pod, by systemd with "
                     "its UID's hyphens as underscores")
            )
        ] = None  # fmt: skip


def _free_texts(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    a, b = who["a"], who["b"]
    texts = [
        record["error"],
        f"the connection to another process of the run broke: [{where['short']}]:50213 gloo/transport/tcp/pair.cc "
        "Connection closed by peer [{}]:29500".format(
            note("172.19.88.203", "address", "error: gloo puts addresses into its messages")
        ),
        f"disk quota of user {a.title()} exceeded on {where['filer']}:/vol/"
        + note("aggr7_redfern", "path", "error: HOST:/vol/... of an NFS server"),
        "RPC to {} failed, zone {}".format(
            note("fe80::4ab0:2dff:fe71:3c9e%ib0", "address", "error: link-local IPv6 with interface; it holds the MAC"),
            note("10-37-4-118.ns-lantern.pod", "address", "error: DNS name of a pod: its IPv4 with hyphens"),
        ),
        "File ‘D:/Jobs/{}/train.py’, line 12".format(
            note(
                "O’Malley & Søn", "user", "error: Windows folder with apostrophe, ampersand and space, forward slashes"
            )
        ),
    ]
    record["error"] = "; ".join(text for text in texts if text)
    telemetry = record.get("telemetry") or {
        "method": "none", "scope": None, "period_seconds": None, "readings": 0, "failed_readings": 0,
        "measured_joules": None, "mean_power_watts": None, "joules_per_token": None, "power_watts": None,
        "temperature_celsius": None, "clock_mhz": None, "utilization_percent": None, "throttled": None, "samples": [],
    }  # fmt: skip
    telemetry["reason"] = (
        f"npu-smi ended with 8 on {where['short']}: see /root/ascend/log/plog-"
        + note("pier9_coastguard", "path", "telemetry.reason: log's name in the text of a plug-in of torch-npu")
        + ".log; the plug-in torch_npu was built by "
        + note("Iñaki Etxeberria", "user", "telemetry.reason: a person's name, no login")
    )
    telemetry["source"] = "NVML, by http://dcgm:{}@127.0.0.1:9400/metrics".format(
        note("krill-Exporter-5", "password", "telemetry.source: basic authentication of an exporter")
    )
    record["telemetry"] = telemetry
    record["timing"]["clock"] = "host, between two synchronizations (PTP grandmaster {})".format(
        note("ec0d9a.fffe.7b12c4", "address", "timing.clock: PTP's clock identity is a MAC address, in a section that is "
             "otherwise numbers and kept whole")
    )  # fmt: skip
    record["timing"]["stalls"] = ["nfs: server {} not responding".format(
        note("gullpoint-mds1", "host", "timing.stalls[0]: text in a key that the schema does not list, inside timing"))]  # fmt: skip
    record["clocks"] = {
        **(record.get("clocks") or {"wall_clock_shift_seconds": 0.0, "suspended_seconds": 0.0}),
        "source": "chrony, " + note("ntp2.tern-dc.net", "host", "clocks.source: key of a later harness"),
    }
    record["contention"]["device_processes"] = [
        *(record["contention"].get("device_processes") or []),
        f"python-{b} (99812)",
        "VLLM::Worker_TP0_" + note("anchovy-chat", "internal name", "contention.device_processes: name of a service that "
                                   "its process took as its title") + " (3811)",
    ]  # fmt: skip
    data = record["data"]
    data["files_skipped"] = {
        **data.get("files_skipped", {}),
        "latin-1 text, as {}".format(
            note("Gehaltsliste Wörth.csv", "path", "KEY of data.files_skipped: file's name")
        ): 3,
    }
    data["held_out"] = {
        **data.get("held_out", {}),
        "listing": "hdfs://{}/warehouse".format(
            note("nn1-guillemot:8020", "host", "data.held_out.listing: free object")
        ),
    }


def _distributed(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    names = iter(
        [
            note("rechenknoten-größe3", "host", "parallel.ranks[].host: letters beyond ASCII (also as \\u escapes)"),
            "Thistle07",
            *(f"thistle{number:02}" for number in range(8, 4096)),
        ]
    )
    thistle = note("thistle", "host", "slurm.nodelist (thistle[07-12,19]), attempts[].host (Thistle07), ranks beyond the "
                   "first: hosts with numbers, compressed by Slurm")  # fmt: skip
    parallel = record.get("parallel")
    if parallel is None:
        rank = dict.fromkeys(("step_seconds", "payload_bytes_per_step", "exposed_communication_seconds",
                              "busy_seconds_per_step", "peak_allocated_bytes"))  # fmt: skip
        parallel = {
            "layout": {"data": record["world_size"]},
            "ranks": [
                {"rank": number, "host": None, "device": record["device"]["name"], "device_index": number, **rank}
                for number in range(record["world_size"])
            ],
            "stragglers": [],
            "bubble": None,
            "scaling": None,
        }
    # Ranks of one host stay together: `compare --per node` counts the distinct names.
    new: dict[Any, str] = {}
    for rank in parallel["ranks"]:
        old = rank.get("host")
        if old not in new:
            new[old] = next(names)
        rank["host"] = new[old]
    parallel["nodes"] = {
        note("算力节点甲十七", "host", "KEY of parallel.nodes: host named in Chinese"): [0],
        note("DESKTOP-7QK31RM", "host", "KEY of parallel.nodes: default name of a Windows host"): [1],
    }
    parallel["store"] = (
        "tcp://" + note("ip-10-37-9-14", "address", "parallel.store: host name of AWS holds its address") + ":29500"
    )
    if parallel.get("scaling") is None:
        parallel["scaling"] = {
            "reference": "gs://" + note("hr-runs-puffin", "internal name", "parallel.scaling.reference: bucket") + "/one",
            "kind": "strong", "world_size": 1, "runs": 1,
            "tokens_per_second": record["timing"]["tokens_per_second"] or 1.0, "efficiency": 1.0,
        }  # fmt: skip
    record["parallel"] = parallel
    attempts = record.get("attempts") or [
        {
            "started_at": record["started_at"], "finished_at": None, "status": None, "from_step": 0, "to_step": None,
            "world_size": record["world_size"], "layout": {"data": record["world_size"]}, "host": None,
        }
        for _ in range(4)
    ]  # fmt: skip
    hosts = [
        note("otter-train-7c9f6d5b8-x2k4q", "host", "attempts[].host: a Kubernetes pod's name"),
        note("Marens-MBP", "host", "attempts[].host: macOS puts the owner's name into the host's") + ".local",
        thistle.title() + "07",
        where["short"],
    ]
    attempts = [*attempts, *(copy.deepcopy(attempts[-1]) for _ in range(len(hosts) - len(attempts)))]
    for number, attempt in enumerate(attempts):
        attempt["host"] = hosts[number % len(hosts)]
    record["attempts"] = attempts
    record["timing"].setdefault("resumed", {"steps": 0, "seconds": 0.0})


def _other_files(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    """Sections that name other files. Their numbers stay; those that are made up are neutral."""
    when = record["finished_at"]
    record["search"] = (record.get("search") or {"finished_at": when, "content_sha256": SHA}) | {
        "path": "/mnt/{}/autotune.json".format(note("weka-sandeel", "path", "search.path: mount point"))
    }
    peak = {"measured_at": when, "content_sha256": SHA, "flops": {}, "memory_bytes_per_second": None}
    record["measured_peak"] = (record.get("measured_peak") or peak) | {
        "path": "/Users/{}/Library/Mobile Documents/peak.json".format(
            note("cdubois-ext", "user", "measured_peak.path: macOS home, longer path with a space")
        )
    }
    profile = record.get("profile") or {
        "steps": 9, "data_wait_seconds": 0.0, "phases": None, "host_overhead_seconds": None,
        "traced_step_seconds": 1.0, "idle_fraction": None, "operations": [], "bytes_accessed": 0, "roofline": None,
    }  # fmt: skip
    profile["trace"] = "profile/{}_3811.1764012.pt.trace.json".format(
        note("brentgoose14", "host", "profile.trace: PyTorch's own trace handler puts HOST_PID into the file's name")
    )
    profile["operations"] = [
        *profile["operations"],
        {"name": "brasswick-kernels::" + note("otterattn_v2", "internal name", "profile.operations[].name: private operator "
         "of a plug-in"), "calls": 1, "seconds": 0.0},
    ]  # fmt: skip
    record["profile"] = profile


def _unknown_keys(record: dict[str, Any], note: _Secrets, who: dict[str, str], where: dict[str, str]) -> None:
    """Keys that the schema does not list: a later harness, or a site's wrapper, may write them."""
    record["slurm"] = {
        "nodelist": "thistle[07-12,19]",
        "cluster": where["cluster"].upper(),
        "account": note("acct_0417_merger", "internal name", "slurm.account: tells the project's purpose"),
        "comment": note("Velvet Otter", "internal name", "slurm.comment: the project's name with a space"),
        "submit_line": "sbatch --mail-user="
        + note("maren.halvorsen@", "user", "slurm.submit_line: mail address, the user's full name") + f"{where['domain']}.example",
    }  # fmt: skip
    record["owner_uid"] = 1893204417
    record["node_number"] = int(
        note(str(MAC_NUMBER), "address", "node_number: uuid.getnode(), the MAC as a decimal NUMBER")
    )
    record["inventory"] = {
        "assets": [int(note("9100227746", "serial", "inventory.assets[0]: asset tag, a NUMBER in a list")), 4],
        note("eui.0025385b91500a3c", "serial", "KEY of inventory: disk, by its EUI-64"): {"watts": 11.5},
        "nic": note("b8-3f-d2-4e-7c-1a", "address", "inventory.nic: MAC, as Windows writes it"),
        "switch_port": note("b83f.d24e.7c2b", "address", "inventory.switch_port: MAC, as Cisco writes it"),
        "bmc_mac": note("48:b0:2d:71:3c:9e", "address", "inventory.bmc_mac: MAC"),
        "system_uuid": note("4C4C4544-0051-4B10-8038-B7C04F4D3232", "serial", "inventory.system_uuid: DMI, capitals"),
        "machine_id": note("e7b1c4a09f5d4c2e8a63d0915bfc7e24", "serial", "inventory.machine_id: 32 hexadecimal digits"),
        "chassis": note("2102312NUF10K8000043", "serial", "inventory.chassis: serial number of a server"),
    }
    record["cwd_parts"] = ["/", "srv", note("isthmus-pilot", "path", "cwd_parts: a path as the list of its parts, without a "
                                            "slash")]  # fmt: skip
    record["wrapper"] = json.dumps(
        {"ran_by": note("x-okonkwo", "user", "wrapper: JSON inside of a text, quotes escaped"), "hook": "https://hooks.chat/"
         + note("T02LQ7/B9ZRW/kq3VxTn8", "token", "wrapper: a web hook's address is its password")}
    )  # fmt: skip
    hidden = note(
        "svc-lamprey:Quay#55", "password", "env_blob: inside of base 64 (the user name and password in clear)"
    )
    record["env_blob"] = note(
        base64.b64encode(hidden.encode() + b" ok").decode(), "token", "env_blob: secrets of Kubernetes are in base 64"
    )
    record["tags"] = [
        "nightly",
        note("Tulpe im Märzschnee", "password", "tags[1]: a pass phrase of words, in a list of labels"),
        "ssh-ed25519 " + note("AAAAC3NzaC1lZDI1NTE5AAAAIKq7", "token", "tags[2]: public key, which names its owner"),
    ]
    record["host_map"] = {
        note("pampas-c3.hpc", "host", "KEY of host_map: host"): {
            "peers": [note("marram-c4", "host", "host_map.*.peers[0]: host in a list under a key")]
        },
        note("token:hf_Qz8LmXw2RtVb7KsYd", "token", "KEY of host_map: token as a KEY"): None,
    }


# Looking for secrets in what was published.


def leaks(data: bytes, secrets: dict[str, str]) -> list[tuple[str, str]]:
    """Return the secrets that bytes hold, each with the first form in which it was found. Unpack archives first."""
    plain = data.decode("utf-8", "replace")
    texts = {"as it is": plain}
    texts["JSON escapes"] = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), plain).replace(
        "\\", ""
    )
    texts["percent-encoded"] = unquote(plain)
    texts["HTML"] = html.unescape(plain)
    texts["UTF-16"] = data.decode("utf-16-le", "ignore")
    texts |= {f"{name}, other normal form": unicodedata.normalize("NFC", text) for name, text in texts.items()}
    folded = {name: text.casefold() for name, text in texts.items()}
    found = []
    for secret in secrets:
        needles = {secret.casefold(), unicodedata.normalize("NFC", secret).casefold()}
        form = next((name for name, text in folded.items() if any(needle in text for needle in needles)), None)
        form = form or next((name for name, needle in _encodings(secret) if needle in plain), None)
        if form is not None:
            found.append((secret, form))
    return found


def _encodings(secret: str) -> list[tuple[str, str]]:
    found = [("percent-encoded by the bundle", quote(secret, safe=""))] if quote(secret, safe="") != secret else []
    for text in {secret, secret.lower(), secret.upper()}:
        raw = text.encode()
        # Whoever has a dictionary of hosts and users undoes an unsalted digest.
        found += [(f"unsalted {name}", hashlib.new(name, raw).hexdigest()[:10]) for name in ("md5", "sha1", "sha256")]
        if len(raw) >= 9:
            found += [("hexadecimal", binascii.hexlify(raw).decode())]
            # In base 64 at each of three offsets, without the characters that the neighbours decide.
            for shift in range(3):
                encoded = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
                found.append(("base 64", encoded[(0, 2, 3)[shift] : -1]))
    return found


def strings_of(value: Any) -> list[str]:
    """Return every key, text and number of a JSON value as text."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *strings_of(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    return [str(value)]
