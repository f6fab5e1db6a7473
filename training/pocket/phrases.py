"""Draws random phrases of a given kind: names, numbers, prices, times, plain words.

Knows the words of a corpus. Knows nothing of records, sentences around a phrase, or tokens.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
LEVELS = (
    "low",
    "average",
    "high",
    "poor",
    "excellent",
    "medium",
    "moderate",
    "cheap",
    "expensive",
    "good",
    "bad",
    "yes",
    "no",
    "free",
)


class Phrases:
    """Phrases made of the words of `texts`, drawn evenly over distinct words so that none is worth remembering."""

    def __init__(self, texts: Iterable[str]) -> None:
        capitals: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for text in texts:
            capitals.update(re.findall(r"(?<=[a-z,] )[A-Z][\w'-]+", text))
            words.update(re.findall(r"(?<= )[a-z][\w-]{2,}", text))
        self.capitals = [word for word, count in capitals.items() if count >= 2]
        self.words = [word for word, count in words.items() if count >= 8]

    def like(self, value: str, rng: random.Random) -> str:
        """Draw a phrase of the kind of `value`: digits, a name or plain words; now and then any kind."""
        if rng.random() < 0.2:
            return self.any(rng)
        if re.search(r"\d", value):
            return self.number(rng)
        return self.name(rng) if value[:1].isupper() else self.plain(rng)

    def any(self, rng: random.Random) -> str:
        """Draw a phrase of any kind."""
        return rng.choices((self.name, self.plain, self.number), (5, 3, 2))[0](rng)

    def name(self, rng: random.Random) -> str:
        """Draw a made-up proper name, such as `The Halifax Otter`."""
        words = rng.choices(self.capitals, k=rng.choices((1, 2, 3), (4, 5, 1))[0])
        if rng.random() < 0.2:
            words[-1] = rng.choice(self.words).capitalize()
        if rng.random() < 0.15:
            words.insert(0, "The")
        return " ".join(words)

    def plain(self, rng: random.Random) -> str:
        """Draw one or two lower-case words."""
        if rng.random() < 0.2:
            return rng.choice(LEVELS)
        return " ".join(rng.choices(self.words, k=rng.choices((1, 2), (3, 1))[0]))

    def number(self, rng: random.Random) -> str:
        """Draw a count, price, time, date, rating, telephone number or range."""
        small, large = rng.randint(1, 12), rng.randint(10, 99)
        coin = rng.choice("$£€")
        return rng.choice(
            (
                f"{small}",
                f"{large}",
                f"{rng.randint(100, 9999)}",
                f"{coin}{rng.randint(1, 400)}",
                f"{coin}{large}-{large + 5 * small}",
                f"{rng.choice(('less than', 'more than', 'about', 'over', 'under'))} {coin}{large}",
                f"{small} {rng.choice(('am', 'pm'))}",
                f"{small}:{rng.randint(0, 59):02d} {rng.choice(('am', 'pm'))}",
                f"{rng.choice(MONTHS)} {rng.randint(1, 31)}{rng.choice(('th', 'st', 'nd', 'rd'))}",
                f"{rng.randint(1, 10)} out of {rng.choice((5, 10, 20))}",
                f"{rng.randint(200, 999)}-{rng.randint(200, 999)}-{rng.randint(1000, 9999)}",
                f"{rng.randint(1, 9999)} {rng.choice(self.capitals)} {rng.choice(('Street', 'Avenue', 'Road'))}",
            )
        )
