"""Data set of text files: order of the files, tokens, windows that are each used once per epoch, and errors."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from harness.composition import load
from harness.config import Config
from harness.errors import DataError
from harness.workload.data import Dataset, open_dataset
from harness.workload.data.base import unigram_entropy
from tests.conftest import PROJECT

BASE_WORDS = ["model=tiny", "workload=smoke", "data=text", "data.path=set-below"]


def configure(path: Path, *, seq_len: int = 1, vocab_size: int = 256, seed: int = 1, **data: Any) -> Config:
    config = load(BASE_WORDS)
    config.workload.seq_len, config.model.vocab_size, config.seed = seq_len, vocab_size, seed
    for key, value in {"path": path, **data}.items():
        setattr(config.data, key, str(value) if isinstance(value, Path) else value)
    return config


def open_text(path: Path, **settings: Any) -> Dataset:
    return open_dataset(configure(path, **settings))


def tokens_of(path: Path, **settings: Any) -> list[int]:
    """Return all tokens of a file or folder in order: held-out windows are not shuffled."""
    dataset = open_text(PROJECT / "LICENSE", eval_path=path, **settings)
    rows = dataset.held_out(0, dataset.describe()["held_out_tokens"] - 1)
    return [*rows[:, 0].tolist(), int(rows[-1, 1])]


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


FILES: dict[str, str | bytes] = {"b.txt": "bb", "a/z.txt": "az", "a.txt": "a", "a/b/c.txt": "abc", "Z.txt": "Z"}
# Sorted by relative POSIX path: "." comes before "/", capitals before small letters.
FILES_IN_ORDER = list(b"Z\0a\0abc\0az\0bb\0")


class TestBytes:
    def test_are_the_files_own_and_each_document_ends_with_a_separator(self, tmp_path: Path) -> None:
        content = "\ufeffZeile 1\r\n\tnaïve 漢字 🎉\n".encode()
        write(tmp_path, {"a.txt": content})
        assert tokens_of(tmp_path / "a.txt") == [*content, 0]
        write(tmp_path, {"b.txt": "two"})
        assert tokens_of(tmp_path) == [*content, 0, *b"two", 0]

    def test_an_empty_file_is_no_document(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "one", "b.txt": "", "c.txt": "two"})
        assert tokens_of(tmp_path) == list(b"one\0two\0")

    def test_need_a_vocabulary_of_256(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "some text"})
        with pytest.raises(DataError, match=r"model\.vocab_size: found 255, .*256.*set model\.vocab_size=256"):
            open_text(tmp_path, vocab_size=255)
        assert open_text(tmp_path, vocab_size=256).train(0, 1).shape == (1, 2)


class TestFiles:
    @pytest.mark.parametrize(
        "names", [list(FILES), list(reversed(FILES)), sorted(FILES)], ids=["", "reversed", "sorted"]
    )
    def test_order_of_creation_does_not_matter(self, names: list[str], tmp_path: Path) -> None:
        write(tmp_path, {name: FILES[name] for name in names})
        assert tokens_of(tmp_path) == FILES_IN_ORDER

    def test_place_of_the_folder_does_not_matter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        one = write(tmp_path / "z, it's (1)", FILES)
        two = write(tmp_path / "a" / "ü", FILES)
        assert tokens_of(one) == tokens_of(two) == FILES_IN_ORDER
        assert open_text(one).describe() == open_text(two).describe()
        monkeypatch.chdir(two)
        assert tokens_of(Path(".")) == tokens_of(Path("../ü")) == FILES_IN_ORDER

    @pytest.mark.parametrize(
        ("glob", "expected"),
        [
            ("*.txt", "Z a abc az bb"),
            ("a.txt", "a"),
            ("?.txt", "Z a abc az bb"),
            ("[abc].txt", "a abc bb"),
            ("a/*.txt", "az"),
            ("**/*.txt", "Z a abc az bb"),
            ("*.md", "markdown"),
        ],
    )
    def test_glob_is_matched_in_every_sub_folder(self, glob: str, expected: str, tmp_path: Path) -> None:
        write(tmp_path, {**FILES, "a/readme.md": "markdown"})
        text = "".join(f"{word}\0" for word in expected.split())
        assert tokens_of(tmp_path, glob=glob) == list(text.encode())

    def test_glob_does_not_apply_to_a_file_that_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, FILES)
        assert tokens_of(tmp_path / "b.txt", glob="*.md") == list(b"bb\0")

    def test_description(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "x" * 60, "b.txt": "y" * 38})
        found = open_text(tmp_path, eval_fraction=0.1).describe()
        assert found["name"] == "text"
        assert found["tokenizer"] == "bytes"
        assert (found["files_read"], found["files_skipped"], found["size_bytes"]) == (2, {}, 98)
        assert (found["train_tokens"], found["held_out_tokens"]) == (90, 10)
        assert found["entropy_floor_nats"] is None
        # 60 x, 29 y and a separator.
        expected = -sum(n / 90 * math.log(n / 90) for n in (60, 29, 1))
        assert found["unigram_entropy_nats"] == pytest.approx(expected, rel=1e-12)

    def test_description_differs_with_the_content(self, tmp_path: Path) -> None:
        one = open_text(write(tmp_path / "1", {"a.txt": "abcdef"})).describe()
        two = open_text(write(tmp_path / "2", {"a.txt": "abcdeg"})).describe()
        assert one["content_sha256"] != two["content_sha256"]


NOT_ALL_UTF8: dict[str, str | bytes] = {"a.txt": "first", "b.bin": b"caf\xe9 \xff\xfe", "c.txt": "third"}


class TestFilesThatAreNotUtf8:
    def test_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, NOT_ALL_UTF8)
        with pytest.raises(DataError, match=r"b\.bin: not UTF-8 text at byte 3.*data\.invalid_files=skip"):
            open_text(tmp_path)

    def test_are_skipped_and_counted_if_asked(self, tmp_path: Path) -> None:
        write(tmp_path, NOT_ALL_UTF8)
        assert tokens_of(tmp_path, invalid_files="skip") == list(b"first\0third\0")
        found = open_text(tmp_path, invalid_files="skip").describe()
        assert (found["files_read"], found["files_skipped"], found["size_bytes"]) == (2, {"not UTF-8 text": 1}, 10)

    def test_nothing_but_skipped_files_is_an_error(self, tmp_path: Path) -> None:
        write(tmp_path, {"b.bin": b"\xff"})
        with pytest.raises(DataError, match=r"holds no text in 1 files \(0 empty, 1 skipped as not UTF-8 text"):
            open_text(tmp_path, invalid_files="skip")


def numbered(folder: Path, count: int) -> Path:
    """Write `count` characters, of which no two aligned windows of four are equal."""
    return write(folder, {"a.txt": "".join(f"{n:04d}" for n in range(count // 4))}) / "a.txt"


class TestWindows:
    SEQ_LEN = 16

    def rows(self, path: Path, first: int, count: int, **settings: Any) -> np.ndarray:
        return open_text(path, seq_len=self.SEQ_LEN, **settings).train(first, count)

    def test_each_is_visited_once_an_epoch(self, tmp_path: Path) -> None:
        path = numbered(tmp_path, 4000)
        dataset = open_text(path, seq_len=self.SEQ_LEN)
        count = (dataset.describe()["train_tokens"] - 1) // self.SEQ_LEN
        text = path.read_bytes()
        expected = sorted(list(text[start : start + 17]) for start in range(0, count * 16, 16))
        epochs = [dataset.train(epoch * count, count) for epoch in range(4)]
        for rows in epochs:
            assert sorted(rows.tolist()) == expected
        # Each epoch has another order, and none has the file's.
        orders = {tuple(rows[:, :4].ravel()) for rows in epochs}
        assert len(orders) == 4
        assert tuple(np.array(expected)[:, :4].ravel()) not in orders

    def test_are_int64_and_do_not_depend_on_count_and_order(self, tmp_path: Path) -> None:
        path = numbered(tmp_path, 4000)
        whole = self.rows(path, 0, 600)
        assert whole.dtype == np.int64
        assert whole.shape == (600, 17)
        dataset = open_text(path, seq_len=self.SEQ_LEN)
        for first, count in ((599, 1), (0, 1), (200, 100), (240, 7), (0, 600)):
            assert np.array_equal(dataset.train(first, count), whole[first : first + count])

    def test_seed_changes_the_order_and_nothing_else(self, tmp_path: Path) -> None:
        path = numbered(tmp_path, 4000)
        count = (open_text(path, seq_len=16).describe()["train_tokens"] - 1) // 16
        one, again, two = (self.rows(path, 0, count, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one, again)
        assert not np.array_equal(one, two)
        assert sorted(one.tolist()) == sorted(two.tolist())

    def test_the_held_out_part_is_the_end_and_is_not_trained_on(self, tmp_path: Path) -> None:
        path = numbered(tmp_path, 4000)
        dataset = open_text(path, seq_len=16, eval_fraction=0.25)
        found = dataset.describe()
        assert found["held_out_tokens"] == 1000
        assert found["train_tokens"] == 3001  # with the separator
        stream = [*path.read_bytes(), 0]
        held_out = dataset.held_out(0, 62)
        assert held_out.tolist() == [stream[3001 + 16 * n : 3001 + 16 * n + 17] for n in range(62)]
        train = dataset.train(0, (3001 - 1) // 16)
        assert not {tuple(row) for row in train[:, :16]} & {tuple(row) for row in held_out[:, :16]}
        dataset.require_held_out(62)
        with pytest.raises(DataError, match=r"holds 62 held-out.*workload\.eval_sequences = 63.*data\.eval_fraction"):
            dataset.require_held_out(63)

    def test_the_seed_does_not_change_what_is_held_out(self, tmp_path: Path) -> None:
        path = numbered(tmp_path, 4000)
        one, two = (open_text(path, seq_len=16, seed=seed).held_out(0, 10) for seed in (1, 2))
        assert np.array_equal(one, two)

    def test_eval_path_is_held_out_and_path_is_wholly_trained_on(self, tmp_path: Path) -> None:
        train, held_out = write(tmp_path / "t", {"a.txt": "t" * 99}), write(tmp_path / "h", {"b.txt": "h" * 49})
        dataset = open_text(train, eval_path=held_out, seq_len=7)
        assert (dataset.describe()["train_tokens"], dataset.describe()["held_out_tokens"]) == (100, 50)
        assert set(dataset.held_out(0, 7).ravel().tolist()) == {ord("h"), 0}
        assert set(dataset.train(0, 14).ravel().tolist()) == {ord("t")}

    def test_a_distant_sample_is_found_at_once(self, tmp_path: Path) -> None:
        path = numbered(tmp_path, 4000)
        dataset = open_text(path, seq_len=16)
        count = (dataset.describe()["train_tokens"] - 1) // 16
        epoch = 10**12 // count
        rows = dataset.train(epoch * count, count)
        assert sorted(rows.tolist()) == sorted(dataset.train(0, count).tolist())
        assert np.array_equal(dataset.train(10**12, 1)[0], rows[10**12 - epoch * count])

    def test_too_little_text_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "x" * 16})
        with pytest.raises(DataError, match=r"holds 17 training tokens, expected at least workload\.seq_len \+ 1 = 18"):
            open_text(tmp_path, seq_len=17)
        # One window: every epoch is that one.
        assert open_text(tmp_path, seq_len=16).train(5, 2).tolist() == [[*b"x" * 16, 0]] * 2


def word_tokenizer(path: Path, vocabulary: dict[str, int], **settings: Any) -> Path:
    """Save a tokenizer.json with this vocabulary."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    if "truncation" in settings:
        tokenizer.enable_truncation(settings["truncation"])
    if "padding" in settings:
        tokenizer.enable_padding(length=settings["padding"], pad_id=0, pad_token="?")
    if "end" in settings:
        end = settings["end"]
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
        )
    tokenizer.save(str(path))
    return path


