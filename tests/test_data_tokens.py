"""Data set of token files: formats, memory mapping, windows that are each used once per epoch, and errors."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.composition import load
from harness.config import Config, DataConfig
from harness.errors import DataError
from harness.workload.data import Dataset, open_dataset
from harness.workload.data.tokens import map_tokens

SEQ_LEN = 16
# All tokens differ, so that its first token identifies a window.
TOKENS = np.random.default_rng(4).permutation(60_000)[:5000]
BASE_WORDS = ["model=tiny", "workload=smoke", "data=tokens", "data.path=set-below"]


def configure(path: Path, *, vocab_size: int = 60_000, seed: int = 1, seq_len: int = SEQ_LEN, **data: Any) -> Config:
    config = load(BASE_WORDS)
    config.workload.seq_len, config.model.vocab_size, config.seed = seq_len, vocab_size, seed
    for key, value in {"path": path, **data}.items():
        setattr(config.data, key, str(value) if isinstance(value, Path) else value)
    return config


def open_tokens(path: Path, **settings: Any) -> Dataset:
    return open_dataset(configure(path, **settings))


def saved(path: Path, tokens: np.ndarray = TOKENS, dtype: str = "<u2") -> Path:
    if path.suffix == ".npy":
        np.save(path, tokens.astype(dtype))
    else:
        tokens.astype(dtype).tofile(path)
    return path


KINDS: dict[str, tuple[str, str, str]] = {
    # file name, element type written, data.dtype
    "bin uint16": ("t.bin", "<u2", "uint16"),
    "bin uint32": ("t.bin", "<u4", "uint32"),
    "npy uint16": ("t.npy", "<u2", "uint16"),
    "npy uint32": ("t.npy", "<u4", "uint16"),
    "npy int64": ("t.npy", "<i8", "uint16"),
    "npy int32": ("t.npy", "<i4", "uint32"),
    "npy uint64": ("t.npy", "<u8", "uint16"),
    "npy big-endian": ("t.npy", ">u2", "uint16"),
}


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_give_the_same_sequences(self, kind: str, tmp_path: Path) -> None:
        name, written, dtype = KINDS[kind]
        dataset = open_tokens(saved(tmp_path / name, dtype=written), dtype=dtype)
        reference = open_tokens(saved(tmp_path / "reference.bin"))
        for found, expected in (
            (dataset.train(0, 700), reference.train(0, 700)),
            (dataset.held_out(0, 10), reference.held_out(0, 10)),
        ):
            assert found.dtype == np.int64
            assert found.flags["C_CONTIGUOUS"]
            assert np.array_equal(found, expected)
        assert dataset.describe()["train_tokens"] == 4750
        assert dataset.describe()["held_out_tokens"] == 250

    @pytest.mark.parametrize("kind", KINDS)
    def test_are_mapped_read_only_and_not_read(self, kind: str, tmp_path: Path) -> None:
        name, written, dtype = KINDS[kind]
        path = saved(tmp_path / name, dtype=written)
        tokens, _, _ = map_tokens(path, configure(path, dtype=dtype).data)
        assert isinstance(tokens, np.memmap)
        assert not tokens.flags["WRITEABLE"]
        assert np.array_equal(tokens, TOKENS)

    def test_rows_are_the_callers_own(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "t.bin")
        dataset, before = open_tokens(path), path.read_bytes()
        rows = dataset.train(0, 5)
        kept = rows.copy()
        rows[:] = 0
        assert np.array_equal(dataset.train(0, 5), kept)
        assert path.read_bytes() == before

    def test_description(self, tmp_path: Path) -> None:
        found = open_tokens(saved(tmp_path / "t.bin"), eval_fraction=0.2).describe()
        assert found == {
            "name": "tokens",
            "format": "raw",
            "dtype": "uint16",
            "size_bytes": 10000,
            "entropy_floor_nats": None,
            "unigram_entropy_nats": None,
            "train_tokens": 4000,
            "train_sequences": 249,
            "held_out_tokens": 1000,
            "held_out_sequences": 62,
        }


class TestWindows:
    def test_golden(self, tmp_path: Path) -> None:
        # The order of seed 1 in two epochs; first tokens over SEQ_LEN are window numbers.
        dataset = open_tokens(saved(tmp_path / "t.bin", np.arange(16 * 11 + 1)), eval_fraction=0.001)
        expected = [[10, 7, 4, 1, 9, 6, 3, 0, 8, 5, 2], [8, 4, 0, 7, 3, 10, 6, 2, 9, 5, 1]]
        assert (dataset.train(0, 22)[:, 0] // SEQ_LEN).reshape(2, 11).tolist() == expected

    def test_each_is_visited_once_an_epoch(self, tmp_path: Path) -> None:
        dataset = open_tokens(saved(tmp_path / "t.bin"))
        train = TOKENS[:4750]
        count = (len(train) - 1) // SEQ_LEN
        position = {int(token): place for place, token in enumerate(train)}
        orders = []
        for epoch in range(5):
            rows = dataset.train(epoch * count, count)
            starts = [position[int(row[0])] for row in rows]
            assert sorted(starts) == list(range(0, count * SEQ_LEN, SEQ_LEN))
            for row, start in zip(rows, starts, strict=True):
                assert np.array_equal(row, train[start : start + SEQ_LEN + 1])
            orders.append(tuple(starts))
        assert len(set(orders)) == 5
        assert tuple(sorted(orders[0])) not in orders

    @pytest.mark.parametrize("windows", [1, 2, 3, 4, 6, 12, 30, 97, 210, 256])
    def test_any_number_of_them(self, windows: int, tmp_path: Path) -> None:
        tokens = np.arange(windows * SEQ_LEN + 1)
        dataset = open_tokens(saved(tmp_path / "t.bin", tokens), eval_path=saved(tmp_path / "e.bin"))
        for epoch in (0, 1, 2, 10**9):
            starts = dataset.train(epoch * windows, windows)[:, 0]
            assert sorted(starts) == list(range(0, windows * SEQ_LEN, SEQ_LEN))

    def test_a_batch_may_span_epochs(self, tmp_path: Path) -> None:
        dataset = open_tokens(saved(tmp_path / "t.bin"))
        count = (4750 - 1) // SEQ_LEN
        across = dataset.train(count - 3, 8)
        assert np.array_equal(across, np.concatenate([dataset.train(count - 3, 3), dataset.train(count, 5)]))

    def test_seed_changes_the_order_and_nothing_else(self, tmp_path: Path) -> None:
        path, count = saved(tmp_path / "t.bin"), (4750 - 1) // SEQ_LEN
        one, again, two = (open_tokens(path, seed=seed).train(0, count) for seed in (1, 1, 2))
        assert np.array_equal(one, again)
        assert not np.array_equal(one, two)
        assert sorted(one.tolist()) == sorted(two.tolist())

    @pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5])
    def test_the_held_out_part_is_the_end_and_is_not_trained_on(self, fraction: float, tmp_path: Path) -> None:
        dataset = open_tokens(saved(tmp_path / "t.bin"), eval_fraction=fraction)
        described = dataset.describe()
        train_tokens, held_out_tokens = described["train_tokens"], described["held_out_tokens"]
        assert held_out_tokens == 5000 * fraction
        assert train_tokens + held_out_tokens == 5000
        windows = (train_tokens - 1) // SEQ_LEN
        held_out = dataset.held_out(0, (held_out_tokens - 1) // SEQ_LEN)
        assert not np.intersect1d(dataset.train(0, windows), held_out).size
        end = TOKENS[train_tokens:]
        assert np.array_equal(held_out[:, :-1].ravel(), end[: len(held_out) * SEQ_LEN])

    def test_eval_path_is_held_out_and_path_is_wholly_trained_on(self, tmp_path: Path) -> None:
        path, other = saved(tmp_path / "t.bin"), saved(tmp_path / "e.npy", np.arange(1000) % 77, "<u4")
        dataset = open_tokens(path, eval_path=other)
        assert (dataset.describe()["train_tokens"], dataset.describe()["held_out_tokens"]) == (5000, 1000)
        assert np.array_equal(dataset.held_out(0, 62)[:, :-1].ravel(), np.arange(62 * SEQ_LEN) % 77)
        dataset.require_held_out(62)
        with pytest.raises(DataError, match=r"holds 62 held-out sequences.*workload\.eval_sequences = 63"):
            dataset.require_held_out(63)

    def test_a_distant_sample_is_found_at_once(self, tmp_path: Path) -> None:
        dataset = open_tokens(saved(tmp_path / "t.bin"))
        windows = (4750 - 1) // SEQ_LEN
        epoch, place = divmod(10**12, windows)
        rows = dataset.train(epoch * windows, windows)
        assert len(np.unique(rows[:, 0])) == windows
        assert np.array_equal(dataset.train(10**12, 1)[0], rows[place])


class TestTokensBeyondTheVocabulary:
    def test_are_named(self, tmp_path: Path) -> None:
        tokens = np.arange(5000) % 300
        tokens[40] = 777
        dataset = open_tokens(saved(tmp_path / "t.bin", tokens), vocab_size=300)
        with pytest.raises(DataError, match=r"t\.bin.*token id 777, .*model\.vocab_size = 300;.*set model\.vocab_size"):
            dataset.train(0, 296)

    def test_the_first_id_beyond_is_refused_and_the_last_within_is_not(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "t.bin", np.full(100, 300))
        assert open_tokens(path, vocab_size=301).train(0, 2).max() == 300
        with pytest.raises(DataError, match="token id 300"):
            open_tokens(path, vocab_size=300).train(0, 2)

    def test_are_refused_in_the_held_out_part_too(self, tmp_path: Path) -> None:
        tokens = np.arange(5000) % 300
        tokens[-20] = 777
        with pytest.raises(DataError, match="token id 777"):
            open_tokens(saved(tmp_path / "t.bin", tokens), vocab_size=300).held_out(0, 15)

    def test_of_eval_path_are_blamed_on_eval_path(self, tmp_path: Path) -> None:
        path, other = saved(tmp_path / "t.bin", TOKENS % 300), saved(tmp_path / "other.bin", np.full(100, 777))
        with pytest.raises(DataError, match=r"data\.eval_path=.*other\.bin.*token id 777"):
            open_tokens(path, eval_path=other, vocab_size=300).held_out(0, 2)

    def test_negative_ones_are_named_too(self, tmp_path: Path) -> None:
        tokens = np.arange(5000) % 300
        tokens[40] = -3
        dataset = open_tokens(saved(tmp_path / "t.npy", tokens, "<i4"), vocab_size=300)
        with pytest.raises(DataError, match=r"t\.npy.*token id -3"):
            dataset.train(0, 296)


def truncated_npy(path: Path) -> None:
    whole = saved(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, tokens=TOKENS)


def two_arrays() -> bytes:
    content = io.BytesIO()
    np.save(content, TOKENS.astype("<u2"))
    np.save(content, TOKENS.astype("<u2"))
    return content.getvalue()


MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("t.bin", lambda path: None, r"No such file.*check data\.path"),
    "missing npy": ("t.npy", lambda path: None, r"No such file.*check data\.path"),
    "empty folder": ("t.bin", lambda path: path.mkdir(), r"no file below it matches data\.glob"),
    "other name": ("t.txt", lambda path: path.write_bytes(b"1234"), r"expected a name that ends in \.npy or \.bin"),
    "empty": ("t.bin", lambda path: path.write_bytes(b""), r"holds 0 bytes.*empty or truncated"),
    "pipe": ("t.npy", os.mkfifo, r"is a named pipe \(FIFO\), expected a \.npy or \.bin file"),
    "pipe as bin": ("t.bin", os.mkfifo, r"is a named pipe \(FIFO\)"),
    "link to a device": ("t.bin", lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "text": ("t.bin", lambda path: path.write_text("Grüße an alle. " * 50), "is text.*use data=text"),
    "index": ("t.idx", lambda path: path.write_bytes(b"MMIDIDX\0\0"), r"is the index of a Megatron-LM data set"),
    "two arrays": (
        "t.npy",
        lambda path: path.write_bytes(two_arrays()),
        "holds 10128 bytes after its array of 5000 tokens",
    ),
    "raw npy": ("t.npy", TOKENS.tofile, r"without the \.npy header, as OLMo's"),
    "odd": ("t.bin", lambda path: path.write_bytes(b"x" * 101), r"holds 101 bytes.*multiple of 2 .uint16.*data\.dtype"),
    "empty npy": ("t.npy", lambda path: path.write_bytes(b""), r"not a complete \.npy file"),
    "no npy": (
        "t.npy",
        lambda path: path.write_bytes(b"no numbers at all"),
        r"a file without the \.npy header.*let its name end in \.bin",
    ),
    "truncated npy": ("t.npy", truncated_npy, r"not a complete \.npy file.*write it again"),
    "floats": (
        "t.npy",
        lambda path: np.save(path, np.zeros(100)),
        r"holds float64.*expected one dimension of integers",
    ),
    "truth values": ("t.npy", lambda path: np.save(path, np.zeros(100, bool)), r"holds bool.*integers"),
    "two dimensions": (
        "t.npy",
        lambda path: np.save(path, TOKENS.reshape(50, 100)),
        r"shape \(50, 100\), expected one",
    ),
    "no dimension": ("t.npy", lambda path: np.save(path, np.int64(5)), r"shape \(\), expected one dimension"),
    "objects": ("t.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), r"not a complete \.npy file"),
    "several arrays": ("t.npy", archive, r"t\.npy: .*is a zip archive.*unpack it"),
    "no tokens": ("t.npy", lambda path: np.save(path, TOKENS[:0]), r"holds 0 training tokens"),
    "too few": ("t.bin", lambda path: saved(path, TOKENS[:17]), r"holds 17 training tokens.*seq_len \+ 1 = 18"),
}


class TestMistakes:
    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_are_named_with_their_file_and_remedy(self, mistake: str, tmp_path: Path) -> None:
        name, make, named = MISTAKES[mistake]
        make(tmp_path / name)
        with pytest.raises(DataError, match=named) as caught:
            open_tokens(tmp_path / name, seq_len=17)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_in_eval_path_are_blamed_on_eval_path(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere\.bin.*check data\.eval_path"):
            open_tokens(saved(tmp_path / "t.bin"), eval_path=tmp_path / "nowhere.bin")


IDS = np.random.default_rng(2).zipf(1.2, 20_000) % 50_000
TYPES: dict[str, tuple[str, str, str]] = {
    # element type written, data.dtype, the message
    "uint32 as uint16": ("<u4", "uint16", r"holds uint32, not data\.dtype=uint16.*set data\.dtype=uint32"),
    "uint16 as uint32": ("<u2", "uint32", r"holds uint16, not data\.dtype=uint32.*set data\.dtype=uint16"),
    "int64 as uint16": ("<i8", "uint16", r"holds int64, not data\.dtype=uint16.*numpy\.save"),
    "int64 as uint32": ("<i8", "uint32", r"holds int64, not data\.dtype=uint32.*numpy\.save"),
    "big-endian uint16": (">u2", "uint16", "holds big-endian uint16"),
    "big-endian uint32": (">u4", "uint32", "holds big-endian uint32"),
    "float32": ("<f4", "uint16", "holds float32"),
    "float64": ("<f8", "uint32", "holds float64"),
}


class TestTypes:
    @pytest.mark.parametrize("case", TYPES)
    def test_another_than_data_dtype_is_refused_by_name(self, case: str, tmp_path: Path) -> None:
        written, dtype, named = TYPES[case]
        path = saved(tmp_path / "t.bin", IDS, written)
        with pytest.raises(DataError, match=named):
            open_tokens(path, dtype=dtype, vocab_size=2**31 - 1)

    def test_small_ids_in_float32_are_no_big_endian_integers(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "t.bin", IDS % 256, "<f4")
        with pytest.raises(DataError, match="holds float32"):
            open_tokens(path, dtype="uint32", vocab_size=2**31 - 1)

    def test_ids_beyond_65535_are_known_as_uint32(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "t.bin", np.random.default_rng(3).integers(0, 128_000, 20_000), "<u4")
        with pytest.raises(DataError, match="holds uint32"):
            open_tokens(path, vocab_size=65_536)
        assert open_tokens(path, dtype="uint32", vocab_size=128_000).describe()["train_tokens"] == 19_000

    @pytest.mark.parametrize("dtype", ["uint16", "uint32"])
    @pytest.mark.parametrize("vocab_size", [2, 5, 65, 256, 50_257, 65_536])
    def test_tokens_of_any_vocabulary_are_read(self, vocab_size: int, dtype: str, tmp_path: Path) -> None:
        for number, ids in enumerate((np.random.default_rng(4).integers(0, vocab_size, 6000), IDS % vocab_size)):
            path = saved(tmp_path / f"{number}.bin", ids, dtype)
            tokens, _, _ = map_tokens(path, DataConfig(name="tokens", dtype=dtype))
            assert np.array_equal(tokens, ids)


def megatron(folder: Path, ids: np.ndarray, dtype: str = "<i4", code: int = 4, lengths: tuple[int, ...] = ()) -> Path:
    """Write a Megatron-LM data set of documents of these lengths, and return its .bin file."""
    counts = np.array(lengths or (len(ids),), dtype="<i4")
    starts = np.concatenate([[0], np.cumsum(counts[:-1])]) * np.dtype(dtype).itemsize
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + bytes([code]) + len(counts).to_bytes(8, "little")
    index = head + (len(counts) + 1).to_bytes(8, "little") + counts.tobytes() + starts.astype("<i8").tobytes()
    (folder / "m.idx").write_bytes(index + np.arange(len(counts) + 1, dtype="<i8").tobytes())
    return saved(folder / "m.bin", ids, dtype)


def llmc(path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> Path:
    """Write a file with llm.c's header."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    return path


