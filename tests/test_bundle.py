"""Bundles: nothing private in them, the evidence kept, and refused once they were changed."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.analysis.run_group import load_run_groups
from harness.analysis.run_history import make_history
from harness.analysis.run_table import make_table
from harness.commands.compare import reproduction
from harness.errors import ExitCode, RecordError
from harness.records.bundle import MANIFEST_FILE, NO_TIME, bundle_content
from harness.records.files import seal
from harness.records.load import get_path, load_runs, load_tree
from harness.records.record import write_record
from harness.records.redaction import REDACTED, Redaction, tag_of
from harness.records.schema import record_problems
from tests.records import A100, ASCEND, TELEMETRY, make_record, merged, save_run, sealed
from tests.red_team.planted_secrets import leaks, plant

# What comparisons, tables and histories read.
EVIDENCE = """
    schema_version status workload_id digests world_size started_at finished_at model losses eval fingerprint weights
    memory utilization config.precision config.seed config.track config.workload.seq_len
    config.workload.global_batch_size config.workload.micro_batch_size config.workload.timing_warmup_steps
    config.model.num_hidden_layers data.entropy_floor_nats backend.name backend.peak_lookup_key backend.versions.torch
    backend.versions.driver device.name device.memory_bytes device.emulated effective_settings environment.git
    environment.cpu_model environment.packages.torch timing.intervals timing.step_seconds timing.mean_step_seconds
    timing.measured_steps timing.warmup timing.tokens_per_second contention.other_processes_cpu_fraction
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three repeats on each of two devices."""
    for repeat in (1, 2, 3):
        save_run(tmp_path / "runs" / "a100" / str(repeat), on=A100, process=repeat, step_seconds=0.25)
        save_run(tmp_path / "runs" / "ascend" / str(repeat), on=ASCEND, process=10 + repeat, step_seconds=0.3)
    return tmp_path / "runs"


@pytest.fixture
def bundle(runs: Path, tmp_path: Path) -> Path:
    file = tmp_path / "offer.zip"
    assert main(["bundle", str(runs), "--out", str(file)]) == ExitCode.OK
    return file


def rewritten(bundle: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a bundle again with other contents."""
    with zipfile.ZipFile(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return bundle


class TestRedaction:
    @pytest.mark.parametrize("source", ["cuda", "npu", "telemetry"])
    def test_no_planted_secret_is_in_a_bundle(self, source: str) -> None:
        records = {
            "cuda": lambda: make_record(on=A100),
            "npu": lambda: make_record(on=ASCEND),
            "telemetry": lambda: merged(make_record(on=A100), {"telemetry": TELEMETRY}),
        }
        planted, secrets = plant(json.loads(json.dumps(records[source]())))
        assert len(secrets) >= 100
        # The test itself finds them where they are.
        assert len(leaks(json.dumps(planted).encode(), secrets)) >= len(secrets) - 3
        public = Redaction().redact(planted)
        assert not list(record_problems(public))
        assert leaks(json.dumps(public, ensure_ascii=False).encode(), secrets) == []

    def test_evidence_stays(self) -> None:
        record = json.loads(json.dumps(make_record(on=A100)))
        planted, _ = plant(record)
        public = Redaction().redact(planted)
        for name in EVIDENCE.split():
            expected, found = (get_path(each, *name.split(".")) for each in (record, public))
            if name == "effective_settings":
                expected, found = ({key: each[key] for key in expected} for each in (expected, found))
            assert found == expected, name

    def test_a_record_without_secrets_loses_only_host_command_and_build(self) -> None:
        public = Redaction().redact(make_record(on=A100))
        assert public["redacted"]["fields"] == [
            "config.workload.name", "environment.command", "environment.host", "environment.kernel"
        ]  # fmt: skip

    def test_hosts_stay_apart(self) -> None:
        redaction = Redaction()
        ranks = [{"host": name} for name in ("Node1.lab.example", "node1", "node2", "NODE2.lab.example", "node12")]
        record = seal({**make_record(on=A100), "parallel": {"ranks": ranks}})
        hosts = [rank["host"] for rank in redaction.redact(record)["parallel"]["ranks"]]
        assert hosts[0] == hosts[1]
        assert hosts[2] == hosts[3]
        assert len({*hosts}) == 3

    def test_hosts_of_two_bundles_are_never_the_same(self) -> None:
        first, *others = (make_record(on=A100, process=process) for process in (1, 2, 3))
        hosts = []
        for other in others:
            redaction = Redaction(tag=tag_of([first, other]))
            hosts += [redaction.redact(each)["environment"]["host"] for each in (first, other)]
        assert len({*hosts[:2]} & {*hosts[2:]}) == 0
        assert tag_of([first, *others]) == tag_of([*others, first])

    def test_what_is_redacted_again_stays_and_what_claims_to_be_redacted_is_redacted(self) -> None:
        once = Redaction(tag="abc123").redact(make_record(on=A100))
        assert Redaction(tag="def456").redact(once) == once
        forged = sealed({**make_record(on=A100), "redacted": {"fields": ["config.out", "Jane Doe"]}, "plugin": "jdoe"})
        public = Redaction().redact(forged)
        assert "plugin" not in public
        assert public["environment"]["host"].startswith("host-")
        assert "Jane Doe" not in public["redacted"]["fields"]

    @pytest.mark.parametrize("host", ["a100", "gpu3.a100.lab", "torch", "ascend910b2"])
    def test_a_host_named_like_a_product_takes_no_evidence_away(self, host: str) -> None:
        for on in (A100, ASCEND):
            record = make_record(on=on)
            public = Redaction().redact(sealed({**record, "environment": {**record["environment"], "host": host}}))
            assert public["device"]["name"] == record["device"]["name"]
            assert public["backend"] == record["backend"]
            assert public["environment"]["packages"] == record["environment"]["packages"]

    @pytest.mark.parametrize(
        "container", ["gpu07.cluster.acme-corp.internal", "harbor.acme:5000", "rené@lab", "jdoe laptop", "acme"]
    )
    def test_a_container_is_one_of_the_known_kinds(self, container: str) -> None:
        record = make_record(on=A100)
        public = Redaction().redact(
            sealed({**record, "environment": {**record["environment"], "container": container}})
        )
        assert public["environment"]["container"] == REDACTED

    @pytest.mark.parametrize(
        ("host", "label"),
        [
            ("m\u00fcller-pc", "on mu\u0308ller-pc"),
            ("wei\u00df-pc", "WEISS-PC"),
            ("q7", "llama Q7"),
            ("node17.lab", "node17"),
        ],
    )
    def test_labels_that_are_kept_lose_hosts_in_any_spelling(self, host: str, label: str) -> None:
        record = make_record(config={"model": {"name": label}})
        record = sealed({**record, "environment": {**record["environment"], "host": host}})
        assert Redaction(keep_labels=True).redact(record)["config"]["model"]["name"] == REDACTED

    def test_keys_that_stay_are_shown(self) -> None:
        throttled = {"power cap": 0.5, "ask john doe in zurich": 0.1}
        telemetry = {"telemetry": {**TELEMETRY, "throttled": throttled}}
        redaction = Redaction()
        public = redaction.redact(sealed(merged(make_record(on=A100), telemetry)))
        assert public["telemetry"]["throttled"] == {"power cap": 0.5}
        assert redaction.kept["telemetry.throttled"] == {"power cap"}

    @pytest.mark.parametrize("glob", ["**/*.jsonl", "shard_[0-9]*.bin", "*.{npy,bin}", "data?.npy", "part-000000000*"])
    def test_patterns_of_files_stay(self, glob: str) -> None:
        public = Redaction().redact(make_record(config={"data": {"glob": glob}}))
        assert public["config"]["data"]["glob"] == glob

    def test_only_times_in_utc_stay(self) -> None:
        public = Redaction().redact(sealed({**make_record(on=A100), "started_at": "2026-11-24T15:30:00+05:30"}))
        assert public["started_at"] == REDACTED

    def test_a_host_named_like_a_vendor_takes_no_device_away(self) -> None:
        record = make_record(on=ASCEND)
        record = seal({**record, "environment": {**record["environment"], "host": "ascend"}})
        public = Redaction().redact(record)
        assert public["device"]["name"] == "Ascend910B2"
        assert public["environment"]["host"].startswith("host-")

    def test_labels_stay_if_they_are_of_published_models_or_their_owner_says_so(self) -> None:
        for name, default in (("llama3.1-8b-modified", "llama3.1-8b-modified"), ("zeppelin-v2", REDACTED)):
            record = make_record(config={"model": {"name": name}})
            assert Redaction().redact(record)["config"]["model"]["name"] == default
            assert Redaction(keep_labels=True).redact(record)["config"]["model"]["name"] == name

    def test_a_private_setting_that_is_part_of_the_work_excludes_the_run(self) -> None:
        record = make_record(config={"data": {"glob": "jdoe@lab.example/*"}})
        with pytest.raises(RecordError, match=r"config\.data\.glob: may be private, and is part of the work"):
            Redaction().redact(record)


class TestCommand:
    def test_shows_before_it_writes(self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert main(["bundle", str(runs)]) == ExitCode.OK
        assert sorted(tmp_path.rglob("*")) == before
        shown = capsys.readouterr()
        assert "bench-1 -> host-" in shown.out
        assert "NVIDIA A100-SXM4-80GB" in shown.out
        assert "nothing written" in shown.err
        assert main(["bundle", str(runs), "--format", "json"]) == ExitCode.OK
        found = json.loads(capsys.readouterr().out)
        assert found["records"] == 6
        assert "backend=cuda" in found["replaced"]["environment.command"]
        assert found["kept"]["device.name"] == ["Ascend910B2", "NVIDIA A100-SXM4-80GB"]

    def test_equal_records_give_an_equal_file(self, runs: Path, bundle: Path, tmp_path: Path) -> None:
        copied = tmp_path / "elsewhere" / "copy"
        shutil.copytree(runs, copied)
        assert main(["bundle", str(copied), "--out", str(tmp_path / "again.zip")]) == ExitCode.OK
        assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
        # Both were written within the two seconds that an archive tells apart.
        with zipfile.ZipFile(bundle) as archive:
            assert {member.date_time for member in archive.infolist()} == {NO_TIME}

    def test_what_is_no_evidence_is_left_out(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "runs"
        save_run(folder / "good", on=A100)
        save_run(folder / "failed", on=A100, process=1, status="oom", error="no memory", finished_steps=9)
        save_run(folder / "impossible", on=A100, process=2, step_seconds=0.001)
        edited = save_run(folder / "edited", on=A100, process=3)
        edited.write_text(edited.read_text().replace('"world_size": 1', '"world_size": 2'))
        assert main(["bundle", str(folder), "--out", str(tmp_path / "x.zip")]) == ExitCode.OK
        assert len(load_runs(tmp_path / "x.zip")) == 1
        shown = capsys.readouterr().err
        for name, reason in (("failed", "no speed"), ("impossible", "above the catalogued"), ("edited", "was changed")):
            [line] = [line for line in shown.splitlines() if f"/{name}/" in line]
            assert reason in line

    def test_mistakes_are_one_line(self, runs: Path, bundle: Path, tmp_path: Path, capsys: Any) -> None:
        for out, expected in ((tmp_path / "x.tar", "ends in .zip"), (bundle, "exists; choose another name")):
            content = bundle.read_bytes()
            assert main(["bundle", str(runs), "--out", str(out)]) == ExitCode.USAGE
            [line] = capsys.readouterr().err.splitlines()
            assert expected in line
            assert bundle.read_bytes() == content


class TestReading:
    def test_a_table_of_a_bundle_is_that_of_its_records(self, runs: Path, bundle: Path) -> None:
        [ours], [theirs] = (make_table(load_tree([path])[0], 0.05).groups for path in (runs, bundle))
        assert [entry.ratio and entry.ratio.estimate for entry in theirs.entries] == [
            entry.ratio and entry.ratio.estimate for entry in ours.entries
        ]
        assert [entry.side.label for entry in theirs.entries] == ["1", "2"]

    def test_a_history_of_a_bundle(self, bundle: Path) -> None:
        series, left = make_history(load_tree([bundle])[0])
        assert len(series) == 2
        assert not left

    def test_the_record_of_a_bundle_and_its_original_count_once(self, runs: Path, bundle: Path) -> None:
        found, problems = load_tree([runs, bundle])
        assert len(found) == 6
        assert all("the same record" in problem for problem in problems)
        assert len(problems) == 6

    def test_compare_reads_bundles(self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a100", "ascend"):
            assert main(["bundle", str(runs / name), "--out", str(tmp_path / f"{name}.zip")]) == ExitCode.OK
        capsys.readouterr()
        assert main(["compare", str(tmp_path / "a100.zip"), str(tmp_path / "ascend.zip"), "--format", "json"]) == 0
        [pair] = json.loads(capsys.readouterr().out)["pairs"]
        assert pair["verdict"] == "slower"

    def test_a_bundle_of_bundles(self, bundle: Path, tmp_path: Path) -> None:
        assert main(["bundle", str(bundle), "--out", str(tmp_path / "again.zip")]) == ExitCode.OK
        assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()

    def test_a_changed_record_is_refused(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def change(contents: dict[str, bytes]) -> None:
            contents["2/1/record.json"] = contents["2/1/record.json"].replace(b'"mean_step_seconds"', b'"mean_seconds"')

        rewritten(bundle, change)
        with pytest.raises(RecordError, match=r"offer\.zip/2/1/record\.json: was changed after the bundle was written"):
            load_runs(bundle)
        found, [problem] = load_tree([bundle])
        assert len(found) == 5
        assert "its SHA-256 differs" in problem
        assert main(["compare", str(bundle), str(bundle)]) == ExitCode.USAGE
        assert "was changed" in capsys.readouterr().err

    def test_a_record_that_was_sealed_again_is_refused(self, bundle: Path) -> None:
        def change(contents: dict[str, bytes]) -> None:
            record = json.loads(contents["1/1/record.json"])
            del record["content_sha256"]
            record["world_size"] = 8
            contents["1/1/record.json"] = json.dumps(seal(record)).encode()

        with pytest.raises(RecordError, match="was changed after the bundle"):
            load_runs(rewritten(bundle, change))

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            (MANIFEST_FILE, b"{}", "damaged or was changed"),
            (MANIFEST_FILE, b'{"bundle_version": 2, "records": []}', "bundle_version 2, this harness reads 1"),
            (MANIFEST_FILE, b"\xff", "damaged or was changed"),
            ("../evil.json", b"{}", "other files than bundle.json lists"),
        ],
    )
    def test_a_changed_list_is_refused(self, bundle: Path, name: str, content: bytes, expected: str) -> None:
        with pytest.raises(RecordError, match=expected):
            load_runs(rewritten(bundle, lambda contents: contents.update({name: content})))

    def test_what_is_no_bundle_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "x.zip"
        file.write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(RecordError, match="cannot be read as a bundle"):
            load_runs(file)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "x")
        with pytest.raises(RecordError, match=r"a zip archive without bundle\.json"):
            load_runs(file)

    @pytest.mark.parametrize("damage", ["name", "version", "lzma", "encrypted", "truncated", "no record", "huge"])
    def test_a_stranger_s_archive_is_one_line(self, damage: str, bundle: Path, capsys: Any) -> None:
        content = bytearray(bundle.read_bytes())
        directory = content.index(b"PK\x01\x02")
        if damage == "name":
            # Its name is said to be UTF-8.
            content[directory + 9] |= 0x08
            content[directory + 46] = 0xFF
        elif damage == "version":
            content[directory + 6] = 99
        elif damage == "lzma":
            content[directory + 10] = zipfile.ZIP_LZMA
        elif damage == "encrypted":
            content[directory + 8] |= 1
        elif damage == "truncated":
            del content[len(content) // 2 :]
        elif damage == "huge":
            content[directory + 24 : directory + 28] = b"\xfe\xff\xff\xff"
        bundle.write_bytes(content)
        if damage == "no record":
            bundle.write_bytes(bundle_content([]))
        for argv in (["compare", str(bundle), str(bundle)], ["table", str(bundle)]):
            assert main(argv) == ExitCode.USAGE
            assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")

    def test_a_bundle_under_another_name_is_read(self, bundle: Path, tmp_path: Path) -> None:
        for name in ("B.ZIP", "bundle.dat"):
            shutil.copy(bundle, tmp_path / name)
            assert len(load_runs(tmp_path / name)) == 6

    def test_runs_that_failed_in_the_same_second_are_two(self, tmp_path: Path) -> None:
        for number in (1, 2):
            record = make_record(status="oom", error=f"rank {number}", finished_steps=0)
            (tmp_path / str(number)).mkdir()
            write_record(tmp_path / str(number), record)
        found, problems = load_tree([tmp_path])
        assert (len(found), problems) == (2, [])

    def test_a_report_names_no_command_of_a_bundle(self, bundle: Path) -> None:
        [side] = load_run_groups([bundle], ["theirs"])
        assert reproduction(side) == "theirs: its command is not published"

    def test_a_record_that_is_not_redacted_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "x.zip"
        file.write_bytes(bundle_content([[copy.deepcopy(make_record(on=A100))]]))
        with pytest.raises(RecordError, match="is not redacted"):
            load_runs(file)