VOCABULARY = {"?": 0, "the": 1, "cat": 2, "sat": 3, "<end>": 4}


class TestTokenizer:
    def test_its_ids_are_the_tokens(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat\nsat ", "b.txt": "the dog sat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY)
        assert tokens_of(tmp_path / "text", tokenizer=tokenizer, vocab_size=5) == [1, 2, 3, 1, 0, 3]
        found = open_text(tmp_path / "text", tokenizer=tokenizer, vocab_size=5, eval_fraction=0.4).describe()
        assert found["tokenizer"] == "words.json"
        assert (found["train_tokens"], found["held_out_tokens"]) == (4, 2)
        assert found["unigram_entropy_nats"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))

    def test_a_trained_one(self, tmp_path: Path) -> None:
        # Byte-level BPE, as GPT-2's; the expected ids are the tokenizers package's own.
        text = "Grüße, low lower lowest newer newest wide wider widest 🎉 " * 20
        write(tmp_path / "text", {"a.txt": text})
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel()  # type: ignore[assignment]
        from tokenizers.trainers import BpeTrainer

        trained.train_from_iterator([text], BpeTrainer(vocab_size=300, show_progress=False))
        trained.save(str(tmp_path / "bpe.json"))
        found = tokens_of(tmp_path / "text", tokenizer=tmp_path / "bpe.json", vocab_size=300)
        assert found == trained.encode(text).ids
        assert len(found) < len(text)

    def test_its_own_end_of_document_is_kept(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat", "b.txt": "sat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY, end="<end>")
        assert tokens_of(tmp_path / "text", tokenizer=tokenizer) == [1, 2, 4, 3, 4]

    def test_every_token_of_a_document_is_read_though_the_file_asks_for_truncation(self, tmp_path: Path) -> None:
        # Published tokenizer.json files often carry the training run's truncation and padding.
        write(tmp_path / "text", {"a.txt": "the cat sat " * 50})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY, truncation=8)
        assert tokens_of(tmp_path / "text", tokenizer=tokenizer) == [1, 2, 3] * 50

    def test_nothing_is_added_to_a_document_though_the_file_asks_for_padding(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY, padding=9)
        assert tokens_of(tmp_path / "text", tokenizer=tokenizer) == [1, 2, 3]

    def test_one_that_is_too_large_for_the_model_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY)
        with pytest.raises(DataError, match=r"model\.vocab_size: found 4, but words\.json has 5 different tokens"):
            open_text(tmp_path / "text", tokenizer=tokenizer, vocab_size=4)

    def test_gaps_between_its_ids_are_allowed(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat the cat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", {"?": 0, "the": 1, "cat": 20, "sat": 30})
        assert tokens_of(tmp_path / "text", tokenizer=tokenizer, vocab_size=31) == [1, 20, 30, 1, 20]

    def test_an_id_beyond_the_vocabulary_is_refused_though_there_are_few(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat the cat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", {"?": 0, "the": 1, "cat": 20, "sat": 30})
        with pytest.raises(DataError, match=r"model\.vocab_size"):
            open_text(tmp_path / "text", tokenizer=tokenizer, vocab_size=10).train(0, 4)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat"})
        with pytest.raises(DataError, match=r"nowhere\.json: cannot be read: No such file .*; check data\.tokenizer"):
            open_text(tmp_path / "text", tokenizer=tmp_path / "nowhere.json")

    @pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "BPE"}}', "no json"])
    def test_a_file_of_another_format_is_named(self, content: str, tmp_path: Path) -> None:
        write(tmp_path, {"text/a.txt": "the cat sat", "t.json": content})
        with pytest.raises(
            DataError, match=r"t\.json: the tokenizers package cannot read it: .*give a tokenizer\.json"
        ):
            open_text(tmp_path / "text", tokenizer=tmp_path / "t.json")

    def test_the_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY)
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(DataError, match="pip install tokenizers"):
            open_text(tmp_path / "text", tokenizer=tokenizer)


