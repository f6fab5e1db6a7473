"""Text that grows token by token, stop strings and templates, without a server."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from server.text import Detokenizer, StopStrings, Tokenizer, render
from server.tokenizer_loading import TokenizerError, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: Backend) -> Tokenizer:
    return Tokenizer(byte_tokenizer.to_str())


def pieces(tokenizer: Tokenizer, token_ids: bytes) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


# Bytes that begin, go on with and break UTF-8 characters come more often than they would by chance.
broken_text = st.lists(st.sampled_from([b"a", b" ", b"\xe2", b"\x98", b"\x83", b"\xf0", b"\x9f", b"\xed\xa0", b"\xff"]))


@settings(deadline=None)
@given(token_ids=st.one_of(st.binary(max_size=40), broken_text.map(b"".join), st.text().map(str.encode)))
def test_the_joined_pieces_are_what_decoding_all_at_once_gives(tokenizer: Tokenizer, token_ids: bytes) -> None:
    assert "".join(pieces(tokenizer, token_ids)) == tokenizer.decode(list(token_ids))
    assert tokenizer.decode(list(token_ids)) == token_ids.decode("utf-8", "replace")


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "a☃b".encode()) == ["a", "", "", "☃", "b", ""]


@settings(deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    cuts=st.lists(st.integers(1, 4), max_size=30),
)
def test_stop_strings_cut_at_the_first_whatever_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    watch, out, rest = StopStrings(stops), "", text
    for cut in [*cuts, len(text) + 1]:
        out += watch.push(rest[:cut])
        rest = rest[cut:]
        if watch.has_stopped:
            break
    out += "" if watch.has_stopped else watch.finish()
    seen = text[: len(text) - len(rest)]
    first = min((seen.find(stop) for stop in stops if stop in seen), default=None)
    assert out == (seen if first is None else seen[:first])


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    watch = StopStrings(["<end>"])
    assert [watch.push(piece) for piece in ("a<", "en", "x", "<end", ">b")] == ["a", "", "<enx", "", ""]
    assert watch.has_stopped


def test_a_template_is_filled_literally() -> None:
    assert render("{0} {inputs} %s {{}}", "{inputs} \\1") == "{0} {inputs} \\1 %s {{}}"
    assert render(None, "x") == "x"


def test_a_model_without_a_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(TokenizerError, match="no tokenizer beside the model"):
        load_tokenizer(str(tmp_path), 257)


def test_a_tokenizer_larger_than_the_backbones_vocabulary_is_refused(tiny_model: Path) -> None:
    assert Tokenizer(load_tokenizer(str(tiny_model), 257)).encode("ab") == (97, 98)
    with pytest.raises(TokenizerError, match="has 257 tokens; the backbone has 256"):
        load_tokenizer(str(tiny_model), 256)
