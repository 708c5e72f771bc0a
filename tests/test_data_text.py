"""Data set of text files: order of the files, tokens, windows that are each used once per epoch, and errors."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from harness.composition import load
from harness.config import Config
from harness.errors import DataError
from harness.workload.data import Dataset, open_dataset
from harness.workload.data import tokenizer as tokenizer_module
from harness.workload.data.base import unigram_entropy
from harness.workload.data.tokenizer import TextTokenizer
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


class TestLeftOut:
    """Everything below a folder is read, or counted, or an error."""

    def test_linked_folders_and_files_are_read(self, tmp_path: Path) -> None:
        write(tmp_path, {"text/a.txt": "a", "elsewhere/b.txt": "b", "elsewhere/deep/c.txt": "c", "other/d.txt": "d"})
        (tmp_path / "text" / "link").symlink_to("../elsewhere")
        (tmp_path / "elsewhere" / "more").symlink_to(tmp_path / "other")
        (tmp_path / "text" / "z.txt").symlink_to("../other/d.txt")
        # What two names lead to is read once.
        assert tokens_of(tmp_path / "text") == list(b"a\0b\0c\0d\0")
        assert open_text(tmp_path / "text").describe()["links_repeated"] == 1

    def test_links_among_the_files_and_loops_change_nothing(self, tmp_path: Path) -> None:
        write(tmp_path, FILES)
        (tmp_path / "0").symlink_to("a", target_is_directory=True)
        (tmp_path / "a" / "b" / "up").symlink_to("..", target_is_directory=True)
        (tmp_path / "a" / "self").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "0.txt").symlink_to("b.txt")
        assert tokens_of(tmp_path) == FILES_IN_ORDER
        assert open_text(tmp_path).describe()["links_repeated"] == 4

    def test_a_link_to_a_folder_around_the_text_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, {"text/a.txt": "some text", "private.txt": "not meant"})
        (tmp_path / "text" / "up").symlink_to("..", target_is_directory=True)
        with pytest.raises(DataError, match=r"text/up: is a symbolic link to .*, which contains .*; remove the link"):
            open_text(tmp_path / "text")

    def test_counts(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "read", "b.txt": "", "c.md": "not matched", "d.txt": b"\xff", "e.txt": "t\0e\0"})
        os.mkfifo(tmp_path / "f.txt")
        (tmp_path / "g.txt").symlink_to("nowhere")
        (tmp_path / "h.md").symlink_to("nowhere")
        found = open_text(tmp_path, glob="*.txt", invalid_files="skip").describe()
        assert (found["files_read"], found["files_empty"], found["files_not_matched"]) == (1, 1, 2)
        assert found["files_skipped"] == {
            "UTF-16 or binary": 1, "a broken symbolic link": 1, "a named pipe (FIFO)": 1, "not UTF-8 text": 1
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "make", "named"),
        [
            ("f.txt", os.mkfifo, r"f\.txt: is a named pipe \(FIFO\), expected UTF-8 text"),
            ("g.txt", lambda path: path.symlink_to("nowhere"), r"g\.txt: is a symbolic link to nowhere, which is not"),
            ("g.txt", lambda path: path.symlink_to(".git/annex/objects/x"), "fetch it with git annex get"),
            ("h.txt", lambda path: path.write_text("t\0e\0"), r"h\.txt: holds a NUL at byte 1, as UTF-16"),
            ("i.txt", lambda path: path.write_text("text", "utf-16"), r"i\.txt: is UTF-16 text, .*iconv"),
            ("j.txt", lambda path: path.write_text("<!doctype html>"), r"j\.txt: is a page of HTML"),
            ("k.txt", lambda path: path.write_bytes(b"x" * 65_537 + b"\xe9."), "k.txt: not UTF-8 text at byte 65537"),
            ("l.txt", lambda path: path.write_bytes(b"x" * 65_535 + b"\xe6"), "l.txt: not UTF-8 text at byte 65535"),
        ],
    )
    def test_what_is_no_text_is_an_error(
        self, name: str, make: Callable[[Path], object], named: str, tmp_path: Path
    ) -> None:
        write(tmp_path, {"a.txt": "some text"})
        make(tmp_path / name)
        with pytest.raises(DataError, match=named) as caught:
            open_text(tmp_path)
        assert "\n" not in str(caught.value)
        assert open_text(tmp_path, invalid_files="skip").describe()["files_read"] == 1

    def test_letters_across_blocks_are_read(self, tmp_path: Path) -> None:
        content = ("x" + "漢" * 50_000).encode()
        write(tmp_path, {"a.txt": content})
        assert tokens_of(tmp_path) == [*content, 0]

    def test_held_out_files_that_are_trained_on_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, {"text/a.txt": "some text", "text/b.txt": "more", "copy/a.txt": "some textmore"})
        (tmp_path / "link.txt").symlink_to("text/b.txt")
        for held_out in ("text", "text/b.txt", "link.txt", "copy"):
            with pytest.raises(DataError, match=r"data\.eval_path: .* is part of data\.path too"):
                open_text(tmp_path / "text", eval_path=tmp_path / held_out)


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
        with pytest.raises(DataError, match=r"holds no text in 1 file \(0 empty, 1 skipped as not UTF-8 text"):
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

    @pytest.mark.parametrize(
        ("name", "content", "named"),
        [
            ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer file of Git LFS"),
            ("tokenizer.json", "<!DOCTYPE html>", "page of HTML"),
            ("vocab.json", '{"a": 0, "b": 1}', "a vocabulary without the rules"),
            ("tokenizer_config.json", '{"model_max_length": 1024}', "configuration of a tokenizer"),
            ("config.json", '{"model_type": "llama"}', "configuration of a model"),
            ("merges.txt", "#version: 0.2\na b\n", "list of merges"),
            ("tokenizer.model", "IQ== 0\nIg== 1\n", "tiktoken"),
            ("tokenizer.model", "\n\x0e\n\x05<unk>", "SentencePiece"),
        ],
    )
    def test_another_file_in_its_place_is_recognized(self, name: str, content: str, named: str, tmp_path: Path) -> None:
        path = write(tmp_path, {name: content}) / name
        with pytest.raises(DataError, match=rf"{name}: is .*{named}.*, expected a tokenizer\.json; "):
            TextTokenizer(str(path))

    def test_a_folder_or_a_pipe_in_its_place_is_named(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "t.json")
        with pytest.raises(DataError, match=r"t\.json: is a named pipe"):
            TextTokenizer(str(tmp_path / "t.json"))
        with pytest.raises(DataError, match=r"is a folder, expected a tokenizer\.json"):
            TextTokenizer(str(tmp_path))

    @pytest.mark.parametrize(
        "model",
        [models.WordLevel({"the": 0}, unk_token="?"), models.Unigram([("the", -1.0)])],
        ids=["WordLevel", "Unigram"],
    )
    def test_text_that_it_has_no_token_for_is_an_error(self, model: Any, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "the dog"})
        Tokenizer(model).save(str(tmp_path / "t.json"))
        with pytest.raises(DataError, match=r"a\.txt: data\.tokenizer=.*t\.json cannot encode it: .*; the text holds"):
            open_text(tmp_path / "a.txt", tokenizer=tmp_path / "t.json")

    def test_windows_that_disagree_leave_none_that_were_encoded_ahead(self, tmp_path: Path) -> None:
        """From an odd place on, a long run of one letter is made of other pairs."""
        tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "aa": 2}, [("a", "a")]))
        tokenizer.save(str(tmp_path / "t.json"))
        text = "b" + "a" * 40_000 + "bab" * 100_000
        parts = TextTokenizer(str(tmp_path / "t.json")).encode([[text]])
        assert np.array_equal(np.concatenate([part.ids for part in parts]), tokenizer.encode(text).ids)

    def test_what_it_drops_is_counted_and_said(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "ab c\nxyz é a " * 10})
        tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        tokenizer.save(str(tmp_path / "t.json"))
        dataset = open_text(tmp_path / "a.txt", tokenizer=tmp_path / "t.json")
        found = dataset.describe()
        # x, y, z and é; white space does not count.
        assert (found["characters"], found["characters_dropped"], found["tokens_unknown"]) == (130, 40, 0)
        assert found["train_tokens"] + found["held_out_tokens"] == 40
        assert ["30.8 % of the characters are part of no token" in line for line in dataset.cautions()] == [True]

    def test_what_it_drops_of_held_out_text_is_said_too(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "a b c " * 50, "held_out.txt": "a xyz " * 50})
        tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        tokenizer.save(str(tmp_path / "t.json"))
        dataset = open_text(tmp_path / "a.txt", eval_path=tmp_path / "held_out.txt", tokenizer=tmp_path / "t.json")
        [line] = dataset.cautions()
        assert line.startswith("data.eval_path, data.tokenizer=")
        assert "50.0 % of the characters are part of no token" in line

    def test_unknown_tokens_are_counted_and_said(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.txt": "the dog sat"})
        dataset = open_text(tmp_path / "a.txt", tokenizer=word_tokenizer(tmp_path / "words.json", VOCABULARY))
        assert dataset.describe()["tokens_unknown"] == 1
        assert "33.3 % of the tokens are the unknown token" in dataset.cautions()[0]

    def test_an_empty_file_is_no_document_though_it_has_an_end(self, tmp_path: Path) -> None:
        write(tmp_path / "text", {"a.txt": "the cat", "b.txt": ""})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY, end="<end>")
        assert tokens_of(tmp_path / "text", tokenizer=tokenizer) == [1, 2, 4]

    def test_the_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "text", {"a.txt": "the cat sat"})
        tokenizer = word_tokenizer(tmp_path / "words.json", VOCABULARY)
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(DataError, match="pip install tokenizers"):
            open_text(tmp_path / "text", tokenizer=tokenizer)


def own_tokenizer(kind: str, text: str) -> Tokenizer:
    """Return a tokenizer trained on the text."""
    if kind == "bytes":
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    elif kind == "words":
        trained = Tokenizer(models.WordPiece(unk_token="?"))
        trained.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
        trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        trainer = trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["?", "<s>", "</s>"])
    else:
        # Nothing ends a word, and a mark begins the text, as with Llama 2's.
        trained = Tokenizer(models.BPE(unk_token="?", fuse_unk=True))
        marks = [normalizers.Prepend("_"), normalizers.Replace(" ", "_")]
        trained.normalizer = normalizers.Sequence(marks)  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=300, show_progress=False, special_tokens=["?", "<s>", "</s>"], max_token_length=8
        )
    trained.train_from_iterator(text.splitlines(keepends=True), trainer)
    if kind != "bytes":
        trained.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return trained


class TestWindowsOfATokenizer:
    """A long document is encoded in windows, with the ids that it has as a whole."""

    CODE = "".join(f"  def name_{n % 97}(été, {n * n}):\n\treturn '漢字🎉' * {n}\n\n" for n in range(60))
    TEXTS: ClassVar = {
        "code": CODE,
        "one letter": "a" * 3000,
        "white space": " \n" * 1500 + CODE + "\n" * 1500,
        "one word": "".join(chr(97 + n * n % 23) for n in range(3000)),
        "ends at a window": CODE[:600],
        "one more": CODE[:601],
    }

    @pytest.mark.parametrize("kind", ["bytes", "words", "marks"])
    def test_ids_are_those_of_the_whole(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own_tokenizer(kind, self.CODE).save(str(tmp_path / "t.json"))
        monkeypatch.setattr(tokenizer_module, "WINDOW_CHARACTERS", 600)
        monkeypatch.setattr(tokenizer_module, "OVERLAP_CHARACTERS", 150)
        tokenizer = TextTokenizer(str(tmp_path / "t.json"))
        whole = Tokenizer.from_file(str(tmp_path / "t.json"))
        for text in self.TEXTS.values():
            parts = list(tokenizer.encode([[text[start : start + 61] for start in range(0, len(text), 61)]]))
            assert np.concatenate([part.ids for part in parts]).tolist() == whole.encode(text).ids
            assert len(parts) > 3 or text is not self.CODE

    @pytest.mark.parametrize("kind", ["bytes", "words", "marks"])
    def test_short_documents_together_have_the_ids_of_each(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_tokenizer(kind, self.CODE).save(str(tmp_path / "t.json"))
        monkeypatch.setattr(tokenizer_module, "WINDOW_CHARACTERS", 600)
        monkeypatch.setattr(tokenizer_module, "OVERLAP_CHARACTERS", 150)
        monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 200)
        whole = Tokenizer.from_file(str(tmp_path / "t.json"))
        # A long one among them keeps its place.
        documents = [*self.CODE.splitlines(keepends=True)[:40], "", self.CODE, "last"]
        parts = TextTokenizer(str(tmp_path / "t.json")).encode([document] for document in documents)
        expected = [number for document in documents if document for number in whole.encode(document).ids]
        assert np.concatenate([part.ids for part in parts]).tolist() == expected

    @pytest.mark.parametrize(("kind", "keeps"), [("bytes", True), ("words", False)])
    def test_what_is_dropped_is_counted_unless_nothing_can_be(self, kind: str, keeps: bool, tmp_path: Path) -> None:
        own_tokenizer(kind, self.CODE).save(str(tmp_path / "t.json"))
        tokenizer = TextTokenizer(str(tmp_path / "t.json"))
        assert tokenizer._keeps_all is keeps

    def test_a_long_document_is_never_encoded_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tokenizers package needs some 200 bytes for each character that it encodes at once."""
        own_tokenizer("bytes", self.CODE).save(str(tmp_path / "t.json"))
        write(tmp_path, {"a.txt": self.CODE * 40})
        lengths = []
        encode = TextTokenizer._encode

        def counted(self: TextTokenizer, text: str, special: bool = False) -> Any:
            lengths.append(len(text))
            return encode(self, text, special)

        monkeypatch.setattr(TextTokenizer, "_encode", counted)
        found = open_text(tmp_path / "a.txt", tokenizer=tmp_path / "t.json", vocab_size=400).describe()
        assert found["characters"] > 3 * tokenizer_module.WINDOW_CHARACTERS
        assert max(lengths) <= tokenizer_module.WINDOW_CHARACTERS
        assert found["characters_dropped"] == 0


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
