"""The formats of real tasks, each as its authors write it."""

import gzip
import json
from pathlib import Path

import pytest

from training.errors import BadExamples
from training.examples import Example, guess_format, read_examples

VAULTS = "name[The Vaults], eatType[pub], priceRange[more than £30], near[Café Adriatic]"
E2E = f"""mr,ref
"{VAULTS}","The Vaults is a pub, near Café Adriatic. "
"{VAULTS}","Near Café Adriatic: The Vaults."
"name[Blue Spice], customer rating[5 out of 5]",Blue Spice is rated 5.
"""
AARHUS = [["Aarhus_Airport", "cityServed", '"Aarhus, Denmark"'], ["Aarhus", "isPartOf", "Denmark"]]
WEBNLG = json.dumps(
    {"triples": AARHUS, "refs": [{"text": "One.", "comment": "good"}, {"text": "Won.", "comment": "toFix"}]}
)
# The authors' JSON, and the challenge's XML, of the same entry
WEBNLG_JSON = json.dumps(
    {
        "entries": [
            {
                "1": {
                    "modifiedtripleset": [dict(zip(("subject", "property", "object"), t, strict=True)) for t in AARHUS],
                    "lexicalisations": [{"lex": "One.", "comment": "good"}, {"lex": "Won.", "comment": "toFix"}],
                }
            }
        ]
    }
)
WEBNLG_XML = """<benchmark><entries><entry category="Airport" eid="Id1" size="2"><modifiedtripleset>
<mtriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"</mtriple>
<mtriple>Aarhus | isPartOf | Denmark</mtriple></modifiedtripleset>
<lex comment="good" lid="Id1">One.</lex><lex comment="toFix" lid="Id2">Won.</lex></entry></entries></benchmark>"""
MARS_HILL = {"tripleset": [["Mars Hill College", "JOINED", "1973"]], "annotations": [{"text": "It joined in 1973."}]}
DART_XML = """<?xml version='1.0' encoding='utf-8'?>
<benchmark><entries><entry category="MISC" eid="Id1" size="2"><modifiedtripleset>
<mtriple>Hawaii Five-O | NOTES | Episode: The Flight</mtriple>
<mtriple>[TABLECONTEXT] | [TITLE] | Jeff Daniels</mtriple></modifiedtripleset>
<lex comment="x" lid="Id1">Jeff Daniels played.</lex>
<lex comment="x" lid="Id2">He played.</lex></entry></entries></benchmark>"""

HOTEL = {"act": "OFFER", "slot": "hotel_name", "values": ["Aloft", "Hyatt"]}
COUNT = {"act": "INFORM_COUNT", "slot": "count", "values": ["8"]}
DONE = {"act": "NOTIFY_SUCCESS", "slot": "", "values": []}
SGD = "".join(
    json.dumps({"service": service, "acts": acts, "text": text}) + "\n"
    for service, acts, text in [
        ("Hotels_1", [HOTEL, COUNT], "I found 8."),
        ("Banks_1", [DONE], "Transferred."),
        ("Hotels_1", [DONE], "Booked."),
        ("Hotels_1", [HOTEL, COUNT], "There are 8."),
    ]
)

