"""Reads examples, an input and its targets each, from the files of real tasks.

Knows the formats by name. Knows nothing of prompt templates or tokens. Any file may be gzipped (`.gz`).
"""

import csv
import gzip
import json
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from training.errors import BadExamples
from training.records import dialogue_fields, render, render_triples, slot_fields


@dataclass(frozen=True, slots=True)
class Example:
    """One input and every text that answers it, at least one."""

    inputs: str
    targets: tuple[str, ...]


Reader = Callable[[Path], Iterator[Example]]

OWN_PAIRS = "; pairs of your own go into a .jsonl or .tsv file"

# What a file that is damaged, or of another kind than it is said to be, can raise
UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
UNREADABLE += (csv.Error, zlib.error, ElementTree.ParseError)


def read_examples(path: Path, format_name: str) -> list[Example]:
    """Read a file in one of the `FORMAT_NAMES`. Raises `BadExamples`, which says where and what was expected."""
    read = reader_of(format_name)
    try:
        examples = list(read(path))
    except UNREADABLE as error:
        reason = str(error) if isinstance(error, BadExamples | OSError) else repr(error)
        if isinstance(error, UnicodeDecodeError):  # which tells all that it read
            reason = f"a byte {error.object[error.start]:#04x} in it is not UTF-8; save it as UTF-8"
        raise BadExamples(f"{path} cannot be read as {format_name!r}: {reason}") from error
    if not examples:
        raise BadExamples(f"{path} holds no examples")
    for example in examples:
        for text in (example.inputs, *example.targets):
            if not isinstance(text, str):
                raise BadExamples(f"{path}: {text!r} stands where a text should")
            if not is_unicode(text):
                raise BadExamples(f"{path}: {text[:64]!a} is no Unicode text: half of a character stands in it")
    return examples


def is_unicode(text: str) -> bool:
    """JSON can hold half of a surrogate pair, as of an emoji that was cut."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def reader_of(format_name: str) -> Reader:
    """Raises `BadExamples` for a name that is none of the `FORMAT_NAMES`."""
    kind, _, service = format_name.partition(":")
    if kind == "sgd" and service:
        return partial(read_sgd, service=service)
    if format_name not in FORMATS:
        raise BadExamples(f"no format {format_name!r}; there are {', '.join(FORMAT_NAMES)}")
    return FORMATS[format_name]


def guess_format(path: Path) -> str:
    """The format that a file's name stands for; `webnlg`, `wikisplit` and `sgd` have to be named."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    by_suffix = {".jsonl": "jsonl", ".tsv": "tsv", ".csv": "e2e", ".json": "dart", ".xml": "dart"}
    if "src_alpha" in path.name:
        return "commongen"
    if suffix not in by_suffix:
        raise BadExamples(f"the name {path.name!r} tells no format; name one with --format: {', '.join(FORMAT_NAMES)}")
    return by_suffix[suffix]


def read_jsonl(path: Path) -> Iterator[Example]:
    """`{"input": "…", "target": "…"}` or `{"input": "…", "targets": ["…", …]}` a line."""
    return grouped(inputs_and_targets(path))


def inputs_and_targets(path: Path) -> Iterator[tuple[str, str]]:
    for number, record in read_records(path):
        targets = record.get("targets", [record["target"]] if "target" in record else [])
        texts = [record.get("input"), *targets] if isinstance(targets, list) else []
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            expected = '{"input": text, "target": text} or {"input": text, "targets": [texts]}'
            hint = "; is this WebNLG's own file (--format webnlg)?" if "triples" in record else ""
            raise BadExamples(f"line {number}: expected {expected}{hint}")
        yield from ((record["input"], target) for target in targets)


def read_tsv(path: Path) -> Iterator[Example]:
    """Input, a tab, target; all rows of the same input are one example with several targets."""
    return grouped(two_columns(path))


def read_e2e(path: Path) -> Iterator[Example]:
    """The E2E challenge's CSV, `mr,ref`: `name[The Vaults], eatType[pub]` -> `name : The Vaults | eatType : pub`."""
    return grouped(records_and_references(path))


def records_and_references(path: Path) -> Iterator[tuple[str, str]]:
    with open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        if not {"mr", "ref"} <= {*(reader.fieldnames or ())}:
            raise BadExamples(f"the first line names the columns {reader.fieldnames}; expected mr and ref{OWN_PAIRS}")
        for row in reader:
            if row["mr"] is None or row["ref"] is None:
                raise BadExamples(f"line {reader.line_num}: expected an mr and a ref")
            if None in row:  # what stands behind the columns that the first line names
                raise BadExamples(f"line {reader.line_num}: more columns than the first line names; quote commas")
            try:
                fields = slot_fields(row["mr"])
            except ValueError as error:
                raise BadExamples(f"line {reader.line_num}: {error}") from error
            yield render(fields), row["ref"].strip()


def read_webnlg(path: Path) -> Iterator[Example]:
    """WebNLG 2017: the challenge's XML, the JSON that the paper's authors made of it (`{"entries": [{"1": …}, …]}`), or
    JSON lines, `{"triples": [[s, p, o], …], "refs": [{"text", "comment"}, …]}`.

    References that the annotators marked as to be fixed are left out, as the challenge's own evaluation does.
    """
    for triples, references in webnlg_entries(path):
        texts = tuple(text for text, comment in references if comment == "good")
        if texts:
            yield Example(render_triples(triples), texts)


