"""Makes record-to-sentence pairs that can only be answered by copying from the record.

Knows dialogue acts, sentences and record syntax. Knows nothing of tokens or tensors. Values are swapped for random
phrases in record and sentence alike, so the backbone cannot guess them from what it has read elsewhere.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from training.pocket.phrases import Phrases
from training.records import Field, dialogue_fields, render


@dataclass(frozen=True, slots=True)
class Pair:
    """One input and the text that answers it. `values` are the phrases to copy, as they stand in `target`."""

    source: str
    target: str
    values: tuple[str, ...] = ()


def swap_values(record: dict[str, Any], phrases: Phrases, rng: random.Random, share: float) -> Pair:
    """Replace values that stand in the text of a dialogue record by random phrases, in record and sentence alike."""
    values = sorted({value for act in record["acts"] for value in act["values"]}, key=len, reverse=True)
    if not values:
        return Pair(_render_somehow(dialogue_fields(record["acts"]), rng), record["text"])
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, values)) + r")(?!\w)", re.IGNORECASE)
    in_text = {match.lower() for match in pattern.findall(record["text"])}
    new = {v.lower(): phrases.like(v, rng) for v in values if v.lower() in in_text and rng.random() < share}
    target = pattern.sub(lambda match: new.get(match[0].lower(), match[0]), record["text"])
    acts = [{**act, "values": [new.get(v.lower(), v) for v in act["values"]]} for act in record["acts"]]
    fields = dialogue_fields(acts, with_act=rng.random() < 0.6)
    if rng.random() < 0.5:
        fields = [(key, {"True": "yes", "False": "no"}.get(value, value)) for key, value in fields]
    return Pair(_render_somehow(fields, rng), target, tuple(new.values()))


class PairMaker:
    """Draws pairs of five kinds from dialogue records and plain sentences."""

    def __init__(self, records: Sequence[dict[str, Any]], sentences: Sequence[str], phrases: Phrases) -> None:
        self.records = [record for record in records if any(act["values"] for act in record["acts"])]
        self.silent = [record for record in records if not any(act["values"] for act in record["acts"])]
        self.sentences = sentences
        self.phrases = phrases
        slots = {act["slot"] for record in records for act in record["acts"] if act["slot"]}
        self.slots = sorted(slots)
        self.kinds: tuple[tuple[Callable[[random.Random], Pair], int], ...] = (
            (self.from_dialogue, 38),
            (self.from_sentence, 22),
            (self.from_facts, 18),
            (self.from_words, 11),
            (self.from_noise, 11),
        )

    def draw(self, rng: random.Random) -> Pair:
        """Draw one pair of a random kind."""
        makers, weights = zip(*self.kinds, strict=True)
        pair: Pair = rng.choices(makers, weights)[0](rng)
        return pair

    def from_dialogue(self, rng: random.Random) -> Pair:
        """Draw a dialogue record with most of its values swapped."""
        if rng.random() < 0.05:
            return swap_values(rng.choice(self.silent), self.phrases, rng, 0.0)
        return swap_values(rng.choice(self.records), self.phrases, rng, rng.choice((0.0, 0.7, 1.0, 1.0)))

    def from_sentence(self, rng: random.Random) -> Pair:
        """Lift phrases out of a sentence into a record; mostly put random phrases in their place first."""
        words = rng.choice(self.sentences).split()
        share = rng.choice((0.0, 0.5, 1.0))
        fields: list[Field] = []
        values: list[str] = []
        for start, length in _spans(words, rng):
            old = " ".join(words[start : start + length])
            core = old.strip(".,;:!?\"'()")
            if not core or "|" in core:
                continue
            new = self.phrases.like(core, rng) if rng.random() < share else core
            before = words[start - 1].strip(".,;:!?\"'()").lower() if start else ""
            key = before if len(before) > 3 and rng.random() < 0.5 else self.key(rng)
            fields.append((key, new))
            values.append(new)
            words[start : start + length] = [old.replace(core, new, 1)]
        if not fields:
            return self.from_facts(rng)
        return Pair(_render_somehow(fields, rng), " ".join(words), tuple(values))

    def from_facts(self, rng: random.Random) -> Pair:
        """Write sentences whose values can only be found by their key: `the age of Otto is 7`."""
        name = self.phrases.name(rng)
        keys = [self.key(rng) for _ in range(rng.randint(1, 6))]
        facts = [(key, self.phrases.any(rng)) for key in dict.fromkeys(keys)]
        told = rng.sample(facts, len(facts))[: rng.randint(1, len(facts))] if rng.random() < 0.3 else facts
        told = rng.sample(told, len(told))
        target = self._tell(name, told, rng)
        fields = [(rng.choice(("name", "name", "title", "subject")), name), *facts]
        return Pair(_render_somehow(fields, rng), target, (name, *(value for _, value in told)))

    def from_words(self, rng: random.Random) -> Pair:
        """Give three to six content words, roughly in their base form, and ask for the sentence around them."""
        sentence = rng.choice(self.sentences)
        words = sorted({_base(word) for word in re.findall(r"[A-Za-z]{4,}", sentence)})
        chosen = rng.sample(words, min(len(words), rng.randint(3, 6)))
        return Pair(rng.choice((" ", " ", ", ", " | ")).join(chosen), sentence)

    def from_noise(self, rng: random.Random) -> Pair:
        """Give a sentence back, clean or after words were dropped or moved."""
        sentence = rng.choice(self.sentences)
        words = sentence.split()
        if rng.random() < 0.5:
            words = [word for word in words if rng.random() > 0.1]
            places = [i + rng.uniform(0, 2) for i in range(len(words))]
            words = [word for _, word in sorted(zip(places, words, strict=True))]
        if rng.random() < 0.3:
            name = self.phrases.name(rng)
            old = rng.choice(sentence.split())
            words = [name if word == old else word for word in words]
            sentence = " ".join(name if word == old else word for word in sentence.split())
        return Pair(" ".join(words), sentence)

    def key(self, rng: random.Random) -> str:
        """Draw a key: a slot name in some spelling, or any word."""
        if rng.random() < 0.4:
            return rng.choice(self.phrases.words)
        return _spell(rng.choice(self.slots), rng)

    def _tell(self, name: str, facts: Sequence[Field], rng: random.Random) -> str:
        subject = rng.choice((name, name, f"The {name}"))
        first = [f"The {{k}} of {name} is {{v}}", f"{subject} has a {{k}} of {{v}}", f"{subject} is {{v}} in {{k}}"]
        first += [f"{subject} is a {{v}} {{k}}", f"With {{k}} {{v}}, there is {name}", f"{{v}} is the {{k}} of {name}"]
        later = ["its {k} is {v}", "the {k} is {v}", "with a {k} of {v}", "{v} is the {k}", "it has {k} {v}"]
        later += ["near the {k} {v}", "a {v} {k}", "{k} {v}"]
        parts = [rng.choice(later if i else first) for i in range(len(facts))]
        told = [part.format(k=key, v=value) for part, (key, value) in zip(parts, facts, strict=True)]
        text = told[0]
        for part in told[1:]:
            joint = rng.choice((", ", " and ", ". "))
            text += joint + (part[0].upper() + part[1:] if joint == ". " else part)
        return text + "."


def _render_somehow(fields: Sequence[Field], rng: random.Random) -> str:
    if rng.random() < 0.5:
        fields = rng.sample(fields, len(fields))
    if rng.random() < 0.7:
        return render(fields)
    syntax, joint = rng.choice((("{key}[{value}]", ", "), ("{key} = {value}", " ; "), ("{key}: {value}", " | ")))
    return render(fields, syntax, joint)


def _spans(words: Sequence[str], rng: random.Random) -> list[tuple[int, int]]:
    """Choose places (start, length) in a sentence, the last one first so that replacing one moves no other."""
    starts = [i for i, word in enumerate(words) if len(word) > 3 or word[:1].isupper() or word[:1].isdigit()]
    chosen = sorted(rng.sample(starts, min(len(starts), rng.randint(2, 6))), reverse=True)
    spans, end = [], len(words)
    for start in chosen:
        length = min(rng.choices((1, 2, 3), (6, 3, 1))[0], end - start)
        if words[start][:1].isupper():
            while length < 4 and start + length < end and words[start + length][:1].isupper():
                length += 1
        spans.append((start, length))
        end = start
    return spans


def _base(word: str) -> str:
    word = word.lower()
    for ending in ("ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _spell(slot: str, rng: random.Random) -> str:
    first, *rest = slot.split("_")
    return rng.choice((slot, " ".join((first, *rest)), first + "".join(word.capitalize() for word in rest)))