class TestMistakes:
    @pytest.mark.parametrize(
        ("path", "settings", "named"),
        [
            ("nowhere", {}, r"nowhere: cannot be read: No such file .*; check data\.path"),
            ("empty", {}, r"empty: no file below it matches data\.glob='\*', of 0; change"),
            (
                "folder",
                {"glob": "*.md"},
                r"folder: no file below it matches data\.glob='\*\.md', of 2; change data\.glob or",
            ),
            ("folder", {"glob": "/"}, r"data\.glob: found '/', expected a file-name pattern"),
            ("folder/empty.txt", {}, r"empty\.txt: holds no text"),
        ],
    )
    def test_are_named_with_their_remedy(self, path: str, settings: dict[str, str], named: str, tmp_path: Path) -> None:
        write(tmp_path, {"folder/a.txt": "text", "folder/empty.txt": ""})
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=named):
            open_text(tmp_path / path, **settings)

    def test_in_eval_path_are_blamed_on_eval_path(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "some text", "short/b.txt": "h"})
        with pytest.raises(DataError, match=r"nowhere.*data\.eval_path"):
            open_text(tmp_path / "a.txt", eval_path=tmp_path / "nowhere")
        dataset = open_text(tmp_path / "a.txt", eval_path=tmp_path / "short", seq_len=4)
        with pytest.raises(DataError, match=r"data\.eval_path=.*holds 0 held-out") as caught:
            dataset.require_held_out(1)
        assert "data.eval_fraction" not in str(caught.value), "data.eval_fraction is not used with data.eval_path"

    @pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root, and setpriv is missing")
    def test_a_sub_folder_that_cannot_be_read_is_an_error(self, tmp_path: Path) -> None:
        """Otherwise one machine trains on less text than the other without a message."""
        write(tmp_path, {"folder/a.txt": "text", "folder/closed/b.txt": "more text"})
        (tmp_path / "folder" / "closed").chmod(0)
        rights = "-dac_override,-dac_read_search"
        drop = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", "--no-new-privs"]
        program = (
            "import sys; from pathlib import Path; from harness.workload.data.files import find_files\n"
            "print(len(find_files(Path(sys.argv[1]), '*').paths))"
        )
        try:
            done = subprocess.run(
                [*(drop if os.geteuid() == 0 else []), sys.executable, "-c", program, str(tmp_path / "folder")],
                capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT,
            )  # fmt: skip
        finally:
            (tmp_path / "folder" / "closed").chmod(0o700)
        assert done.returncode != 0, f"found {done.stdout.strip()} of 2 files without an error"
        assert "DataError" in done.stderr
        assert "closed" in done.stderr.splitlines()[-1]


class TestUnigramEntropy:
    def test_by_hand(self) -> None:
        # Shares 1/2, 1/4, 1/4.
        assert unigram_entropy(np.array([0, 0, 1, 2], dtype=np.uint8), 256) == pytest.approx(1.5 * math.log(2))
        assert unigram_entropy(np.array([7] * 9, dtype=np.uint32), 8) == pytest.approx(0, abs=1e-15)
        assert unigram_entropy(np.arange(1000, dtype=np.uint16), 5000) == pytest.approx(math.log(1000))

    def test_counts_beyond_the_first_chunk(self) -> None:
        tokens = np.zeros((1 << 20) + (1 << 18), dtype=np.uint8)
        tokens[1 << 20 :] = 1  # a fifth
        expected = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
        assert unigram_entropy(tokens, 2) == pytest.approx(expected)
