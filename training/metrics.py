"""Scores answers against any number of references, as the official scripts of the tasks do.

Knows text. Knows nothing of tasks, models or Java (see `coco`). BLEU is sacrebleu's; ROUGE-L and NIST are ours, after
the formulas that the E2E challenge's script uses, on sacrebleu's 13a tokens in lower case.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from text_unidecode import unidecode

Tokens = list[str]
Ngram = tuple[str, ...]

ROUGE_BETA = 1.2  # recall counts more than precision, as in coco-caption
NIST_ORDER = 5
NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2  # the penalty is a half where the answers are two thirds as long
WEBNLG_REFERENCES = 3


@dataclass(frozen=True, slots=True)
class Bleu:
    """`score` is 0 to 100; `signature` says how it was computed, in sacrebleu's words, and what was done to the text
    before sacrebleu had it."""

    score: float
    signature: str


def bleu_e2e(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """The E2E challenge's BLEU: lower case, 13a tokens, no smoothing, every reference of an input."""
    return _corpus_bleu(BLEU(lowercase=True, tokenize="13a", smooth_method="none"), answers, references)


def bleu_webnlg(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """The BLEU of WebNLG 2017 and DART: lower case, ASCII, split at every non-word character, three references."""
    scorer = BLEU(tokenize="none", smooth_method="none", force=True)
    split = [[split_webnlg(text) for text in texts[:WEBNLG_REFERENCES]] for texts in references]
    bleu = _corpus_bleu(scorer, [split_webnlg(answer) for answer in answers], split)
    return Bleu(bleu.score, f"{bleu.signature}|text:lower,unidecode,split")


def split_webnlg(text: str) -> str:
    return " ".join(" ".join(re.split(r"(\W)", unidecode(text.lower()))).split())


def _corpus_bleu(scorer: BLEU, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    depth = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(depth)]
    score = float(scorer.corpus_score(list(answers), streams).score)
    return Bleu(score, str(scorer.get_signature()))


def tokens_13a(text: str) -> Tokens:
    tokenized: str = Tokenizer13a()(text.lower())
    return tokenized.split()


def rouge_l(answers: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """coco-caption's ROUGE-L, 0 to 1: the best precision and the best recall over an input's references (they may be
    of different ones), their F with beta 1.2, averaged over inputs."""
    scores = [_rouge_l(answer, texts) for answer, texts in zip(answers, references, strict=True)]
    return sum(scores) / len(scores)


def _rouge_l(answer: Tokens, references: Sequence[Tokens]) -> float:
    common = [longest_common_subsequence(answer, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(answer)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True) if reference)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    """Its length."""
    row = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if token == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def nist(answers: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """NIST-5 (Doddington 2002) as mteval-v13a computes it: n-grams weigh as much as they tell, by the references'
    counts, and the length penalty compares with the references' average length."""
    counts = _reference_counts(references)
    score = 0.0
    for n in range(1, NIST_ORDER + 1):
        told = num_ngrams = 0.0
        for answer, texts in zip(answers, references, strict=True):
            own, allowed = ngrams(answer, n), Counter[Ngram]()
            for text in texts:
                allowed |= ngrams(text, n)
            told += sum(hits * math.log2(counts[ngram[:-1]] / counts[ngram]) for ngram, hits in (own & allowed).items())
            num_ngrams += own.total()
        score += told / num_ngrams if num_ngrams else 0.0
    average_length = sum(sum(map(len, texts)) / len(texts) for texts in references)
    ratio = sum(map(len, answers)) / average_length if average_length else 0.0
    return score * math.exp(-NIST_BETA * math.log(min(1.0, ratio)) ** 2) if ratio else 0.0


def _reference_counts(references: Sequence[Sequence[Tokens]]) -> Counter[Ngram]:
    """Every n-gram's count in all references; the empty one counts all words."""
    counts = Counter[Ngram]()
    for texts in references:
        for text in texts:
            counts[()] += len(text)
            for n in range(1, NIST_ORDER + 1):
                counts.update(ngrams(text, n))
    return counts


def ngrams(tokens: Tokens, n: int) -> Counter[Ngram]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