FILES = {
    "jsonl": (
        "a.jsonl",
        '{"input": "a", "target": "b"}\n\n{"input": "c", "targets": ["d", "e"]}\n{"input": "a", "target": "f"}\n',
    ),
    "tsv": ("a.tsv", "a\tb\nd\te\u2028f\na\tc\r\n"),
    "e2e": ("a.csv", E2E),
    "webnlg lines": ("a.jsonl", WEBNLG + "\n"),
    "webnlg json": ("a.json", WEBNLG_JSON),
    "webnlg xml": ("a.xml", WEBNLG_XML),
    "dart json": ("a.json", json.dumps([MARS_HILL])),
    "dart xml": ("a.xml", DART_XML),
    "commongen": ("commongen.dev.src_alpha.txt", "field stand look\nfield stand look\n\nski mountain\n\n"),
    "wikisplit": ("a.tsv", "A , and B .\tA . <::::> B .\n"),
    "sgd:Hotels_1": ("a.jsonl", SGD),
}
EXPECTED = {
    "jsonl": [Example("a", ("b", "f")), Example("c", ("d", "e"))],
    "tsv": [Example("a", ("b", "c")), Example("d", ("e\u2028f",))],
    "e2e": [
        Example(
            "name : The Vaults | eatType : pub | priceRange : more than £30 | near : Café Adriatic",
            ("The Vaults is a pub, near Café Adriatic.", "Near Café Adriatic: The Vaults."),
        ),
        Example("name : Blue Spice | customer rating : 5 out of 5", ("Blue Spice is rated 5.",)),
    ],
    **{
        f"webnlg {kind}": [
            Example('Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus : isPartOf : Denmark', ("One.",))
        ]
        for kind in ("lines", "json", "xml")
    },
    "dart json": [Example("Mars Hill College : JOINED : 1973", ("It joined in 1973.",))],
    "dart xml": [
        Example(
            "Hawaii Five-O : NOTES : Episode: The Flight | [TABLECONTEXT] : [TITLE] : Jeff Daniels",
            ("Jeff Daniels played.", "He played."),
        )
    ],
    "commongen": [Example("field stand look", ("One stands.", "He looks.")), Example("ski mountain", ("They ski.",))],
    "wikisplit": [Example("A , and B .", ("A . B .",))],
    "sgd:Hotels_1": [
        Example("offer hotel name : Aloft, Hyatt | inform count count : 8", ("I found 8.", "There are 8.")),
        Example("notify success", ("Booked.",)),
    ],
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_each_format_is_read_as_its_authors_write_it(tmp_path: Path, case: str, zipped: bool) -> None:
    name, text = FILES[case]
    write(tmp_path / name, text, zipped)
    write(tmp_path / "commongen.dev.tgt.txt", "One stands.\nHe looks.\n\nThey ski.\n", zipped)
    path = tmp_path / (name + ".gz" if zipped else name)
    assert read_examples(path, case.split()[0]) == EXPECTED[case]


def write(path: Path, text: str, zipped: bool) -> None:
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())


