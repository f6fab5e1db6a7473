"""Turns text and pairs into packed rows of token ids, and finds the copied tokens of a probe.

Knows the tokenizer and how a pair is written down: `source`, a newline, a space, `target`, `<|endoftext|>`. Only the
target counts in the loss; a plain document counts whole. Knows nothing of the model.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from training.pocket.corpus import HELD_OUT_SERVICES, Corpus, read_corpus, read_sgd, split_sentences
from training.pocket.pairs import Pair, PairMaker, swap_values
from training.pocket.phrases import Phrases
from training.pocket.tokenizer import train_tokenizer

Ids = NDArray[np.uint16]
PROMPT_TEMPLATE = "{inputs}\n"
IGNORED = -100  # label that cross-entropy skips


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Encode each text and end it with `<|endoftext|>`."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]


def encode_pairs(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Encode each pair as (prompt, answer); an answer starts with a space and ends with `<|endoftext|>`."""
    prompts = tokenizer([PROMPT_TEMPLATE.replace("{inputs}", pair.source) for pair in pairs])["input_ids"]
    answers = encode_documents(tokenizer, [f" {pair.target}" for pair in pairs])
    return list(zip(prompts, answers, strict=True))


def copied_positions(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> list[bool]:
    """Tell for each answer token whether it lies inside a value that stands in the record."""
    text = f" {pair.target}"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    inside = np.zeros(len(text), dtype=bool)
    for value in pair.values:
        start = text.find(value)
        if start >= 0:
            inside[start : start + len(value)] = True
    return [bool(inside[start:end].any() and not text[start:end].isspace()) for start, end in offsets] + [False]


@dataclass(frozen=True, slots=True)
class Targets:
    """How often the tasks' target sentences stand in the plain text, and whether pairs are made of them too."""

    num_readings: int
    in_pairs: bool


def write_tokens(
    data: Path,
    folder: Path,
    work: Path,
    num_pairs: int,
    max_length: int,
    start: Path | None,
    targets: Targets,
    seed: int,
) -> None:
    """Make everything that training reads: the tokenizer in `folder`, token ids and the probe in `work`.

    With `start`, a model to go on from, its tokenizer is taken.
    """
    corpus = read_corpus(data, targets.num_readings)
    read = [text for texts in corpus.train.values() for text in texts]
    records = [record for record in read_sgd(data, "train") if record["service"] not in HELD_OUT_SERVICES]
    pair_targets = corpus.targets if targets.in_pairs else ()
    phrases = Phrases([*read, *pair_targets])
    maker = PairMaker(records, [*_sentences(corpus), *chain.from_iterable(map(_sentences_of, pair_targets))], phrases)
    rng = random.Random(seed)
    pairs = [maker.draw(rng) for _ in range(num_pairs)]
    texts = [*read, *corpus.targets]
    if start is None:
        sample = texts[::2] + [f"{pair.source}\n {pair.target}" for pair in pairs[: num_pairs // 10]]
        tokenizer = train_tokenizer(sample, folder, max_length)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        tokenizer.save_pretrained(folder)
    work.mkdir(parents=True, exist_ok=True)
    rng.shuffle(texts)
    np.save(work / "plain.npy", _join(encode_documents(tokenizer, texts)))
    encoded = encode_pairs(tokenizer, pairs)
    np.save(work / "pairs.npy", _join([[*prompt, *answer] for prompt, answer in encoded]))
    lengths = [(len(prompt), len(answer)) for prompt, answer in encoded]
    np.save(work / "pair_lengths.npy", np.array(lengths, dtype=np.uint16))
    (work / "held_out.json").write_text(json.dumps(corpus.held_out))
    probe = _probe_pairs(data, records, phrases)
    (work / "probe.json").write_text(json.dumps([asdict(pair) for pair in probe]))


def read_probe(work: Path) -> list[Pair]:
    """Read the copy probe that `write_tokens` left."""
    return [Pair(p["source"], p["target"], tuple(p["values"])) for p in json.loads((work / "probe.json").read_text())]


class Rows:
    """An endless supply of packed rows `[B, T]`: part plain text, part pairs, each in its own stream."""

    def __init__(self, work: Path, seed: Sequence[int]) -> None:
        self.plain = np.load(work / "plain.npy")
        pairs, lengths = np.load(work / "pairs.npy"), np.load(work / "pair_lengths.npy").astype(np.int64)
        ends = lengths.sum(axis=1).cumsum()
        self.pairs = np.split(pairs, ends[:-1])
        self.prompt_lengths = lengths[:, 0]
        self.rng = np.random.default_rng(seed)

    def draw(self, num_plain: int, num_pairs: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and labels `[num_plain + num_pairs, length]`; label t is the token after id t."""
        rows = [self._plain_row(length + 1) for _ in range(num_plain)]
        rows += [self._pair_row(length + 1) for _ in range(num_pairs)]
        ids, labels = (torch.from_numpy(np.stack(part).astype(np.int64)) for part in zip(*rows, strict=True))
        return ids[:, :-1].contiguous(), labels[:, 1:].contiguous()

    def _plain_row(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        start = int(self.rng.integers(len(self.plain) - length))
        row = self.plain[start : start + length].astype(np.int64)
        return row, row

    def _pair_row(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids: list[NDArray[np.int64]] = []
        labels: list[NDArray[np.int64]] = []
        total = 0
        while total < length:
            i = int(self.rng.integers(len(self.pairs)))
            pair = self.pairs[i].astype(np.int64)
            label = pair.copy()
            label[: self.prompt_lengths[i]] = IGNORED
            ids.append(pair)
            labels.append(label)
            total += len(pair)
        return np.concatenate(ids)[:length], np.concatenate(labels)[:length]


def _sentences(corpus: Corpus) -> list[str]:
    """Sentences of 4 to 40 words; dialogue and WikiSplit whole, a part of the rest."""
    shares = {"novels.txt.gz": 3, "factbook.txt": 1, "sgd_dialogues.txt.gz": 3}
    sentences: list[str] = []
    for name, texts in corpus.train.items():
        for text in texts[:: shares.get(name, 1)]:
            _, _, body = text.rpartition(": ") if name == "wordnet_glosses.txt.gz" else ("", "", text)
            sentences += _sentences_of(body)
    return sentences


def _sentences_of(text: str) -> list[str]:
    return [s for s in split_sentences(text) if 4 <= len(s.split()) <= 40 and "|" not in s]


def _probe_pairs(data: Path, train: Iterable[dict[str, object]], phrases: Phrases) -> list[Pair]:
    """Dev records of services that no training pair comes from, every value swapped."""
    seen = {record["service"] for record in train}
    rng = random.Random(1)
    unseen = [record for record in read_sgd(data, "dev") if record["service"] not in seen]
    pairs = [swap_values(record, phrases, rng, 1.0) for record in unseen]
    return [pair for pair in pairs if pair.values][:300]


def _join(documents: Iterable[Sequence[int]]) -> Ids:
    return np.concatenate([np.array(ids, dtype=np.uint16) for ids in documents])