def all_tokens(path: Path) -> list[int]:
    return np.asarray(map_tokens(path, DataConfig(name="tokens", dtype="uint16"))[0]).tolist()


class TestHeaders:
    @pytest.mark.parametrize(("dtype", "code"), [("<i4", 4), ("<u2", 8), ("<i8", 5)])
    def test_the_index_of_megatron_states_the_type(self, dtype: str, code: int, tmp_path: Path) -> None:
        path = megatron(tmp_path, IDS % 30_000, dtype, code, lengths=(100, 1, len(IDS) - 101))
        assert all_tokens(path) == (IDS % 30_000).tolist()
        described = open_tokens(path).describe()
        assert (described["format"], described["dtype"]) == ("Megatron-LM", np.dtype(dtype).name)

    def test_an_index_of_other_data_is_refused(self, tmp_path: Path) -> None:
        path = megatron(tmp_path, IDS)
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(DataError, match=r"m\.idx: does not describe the 79996 bytes of m\.bin"):
            open_tokens(path)
        for content, named in ((b"TNTIDX\0\0", "fairseq"), (b"?", "unknown format"), (b"MMIDIDX\0\0", "Megatron")):
            (tmp_path / "m.idx").write_bytes(content)
            with pytest.raises(DataError, match=rf"m\.idx: is .*{named}"):
                open_tokens(path)

    @pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
    def test_the_header_of_llm_c_is_read_past(self, magic: int, version: int, dtype: str, tmp_path: Path) -> None:
        path = llmc(tmp_path / "t.bin", IDS, magic, version, dtype)
        assert all_tokens(path) == IDS.tolist()
        assert open_tokens(path).describe()["format"] == "llm.c"

    def test_a_header_of_llm_c_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        path = llmc(tmp_path / "t.bin", IDS)
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(DataError, match=r"39998 bytes after llm\.c's header, expected 20000 tokens of 2 bytes"):
            open_tokens(path)
        with pytest.raises(DataError, match="version 9, which is not known"):
            open_tokens(llmc(path, IDS, version=9))
        with pytest.raises(DataError, match="evaluation"):
            open_tokens(llmc(path, IDS, magic=20240522))

    def test_a_chunk_of_a_streaming_data_set_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "index.json").write_text('{"chunks": [{"filename": "chunk-0-0.bin"}]}')
        with pytest.raises(DataError, match=r"chunk of the data set that .*index\.json describes"):
            open_tokens(saved(tmp_path / "chunk-0-0.bin"))