@pytest.mark.parametrize(
    ("format_name", "text", "complaint"),
    [
        ("jsonl", '{"input": "a", "target": "b"}\n{"input": "a"}\n', "line 2: expected"),
        ("jsonl", '\n\n{"input": "a"}\n', "line 3: expected"),
        ("jsonl", '{"input": 5, "target": "b"}\n', "line 1: expected"),
        ("jsonl", '{"input": "a", "targets": []}\n', "line 1: expected"),
        ("jsonl", '{"input": "a", "targets": "A red one."}\n', "line 1: expected"),
        ("jsonl", "not json\n", "cannot be read as 'jsonl'"),
        ("jsonl", '\n{"input": "a", target": "b"}\n', "line 2, column 16 is no JSON"),
        ("jsonl", "[1]\n", "cannot be read as 'jsonl'"),
        ("jsonl", WEBNLG, "is this WebNLG's own file"),
        ("tsv", "a\tb\tc\n", "line 1: 3 columns; expected two"),
        ("tsv", "a\tb\n\nc\n", "line 3: 1 columns; expected two"),
        ("commongen", "field stand\n", "no src_alpha in it; expected"),
        ("jsonl", '{"input": "a", "target": "\\ud83d"}\n', r"'\\ud83d' is no Unicode text"),
        (
            "e2e",
            "a,b\n1,2\n",
            r"names the columns \['a', 'b'\]; expected mr and ref; pairs of your own go into a .jsonl",
        ),
        ("e2e", 'mr,ref\nname[A],"A.\nname[B],B.\n', "unexpected end of data"),
        ("e2e", "mr,ref\nname[A],A.\nname[B]\n", "line 3: expected an mr and a ref"),
        ("e2e", "mr,ref\nname[A],A.\na red bike,B.\n", r"line 3: expected slot\[value\].*, found 'a red bike'"),
        ("e2e", "mr,ref\n,A.\n", "line 2: expected slot"),
        ("e2e", "mr,ref\nname[A [B] C],A.\n", "line 2: expected slot"),
        ("e2e", "mr,ref\nname[A] and B,A.\n", "line 2: expected slot"),
        ("e2e", "mr,ref\nname[A], food[B],A serves B.\n", "line 2: more columns than the first line names"),
        ("dart", '[{"tripleset": [["a", "b", "c"]], "annotations": [{"text": null}]}]', "None stands where a text"),
        ("e2e", "mr,ref\rname[A],A.\r", "new-line character"),
        ("dart", "{}", "holds no examples"),
        ("dart", '[{"input": "a", "target": "b"}]', "expected objects that have a tripleset and annotations; pairs of"),
        ("jsonl", "", "holds no examples"),
        ("csv", "", "no format 'csv'; there are jsonl"),
        ("sgd", SGD, "no format 'sgd'; there are .*sgd:SERVICE"),
        ("sgd:Hotels_9", SGD, "no record of the service 'Hotels_9'; there are Banks_1, Hotels_1"),
        ("sgd:Hotels_1", FILES["jsonl"][1], "line 1 has no service and no acts and no text; .*--format jsonl"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_the_place(
    tmp_path: Path, format_name: str, text: str, complaint: str
) -> None:
    path = tmp_path / "file.txt"
    path.write_text(text)
    with pytest.raises(BadExamples, match=complaint):
        read_examples(path, format_name)


def test_a_file_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(b"mr,ref\n" + b"name[Caf\xe9],A.\n" * 300)
    with pytest.raises(BadExamples, match=r"a byte 0xe9 in it is not UTF-8; save it as UTF-8$"):
        read_examples(path, "e2e")


def test_commongen_lines_that_have_no_counterpart_are_told(tmp_path: Path) -> None:
    path, beside = tmp_path / "a.src_alpha.txt", tmp_path / "a.tgt.txt"
    path.write_text("field stand\n\nski\n")
    for targets in ("One stands.\nThey ski.\n", "One stands.\n\n", "One stands.\nThey ski.\n\n"):
        beside.write_text(targets)
        with pytest.raises(BadExamples, match=r"line [23] stands in one of the two files alone"):
            read_examples(path, "commongen")


def test_a_slot_of_a_users_own_may_have_any_name_and_an_empty_value(tmp_path: Path) -> None:
    (tmp_path / "bikes.csv").write_text('mr,ref\n"price-range[low], colour (main)[red],gears[], ",A cheap red bike.\n')
    (example,) = read_examples(tmp_path / "bikes.csv", "e2e")
    assert example.inputs == "price-range : low | colour (main) : red | gears"


@pytest.mark.parametrize("damage", ["cut short", "a byte changed"])
def test_a_zipped_file_that_is_damaged_is_refused(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b'{"input": "a", "target": "b"}\n' * 9)
    broken = whole[:-9] if damage == "cut short" else whole[:12] + bytes([whole[12] ^ 0xFF]) + whole[13:]
    (tmp_path / "a.jsonl.gz").write_bytes(broken)
    with pytest.raises(BadExamples, match=r"a\.jsonl\.gz cannot be read as 'jsonl'"):
        read_examples(tmp_path / "a.jsonl.gz", "jsonl")


@pytest.mark.parametrize("name", ["jsonl", "tsv", "e2e"])
def test_the_mark_that_some_programs_put_before_utf_8_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    _, text = FILES[name]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_examples(tmp_path / "a.txt", name) == EXPECTED[name]


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadExamples, match="No such file"):
        read_examples(tmp_path / "nothing.jsonl", "jsonl")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.tsv", "tsv"),
        ("trainset.csv", "e2e"),
        ("dart-v1.1.1-full-test.xml.gz", "dart"),
        ("dart.json", "dart"),
        ("commongen.train.src_alpha.txt", "commongen"),
    ],
)
def test_a_files_name_tells_its_format(name: str, expected: str) -> None:
    assert guess_format(Path(name)) == expected


def test_a_name_that_tells_nothing_asks_for_the_format() -> None:
    with pytest.raises(BadExamples, match="tells no format; name one with --format"):
        guess_format(Path("a.txt"))