def webnlg_entries(path: Path) -> Iterator[tuple[list[Sequence[str]], list[tuple[str, str]]]]:
    """The triples of each entry, and its references with the annotators' comments."""
    if ".xml" in path.suffixes:
        for triples, lexes in xml_entries(path):
            yield triples, [(lex.text or "", lex.get("comment", "good")) for lex in lexes]
    elif ".json" in path.suffixes:
        with open_text(path) as file:
            entries = [entry for numbered in json.load(file)["entries"] for entry in numbered.values()]
        for entry in entries:
            triples = [(each["subject"], each["property"], each["object"]) for each in entry["modifiedtripleset"]]
            yield triples, [(text["lex"], text.get("comment", "good")) for text in entry["lexicalisations"]]
    else:
        for number, record in read_records(path):
            check_has(record, number, "triples", "refs")
            yield record["triples"], [(text["text"], text.get("comment", "good")) for text in record["refs"]]


def check_has(record: Mapping[str, Any], number: int, *names: str) -> None:
    if missing := [name for name in names if name not in record]:
        pairs = "lines of input and target are --format jsonl"
        raise BadExamples(f"line {number} has no {' and no '.join(missing)}; {pairs}")


def read_dart(path: Path) -> Iterator[Example]:
    """DART, its JSON (`tripleset`, `annotations`) or its XML (`mtriple`, `lex`)."""
    if ".xml" in path.suffixes:
        return read_dart_xml(path)
    with open_text(path) as file:
        records: list[dict[str, Any]] = json.load(file)
    if not all(isinstance(record, dict) and {"tripleset", "annotations"} <= record.keys() for record in records):
        raise BadExamples(f"expected objects that have a tripleset and annotations{OWN_PAIRS}")
    return (
        Example(render_triples(record["tripleset"]), tuple(note["text"] for note in record["annotations"]))
        for record in records
        if record["annotations"]
    )


def read_dart_xml(path: Path) -> Iterator[Example]:
    for triples, lexes in xml_entries(path):
        texts = tuple(lex.text or "" for lex in lexes)
        if texts:
            yield Example(render_triples(triples), texts)


def xml_entries(path: Path) -> Iterator[tuple[list[Sequence[str]], list[ElementTree.Element]]]:
    """The triples and the `lex` elements of each entry of WebNLG's XML, which is DART's too."""
    with open_text(path) as file:
        entries = ElementTree.parse(file).getroot().iter("entry")
    for entry in entries:
        yield [(element.text or "").split(" | ") for element in entry.iter("mtriple")], list(entry.iter("lex"))


def read_commongen(path: Path) -> Iterator[Example]:
    """CommonGen's two parallel files: `path` is `….src_alpha.txt`, the sentences are beside it in `….tgt.txt`.

    What stands on the same line belongs together; lines that are blank in both files are left out."""
    beside = commongen_targets(path)
    inputs, targets = dict(read_lines(path)), dict(read_lines(beside))
    if alone := inputs.keys() ^ targets.keys():
        raise BadExamples(f"line {min(alone)} stands in one of the two files alone (the other is {beside.name})")
    return grouped((text, targets[number]) for number, text in inputs.items())


def commongen_targets(path: Path) -> Path:
    if "src_alpha" not in path.name:
        raise BadExamples("the name has no src_alpha in it; expected ….src_alpha.txt, with ….tgt.txt beside it")
    return path.with_name(path.name.replace("src_alpha", "tgt"))


def read_wikisplit(path: Path) -> Iterator[Example]:
    """WikiSplit: a long sentence, a tab, two sentences with ` <::::> ` between them, which becomes a space."""
    return grouped((whole, parts.replace(" <::::> ", " ")) for whole, parts in two_columns(path))


def read_sgd(path: Path, service: str) -> Iterator[Example]:
    """One service's system turns of Schema-Guided Dialogue, as JSON lines `{"service", "acts", "text"}`, an act being
    `{"act", "slot", "values"}`: `offer hotel name : Aloft | inform count : 8` -> what the system says."""
    records = []
    for number, record in read_records(path):
        check_has(record, number, "service", "acts", "text")
        records.append(record)
    chosen = [record for record in records if record["service"] == service]
    if not chosen:
        services = sorted({record["service"] for record in records})
        raise BadExamples(f"no record of the service {service!r}; there are {', '.join(services)}")
    return grouped((render(dialogue_fields(record["acts"])), record["text"]) for record in chosen)


FORMATS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "tsv": read_tsv,
    "e2e": read_e2e,
    "webnlg": read_webnlg,
    "dart": read_dart,
    "commongen": read_commongen,
    "wikisplit": read_wikisplit,
}
FORMAT_NAMES = (*FORMATS, "sgd:SERVICE")


def files_of(path: Path, format_name: str) -> tuple[Path, ...]:
    """All files that `read_examples` reads."""
    return (path, commongen_targets(path)) if format_name == "commongen" else (path,)


def grouped(rows: Iterable[tuple[str, str]]) -> Iterator[Example]:
    """One example per distinct input, in the order of their first rows, as the challenges group references."""
    targets: dict[str, list[str]] = {}
    for inputs, target in rows:
        targets.setdefault(inputs, []).append(target)
    return (Example(inputs, tuple(texts)) for inputs, texts in targets.items())


def two_columns(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in read_lines(path):
        columns = line.split("\t")
        if len(columns) != 2:
            raise BadExamples(f"line {number}: {len(columns)} columns; expected two, a tab between them")
        yield columns[0], columns[1]


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line's number."""
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadExamples(f"line {number}, column {error.colno} is no JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise BadExamples(f"line {number}: expected a JSON object")
        yield number, record


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number in the file, from 1."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if text := line.rstrip("\r\n"):
                yield number, text


def open_text(path: Path) -> Any:
    """UTF-8, with or without its mark (BOM), lines ending in \\n only: a text may hold U+2028 and the like."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")
