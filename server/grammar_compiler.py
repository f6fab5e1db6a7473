"""Turns a grammar into a matcher of llguidance's, as far as that library's own limits go.

Knows llguidance, and imports nothing of ours, so that `grammar_trial` can run it in a small process.
"""

import re
from dataclasses import dataclass
from typing import Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_SHOWN = 300  # characters of the library's own message
EXPRESSION_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)
# Between the parts of JSON: a small model would write line after line of nothing, where it may.
WHITESPACE = " ?"
# Without \u: the library would take "\u0061" for another key than "a", and a reader for the same one.
ESCAPES = '"\\bfnrt'
# Half of the library's default for a step, and a tenth of its states: these take one to two kilobytes each.
LIMITS = LLParserLimits(step_lexer_fuel=100_000, max_lexer_states=25_000, verbose_errors=False)


@dataclass(frozen=True, slots=True)
class Grammar:
    """`source` is a regular expression (Rust's dialect, matched as a whole), or a JSON schema written as JSON."""

    kind: Literal["regex", "json"]
    source: str


class GrammarError(ValueError):
    """A grammar that cannot be followed; the message says what is wrong."""


class GrammarCompiler:
    def __init__(self, tokenizer: str, eos_token_id: int) -> None:
        """`tokenizer` is the text of a tokenizer.json. Raises `GrammarError` where the library cannot read it."""
        try:
            self._tokenizer = LLTokenizer(tokenizer, eos_token=eos_token_id)
        except ValueError as error:
            raise GrammarError(f"this server's tokenizer cannot follow a grammar: {_brief(str(error))}") from error

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher before its first token. Raises `GrammarError`.

        May take memory and time without bounds, or end the process by an overflow of its stack: try it elsewhere first.
        """
        matcher = LLMatcher(self._tokenizer, self._lowered(grammar), limits=LIMITS, log_level=0)
        matcher.compute_bitmask()  # a copy: a grammar that allows nothing at all is found out here
        if matcher.is_error():
            raise GrammarError(_reason(matcher))
        return matcher

    def _lowered(self, grammar: Grammar) -> str:
        """In the library's own form."""
        if grammar.kind == "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        try:
            return LLMatcher.grammar_from_json_schema(
                grammar.source,
                overrides={  # of options that the schema may bring with it, some of which loosen what it says
                    "whitespace_pattern": WHITESPACE,
                    "json_allowed_escapes": ESCAPES,
                    "coerce_one_of": False,
                    "lenient": False,
                },
            )
        except ValueError as error:
            raise GrammarError(_brief(str(error))) from error


def check(matcher: LLMatcher) -> None:
    """Raise `GrammarError` if it has given up: it never raises by itself."""
    if matcher.is_error():
        raise GrammarError(_reason(matcher))


def _reason(matcher: LLMatcher) -> str:
    reason = matcher.get_error()
    return "no text at all can fulfil it" if reason.startswith("NoExtension") else _brief(reason)


def _brief(message: str) -> str:
    """On one line, and not all of a long one; of a regular expression's error without the expression itself."""
    told = EXPRESSION_ERROR.search(message)
    line = " ".join((told.group(1) if told else message.removesuffix("<non-verbose/>")).split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"
