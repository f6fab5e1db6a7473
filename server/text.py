"""Text to token ids and back: the tokenizer beside the model, text that grows token by token, stop strings, templates.

Knows tokenizers and UTF-8. Knows nothing of requests, the engine or HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from server.schemas import INPUTS_PLACE

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class TextToken:
    """One token of a text: `text[start:stop]`, in characters."""

    id: int
    start: int
    stop: int


class Tokenizer:
    """Safe to use from several threads at once: it only ever reads the tokenizer."""

    def __init__(self, text: str) -> None:
        """`text` is that of a tokenizer.json."""
        backend = Backend.from_str(text)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_ids = frozenset(id for id, token in backend.get_added_tokens_decoder().items() if token.special)
        self._names: dict[int, str] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> list[TextToken]:
        """The tokens of a text with their places in it."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [TextToken(token_id, start, stop) for token_id, (start, stop) in pairs]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def name_of(self, token_id: int) -> str:
        """How the token reads alone. Answers with scores ask for thousands, over and over."""
        name = self._names.get(token_id)
        if name is None:
            name = self._names[token_id] = self.decode([token_id])
        return name

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids


class Detokenizer:
    """One row's text, token by token. An unfinished UTF-8 character is held back until its last byte has come.

    Each push decodes a short window: the tokens since the last whole character, and the ones before them as context,
    since some tokenizers write a token differently at the beginning of a text. Joined, the pieces are the text that
    decoding all tokens at once gives.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_context_tokens = 0
        self._num_written = 0  # characters of the window's text that have been given out

    def push(self, token_id: int) -> str:
        """The text that this token adds, `""` while a character is unfinished."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        # Whatever follows can only change the last replacement character: what is before it has all its bytes.
        whole = text.removesuffix(UNFINISHED)
        added = whole[self._num_written :]
        self._num_written = max(self._num_written, len(whole))
        if len(whole) == len(text):
            self._forget_context()
        return added

    def finish(self) -> str:
        """What is still held back, unfinished as it is."""
        return self._tokenizer.decode(self._window)[self._num_written :]

    def _forget_context(self) -> None:
        self._window = self._window[self._num_context_tokens :]
        self._num_context_tokens = len(self._window)
        self._num_written = len(self._tokenizer.decode(self._window))


class StopStrings:
    """Watches one row's text for its stop strings, and holds back what may still become one. Plain search."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.has_stopped = False

    @property
    def has_any(self) -> bool:
        return bool(self._stop_strings)

    def push(self, text: str) -> str:
        """The text that is safe to give out; once a stop string has come, what was before it, and `has_stopped`."""
        if not self.has_any:
            return text
        self._held += text
        found = earliest(self._held, self._stop_strings)
        if found is not None:
            self.has_stopped = True
            safe, self._held = self._held[:found], ""
            return safe
        num_held = max((_num_begun(self._held, stop) for stop in self._stop_strings), default=0)
        safe = self._held[: len(self._held) - num_held]
        self._held = self._held[len(safe) :]
        return safe

    def finish(self) -> str:
        """What is still held back: it can become no stop string any more."""
        held, self._held = self._held, ""
        return held


def earliest(text: str, stop_strings: Sequence[str]) -> int | None:
    """Where the first of any stop string begins in `text`."""
    return min((place for stop in stop_strings if (place := text.find(stop)) >= 0), default=None)


def render(template: str | None, inputs: str) -> str:
    """Put `inputs` in the template's one place, literally."""
    return inputs if template is None else template.replace(INPUTS_PLACE, inputs)


def ends_with_its_own(template: str | None) -> bool:
    """Whether a template puts something behind `inputs`."""
    return template is not None and not template.endswith(INPUTS_PLACE)


def _num_begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
