"""Server-sent events: bytes in, events out.

Knows how lines and events end (WHATWG HTML, 9.2) and what an event of ours holds. Knows nothing of sockets.
"""

import json
from collections.abc import Iterator

from clients.errors import ConnectionFailed, UnexpectedAnswer, error_from_event
from clients.results import StreamEvent


class EventDecoder:
    """Cuts a byte stream into the payloads of its `data:` fields.

    A line ends with \\n or \\r\\n only: `str.splitlines` would also cut at U+2028, U+0085 and others, inside a text.
    Cutting bytes before decoding them also keeps characters whole that arrive in two chunks.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._fields: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        payloads = (self._end_line(line.removesuffix(b"\r").decode(errors="replace")) for line in lines)
        return [payload for payload in payloads if payload is not None]

    def _end_line(self, line: str) -> str | None:
        """The payload that this line completes; an empty line ends an event, `:` starts a comment (keep-alives)."""
        if line == "" and self._fields:
            payload, self._fields = "\n".join(self._fields), []
            return payload
        name, _, value = line.partition(":")
        if name == "data":
            self._fields.append(value.removeprefix(" "))
        return None


class EventReader:
    """Reads one generation's stream. Feed it what arrives, and call `end` when nothing more does.

    Raises the `ApiError` that an error event tells, `ConnectionFailed` when the stream ends before its last event.
    """

    def __init__(self, url: str, request_id: str | None) -> None:
        self._url = url
        self._request_id = request_id
        self._decoder = EventDecoder()
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[StreamEvent]:
        for payload in self._decoder.feed(chunk):
            event = self._read(payload)
            self._ended = self._ended or event.is_last
            yield event

    def end(self) -> None:
        if not self._ended:
            raise ConnectionFailed(self._url, "the stream broke off before its last event")

    def _read(self, payload: str) -> StreamEvent:
        try:
            body = json.loads(payload)
            if "error" not in body:
                return StreamEvent.from_json(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnexpectedAnswer(f"an event of {self._url} is not one of ours: {payload[:200]!r}") from error
        raise error_from_event(body, self._request_id)