class TestHeldOut:
    @pytest.mark.parametrize("how", ["same name", "symbolic link", "hard link", "copy", "copy as npy"])
    def test_data_that_are_trained_on_are_refused(self, how: str, tmp_path: Path) -> None:
        path, other = saved(tmp_path / "t.bin"), tmp_path / "e.bin"
        if how == "same name":
            other = tmp_path / "." / "t.bin"
        elif how == "symbolic link":
            other.symlink_to(path)
        elif how == "hard link":
            other.hardlink_to(path)
        else:
            other = saved(other if how == "copy" else tmp_path / "e.npy")
        with pytest.raises(DataError, match=r"data\.eval_path: .* is part of data\.path too.*data\.eval_fraction"):
            open_tokens(path, eval_path=other)


class TestChanges:
    def test_an_unchanged_file_passes(self, tmp_path: Path) -> None:
        dataset = open_tokens(saved(tmp_path / "t.bin"))
        dataset.train(0, 4)
        dataset.check_unchanged()

    @pytest.mark.parametrize("change", ["grown", "rewritten", "replaced", "removed"])
    @pytest.mark.parametrize("which", ["path", "eval_path"])
    def test_a_file_that_changes_during_the_run_is_named(self, which: str, change: str, tmp_path: Path) -> None:
        files = {"path": saved(tmp_path / "t.bin"), "eval_path": saved(tmp_path / "e.bin", TOKENS[::-1])}
        dataset = open_tokens(files["path"], eval_path=files["eval_path"])
        file = files[which]
        if change == "grown":
            with open(file, "ab") as end:
                end.write(b"\0\0")
        elif change == "rewritten":
            with open(file, "r+b") as start:
                start.write(b"\1\0")
            os.utime(file, ns=(1, 1))
        elif change == "replaced":
            saved(tmp_path / "n.bin")
            os.replace(tmp_path / "n.bin", file)
        else:
            file.unlink()
        with pytest.raises(DataError, match=f"{file.name}: has changed since the run began"):
            dataset.check_unchanged()


