"""Finds what a restaurant's description tells of its record, and what it tells otherwise.

Knows the fields of the E2E challenge, `name : The Vaults | area : riverside`, and words for their values. These are
short lists, and `eatType` has none: what is found is a rough count, good for comparing texts with each other and for
leaving some out. Knows nothing of files, models or prefixes.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from training.records import Field, render

# What a description has in it that tells of a field in words of its own; any other field it tells by its value
HINTS = {
    "priceRange": r"pric|cheap|expensive|£|cost|afford|budget|moderate|pound|euro|\b(20|25|30)\b",
    "customer rating": "rat|star|out of|review|custom",
    "familyFriendly": "famil|kid|child|adult",
    "area": "river|cent|city",
}

CHILDREN = r"(famil|kid|child)\w*"
NOT_IN = "".join(rf"(?<!{words} )(?<!{words} the )" for words in ("near", "of", "to", "outside"))
# What can be said of a field, and the words for it; they are looked for in this order and taken away where they stand
SPOKEN: Mapping[str, Mapping[str, str]] = {
    "food": {
        **{food: food for food in ("chinese", "english", "indian", "italian", "japanese")},
        "french": "french(?! fries)",
        "fast food": r"\bfast food",
    },
    "area": {"riverside": r"\briver", "city centre": rf"{NOT_IN}(cit\w+ cent|cent\w+ of the (city|town))"},
    "priceRange": {
        "low": r"(?<!not )(?<!not the )\bcheap|inexpensive|\blow pric|(less than|under) £?20",
        "middle": r"moderate(?!(ly)?( customer)? rat)|£?20 25|average pric|mid pric",
        "high": r"(?<!not )\bexpensive|\bhigh pric|pric\w*( range)?( is)? high(?!\w*( customer)? rat)"
        r"|(more than|over) £?30",
    },
    "customer rating": {
        "low": r"\b(low|poor)\w*( customer)? rat|\brat\w+( is| as| of)? (low|poor)|\b(1|one) (out of( (5|five))?|star)",
        "middle": r"average( customer)? rat\w*\b(?! (of|is) (1|5|one|five))|\brat\w+( is| as| of)? average"
        r"|\b(3|three) (out of( (5|five))?|star)",
        "high": r"\bhigh\w*( customer)? rat|\brat\w+( is| as| of)? high|\b(5|five) (out of( (5|five))?|star)",
    },
    "familyFriendly": {
        "no": rf"(\bnot?|n't|\bnone?|\bun\w+|\bwithout)( \w+){{0,3}} {CHILDREN}( \w+ {CHILDREN})?"
        rf"|{CHILDREN}( is| are| friendly)? (\w+n't|not?\b|un\w+|free)|adult(?!s as well)",
        "yes": CHILDREN,
    },
}  # fmt: skip
# Prices and ratings alike: people say `cheap` of less than £20, and `low` of 1 out of 5
MEANT = {
    **dict.fromkeys(("low", "1 out of 5", "cheap", "less than £20"), "low"),
    **dict.fromkeys(("average", "3 out of 5", "moderate", "£20-25"), "middle"),
    **dict.fromkeys(("high", "5 out of 5", "more than £30"), "high"),
}


def told_of(record: str, text: str) -> str:
    """The fields of a record that its description tells: E2E's leave out one in ten."""
    said = plain(text)
    told = [
        (key, value) for key, value in fields_of(record) if re.search(HINTS.get(key) or re.escape(value.lower()), said)
    ]
    return render(told)


def told_otherwise(record: str, text: str, places: Collection[str]) -> set[str]:
    """The fields of a record that a description of it gets wrong: it lacks the name, names another one of the `places`
    that can be nearby, or says of a field what the record does not. What it leaves out is not wrong."""
    fields = dict(fields_of(record))
    said = plain(text)
    own = [plain(fields[key]) for key in ("name", "near") if key in fields]
    others = [place for place in map(plain, places) if not any(place in name for name in own)]
    wrong = set()
    if own[0] not in said:
        wrong.add("name")
    if any(place in said for place in others):
        wrong.add("near")
    for name in own:
        said = said.replace(name, "")  # it may hold a word such as `river`
    for key, words in SPOKEN.items():
        value = fields.get(key, "").lower()
        if heard(words, said) - {MEANT.get(value, value)}:
            wrong.add(key)
    return wrong


def heard(words: Mapping[str, str], said: str) -> set[str]:
    """What is said of one field."""
    meanings = set()
    for meaning, pattern in words.items():
        said, times = re.subn(pattern, "", said)
        if times:
            meanings.add(meaning)
    return meanings


def places_of(records: Iterable[str]) -> set[str]:
    """All that is nearby in one of them."""
    return {value for record in records for key, value in fields_of(record) if key == "near"}


def fields_of(record: str) -> list[Field]:
    pairs = (field.partition(" : ") for field in record.split(" | "))
    return [(key, value) for key, _, value in pairs]


def plain(text: str) -> str:
    return text.lower().replace("-", " ").replace("’", "'")
