"""Reads the text that the pocket backbone learns from, and keeps out what must stay unseen.

Knows files, lines and hold-outs. Knows nothing of tokens, pairs or tensors.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_FILES = (
    "novels.txt.gz",
    "factbook.txt",
    "wordnet_glosses.txt.gz",
    "sgd_dialogues.txt.gz",
    "wikisplit_sentences.txt",
)
TARGET_FILES = ("targets_e2e_train.txt", "targets_commongen_train.txt")  # sentences of train splits, no records
HELD_OUT_SERVICES = ("Events_1", "Hotels_1", "RentalCars_1")
NUM_WIKISPLIT_DEV = 500
HOLD_OUT_EVERY = 200  # every 200th line measures bits per byte and is never trained on


@dataclass(frozen=True, slots=True)
class Corpus:
    """Plain text by file (one document a line), what tasks answer, and what was kept out of the text for measuring."""

    train: dict[str, tuple[str, ...]]
    targets: tuple[str, ...]
    held_out: tuple[str, ...]


def read_corpus(data: Path, num_target_readings: int) -> Corpus:
    """Read `data/pretrain`, without the lines that hold a sentence of the WikiSplit dev rows.

    What the tasks of E2E and CommonGen answer in their train splits comes `num_target_readings` times, so that the rest
    does not drown it.
    """
    unseen = _wikisplit_dev_sentences(data)
    train: dict[str, tuple[str, ...]] = {}
    held_out: list[str] = []
    for name in TEXT_FILES:
        lines = [line for line in read_lines(data / "pretrain" / name) if not _contains_any(line, unseen)]
        held_out += lines[::HOLD_OUT_EVERY]
        train[name] = tuple(line for i, line in enumerate(lines) if i % HOLD_OUT_EVERY)
    targets = (
        [line for name in TARGET_FILES for line in read_lines(data / "pretrain" / name)] if num_target_readings else []
    )
    return Corpus(train, tuple(targets * num_target_readings), tuple(held_out))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file that are not blank; `.gz` is unpacked on the way."""
    unpack = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rt", encoding="utf-8") as lines:
        yield from (line.strip() for line in lines if line.strip())


def read_sgd(data: Path, split: str) -> list[dict[str, Any]]:
    """Read dialogue-act records `{service, acts: [{act, slot, values}], text}` of `train` or `dev`."""
    name = "train.jsonl.gz" if split == "train" else f"{split}.jsonl"
    return [json.loads(line) for line in read_lines(data / "sgd_nlg" / name)]


def detokenize(text: str) -> str:
    """Undo the Penn-style spacing of WikiSplit: `the band 's own , too .` -> `the band's own, too.`"""
    text = re.sub(r"\s*''\s*(.*?)\s*''\s*", r' "\1" ', text).replace("''", '"')
    text = re.sub(r"\s+([,.;:!?)\]%]|'s\b|n't\b|'re\b|'ve\b)", r"\1", text)
    text = re.sub(r"([(\[$£])\s+", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def split_sentences(text: str) -> list[str]:
    """Cut a paragraph where a full stop is followed by a capital."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text)


def _wikisplit_dev_sentences(data: Path) -> set[str]:
    """Of the validation file's last rows, each a long sentence and two that say the same, as letters alone."""
    rows = list(read_lines(data / "wikisplit" / "validation.tsv"))[-NUM_WIKISPLIT_DEV:]
    texts = [detokenize(text.replace("<::::>", " ")) for row in rows for text in row.split("\t")]
    return {_letters(sentence) for text in texts for sentence in split_sentences(text) if len(sentence) > 20}


def _contains_any(line: str, unseen: set[str]) -> bool:
    return any(_letters(sentence) in unseen for sentence in (line, *split_sentences(line)))


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()