class TestShards:
    """A folder of token files is one file, in the order of their names."""

    def shards(self, folder: Path, *parts: np.ndarray) -> Path:
        folder.mkdir()
        for number, part in enumerate(parts):
            np.save(folder / f"{number:03d}.npy", part)
        return folder

    def test_are_read_as_one(self, tmp_path: Path) -> None:
        whole = np.arange(1000, dtype=np.uint16) % 251
        np.save(tmp_path / "whole.npy", whole)
        folder = self.shards(tmp_path / "shards", whole[:7], whole[7:400], whole[400:401], whole[401:])
        (folder / "README.md").write_text("what this is")
        one, several = open_tokens(tmp_path / "whole.npy", seq_len=16), open_tokens(folder, seq_len=16)
        assert np.array_equal(one.train(0, 50), several.train(0, 50))
        assert np.array_equal(one.held_out(0, 3), several.held_out(0, 3))
        counts = {"files_read": 4, "files_not_matched": 1, "links_repeated": 0}
        size = {"size_bytes": several.describe()["size_bytes"]}
        assert several.describe() == one.describe() | counts | size

    def test_what_is_left_out_is_counted(self, tmp_path: Path) -> None:
        folder = self.shards(tmp_path / "shards", np.zeros(100, np.uint16), np.zeros(100, np.uint16))
        (folder / "002.npy.part").write_bytes(b"cut off")
        (folder / "copy.npy").symlink_to("000.npy")
        for glob, left_out in (("*", (2, 1, 1)), ("001*", (1, 3, 0))):
            found = open_tokens(folder, seq_len=9, glob=glob).describe()
            assert (found["files_read"], found["files_not_matched"], found["links_repeated"]) == left_out

    def test_of_llmc(self, tmp_path: Path) -> None:
        folder = tmp_path / "shards"
        folder.mkdir()
        for number in range(3):
            header = np.zeros(256, dtype="<i4")
            header[:3] = 20240520, 1, 100
            content = header.tobytes() + np.full(100, number, dtype="<u2").tobytes()
            (folder / f"train_{number:06d}.bin").write_bytes(content)
        found = open_tokens(folder, seq_len=10)
        assert found.describe()["format"] == "llm.c"
        assert found.describe()["train_tokens"] + found.describe()["held_out_tokens"] == 300

    def test_of_several_types_are_refused(self, tmp_path: Path) -> None:
        folder = self.shards(tmp_path / "shards", np.zeros(100, np.uint16), np.zeros(100, np.uint32))
        with pytest.raises(DataError, match=r"several kinds: 000.npy is npy uint16, 001.npy npy uint32; select one"):
            open_tokens(folder, seq_len=10)

    def test_without_any(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match=r"holds no file whose name ends in .npy or .bin; check data.path"):
            open_tokens(tmp_path, seq_len=10)

    def test_a_change_of_one_is_noticed(self, tmp_path: Path) -> None:
        folder = self.shards(tmp_path / "shards", np.zeros(100, np.uint16), np.zeros(100, np.uint16))
        found = open_tokens(folder, seq_len=10)
        np.save(folder / "001.npy", np.ones(101, np.uint16))
        with pytest.raises(DataError, match=r"001.npy: has changed since"):
            found.check_unchanged()

    def test_part_of_what_is_held_out(self, tmp_path: Path) -> None:
        folder = self.shards(tmp_path / "shards", np.zeros(100, np.uint16), np.zeros(100, np.uint16))
        with pytest.raises(DataError, match=r"001.npy is part of data.path too"):
            open_tokens(folder, seq_len=10, eval_path=folder / "001.npy")


@pytest.mark.parametrize("empty", [0.0, 0.5, 1.0])
def test_long_stretches_of_one_token_are_said(empty: float, tmp_path: Path) -> None:
    """As in a copy that was cut off, or a mask in place of the tokens."""
    tokens = np.random.default_rng(5).integers(0, 5000, 400_000)
    tokens[round((1 - empty) * len(tokens)) :] = 0
    lines = open_tokens(saved(tmp_path / "a.bin", tokens)).cautions()
    assert ["one token id is repeated; check the file" in line for line in lines] == ([True] if empty else [])
