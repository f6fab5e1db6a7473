"""How often a restaurant's description says something else than its record: the E2E challenge's dev set, greedy.

BLEU counts words, and hardly feels a `not` or the name of another place. Here an answer is wrong if it lacks the name,
names a place nearby that the record has not, or speaks of food, area, price, rating or children otherwise than the
record does or though it does not. What it leaves out is no mistake. The words for a value are a short list, so the
count is a rough one, good for comparing prefixes and backbones with each other, and with people: their descriptions are
counted in the same way.

    python -m benchmarks.facts --data DATA [--model DIR] [--prefix FILE.safetensors] [--out FILE.json]

`DATA` holds `e2e/devset.csv`. Model and prefix are the embedded ones by default.
"""

import argparse
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from rich.table import Table

from benchmarks.report import finish_table
from polyprefix.demo_tasks import POCKET
from prefix_store.formats import parse
from prefix_store.prefix import Prefix
from training.backbone import load_backbone
from training.examples import read_examples
from training.pocket.decoding import answer

MAX_NEW_TOKENS = 100
FOODS = ("chinese", "english", "fast food", "french", "indian", "italian", "japanese")
LEVELS = {
    "low": ("low", "1 out of 5", "cheap", "less than £20"),
    "middle": ("average", "3 out of 5", "moderate", "£20-25"),
    "high": ("high", "5 out of 5", "more than £30"),
}
LEVEL_OF = {value: level for level, values in LEVELS.items() for value in values}
CHILDREN = r"famil|kid|child"
# By field, the patterns of what can be said of it in lower case, hyphens as spaces. A pattern takes its words away.
SPOKEN = {
    "food": {food: food for food in FOODS},
    "area": {"riverside": r"\briver", "city centre": r"cit\w+ cent"},
    "priceRange": {
        "low": r"\bcheap|inexpensive|low pric|(less than|under) £?20",
        "middle": r"moderate|£?20 25|average pric|mid pric",
        "high": r"\bexpensive|high pric|pric\w*( range)?( is)? high|(more than|over) £?30",
    },
    "customer rating": {
        "low": r"\b(low|poor)\w*( customer)? rat|rat\w+( is| as| of)? (low|poor)|\b(1|one) (out of|star)",
        "middle": r"average( customer)? rat|rat\w+( is| as| of)? average|\b(3|three) (out of|star)",
        "high": r"\bhigh\w*( customer)? rat|rat\w+( is| as| of)? high|\b(5|five) (out of|star)",
    },
    "familyFriendly": {"no": rf"(\bnot?|n't|\bnon)( \w+){{0,3}} ({CHILDREN})|adult", "yes": CHILDREN},
}  # fmt: skip


def told_otherwise(record: Mapping[str, str], text: str, places: Collection[str]) -> set[str]:
    """The fields of a record that a description of it gets wrong. `places`: all that can be nearby."""
    said = text.lower().replace("-", " ")
    wrong = set() if plain(record["name"]) in said else {"name"}
    ours = {plain(record["name"]), plain(record.get("near", ""))}
    if any(place in said for place in map(plain, places) if not any(place in our for our in ours)):
        wrong.add("near")
    for our in ours - {""}:
        said = said.replace(our, "")  # a name may hold a word such as `river`
    for field, patterns in SPOKEN.items():
        value = record.get(field, "").lower()
        heard, rest = set(), said
        for meaning, pattern in patterns.items():
            rest, times = re.subn(pattern, "", rest)
            heard |= {meaning} if times else set()
        if heard - {LEVEL_OF.get(value, value)}:
            wrong.add(field)
    return wrong


def plain(value: str) -> str:
    return value.lower().replace("-", " ")


def fields_of(record: str) -> dict[str, str]:
    """The fields of `name : The Vaults | area : riverside`."""
    return {key: value for key, _, value in (field.partition(" : ") for field in record.split(" | "))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How often a restaurant's description says something else than its record"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--prefix", type=Path, default=POCKET / "prefixes" / "e2e.safetensors")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    backbone = load_backbone(str(args.model), precision="float32")
    prefix = parse(args.prefix.read_bytes(), backbone.shape, backbone.fingerprint)
    assert isinstance(prefix, Prefix)
    examples = read_examples(args.data / "e2e" / "devset.csv", "e2e")
    inputs = [example.inputs for example in examples]
    answers = answer(backbone.model, backbone.tokenizer, prefix.past_key_values, inputs, MAX_NEW_TOKENS)
    told = {
        "the prefix": list(zip(inputs, answers, strict=True)),
        "people": [(example.inputs, target) for example in examples for target in example.targets],
    }
    places = {record["near"] for record in map(fields_of, inputs) if "near" in record}

    wrong = {
        by: [told_otherwise(fields_of(record), text, places) for record, text in said] for by, said in told.items()
    }
    shares = {by: sum(map(bool, fields)) / len(fields) for by, fields in wrong.items()}
    table = Table("told otherwise", *(f"{by}, of {len(said):,}" for by, said in told.items()), title="E2E's dev set")
    table.add_row("any field", *(f"{share:.1%}" for share in shares.values()))
    for field in ("name", "near", *SPOKEN):
        table.add_row(field, *(str(sum(field in fields for fields in each)) for each in wrong.values()))
    figures = {"wrong_by_prefix": shares["the prefix"], "wrong_by_people": shares["people"], "answers": len(inputs)}
    finish_table("facts", table, figures, args.out)


if __name__ == "__main__":
    main()
