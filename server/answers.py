"""Finished rows and tokens as the JSON and the headers of the generate routes.

Knows the contract's names. Knows nothing of how rows come about.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prefix_store.tasks import Served
from server.asked import Asked
from server.generation import Generation
from server.reading import Sample
from server.rows import Row, Token, finite
from server.text import Tokenizer

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # json.dumps would make one for each event


def body_of(samples: Sequence[Sample], tokenizer: Tokenizer) -> dict[str, Any]:
    """The JSON object; `samples` holds the best one first."""
    generation, rows = samples[0].generation, [sample.row for sample in samples]
    body: dict[str, Any] = {"generated_text": full_text(generation, rows[0]), **names_of(generation.asked)}
    if generation.parameters.details:
        body["details"] = _details(generation, rows, tokenizer)
    return body


def names_of(asked: Asked) -> dict[str, Any]:
    """The task and its version; a mix has neither, but those of its parts."""
    names = _task_and_version(asked.served)
    if asked.is_mix:
        names["mix"] = [{**_task_and_version(part.served), "weight": part.weight} for part in asked.parts]
    return names


def event_of(index: int, token: Token, sample: Sample, is_last: bool) -> bytes:
    """One token's event."""
    generation, row = sample.generation, sample.row
    event: dict[str, Any] = {
        "index": index,
        "token": _token(token),
        "top_tokens": [_token(top) for top in token.top] if generation.parameters.top_n_tokens else None,
        "generated_text": full_text(generation, row) if is_last else None,
        "details": _stream_details(generation, row) if is_last else None,
    }
    return sse(event)


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event. ASCII only: some readers take U+2028 and others for the end of a line."""
    return b"data: %b\n\n" % ENCODER.encode(event).encode("ascii")


def first_headers(samples: Sequence[Sample]) -> dict[str, str]:
    """What is known with the first token; the time in the queue, in milliseconds, is the first row's."""
    generation = samples[0].generation
    headers = {
        "x-prompt-tokens": str(num_prompt_tokens(samples)),
        "x-prefix-tokens": str(generation.asked.num_prefix_tokens),
        "x-queue-time": _ms(_queue_seconds(samples[0])),
    }
    served = [part.served for part in generation.asked.parts if part.served is not None]
    if generation.asked.is_mix:
        headers["x-task-version"] = ", ".join(f"{each.task_id}={each.version}" for each in served)
    elif served:
        headers["x-task-version"] = str(served[0].version)
    return headers


def final_headers(samples: Sequence[Sample]) -> dict[str, str]:
    """What is known at the end. Times are in milliseconds; one token's is that of the first row."""
    total = time.monotonic() - samples[0].generation.caller.arrived_at
    inference = total - _queue_seconds(samples[0])
    return {
        **first_headers(samples),
        "x-generated-tokens": str(num_generated_tokens(samples)),
        "x-total-time": _ms(total),
        "x-inference-time": _ms(inference),
        "x-time-per-token": _ms(inference / max(1, samples[0].row.num_tokens)),
    }


def num_prompt_tokens(samples: Sequence[Sample]) -> int:
    """A prompt counts once, however many samples there are of it."""
    generations = {id(sample.generation): sample.generation for sample in samples}
    return sum(generation.num_prompt_tokens for generation in generations.values())


def num_generated_tokens(samples: Sequence[Sample]) -> int:
    return sum(sample.row.num_tokens for sample in samples)


def full_text(generation: Generation, row: Row) -> str:
    return generation.inputs + row.text if generation.parameters.return_full_text else row.text


def _task_and_version(served: Served | None) -> dict[str, Any]:
    return {
        "task_id": None if served is None else served.task_id,
        "version": None if served is None else served.version,
    }


def _queue_seconds(sample: Sample) -> float:
    return max(0.0, (sample.row.admitted_at or 0.0) - sample.generation.caller.arrived_at)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"


def _details(generation: Generation, rows: list[Row], tokenizer: Tokenizer) -> dict[str, Any]:
    best, *others = rows
    return {
        **_sequence(generation, best, tokenizer),
        "prompt_tokens": generation.num_prompt_tokens,
        "skipped_tokens": 0,
        "prefix_tokens": generation.asked.num_prefix_tokens,
        "best_of_sequences": [
            {"generated_text": full_text(generation, row), **_sequence(generation, row, tokenizer)} for row in others
        ]
        or None,
        "steps": list(best.steps),
    }


def _sequence(generation: Generation, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
    top_tokens = [[_token(top) for top in token.top] for token in row.tokens]
    return {
        "finish_reason": row.finish_reason,
        "generated_tokens": row.num_tokens,
        "seed": generation.seed,
        "prefill": _prefill(generation, row, tokenizer) if generation.parameters.decoder_input_details else [],
        "tokens": [_token(token) for token in row.tokens],
        "top_tokens": top_tokens if generation.parameters.top_n_tokens else None,
    }


def _prefill(generation: Generation, row: Row, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The prompt's tokens; the first has no log-probability, since nothing of the prompt foretells it."""
    logprobs = [None, *(finite(entry.logprob) for entry in row.prompt_logprobs)]
    pairs = zip(generation.rows[0].prompt_token_ids, logprobs, strict=False)
    return [{"id": token_id, "text": tokenizer.name_of(token_id), "logprob": logprob} for token_id, logprob in pairs]


def _stream_details(generation: Generation, row: Row) -> dict[str, Any]:
    return {
        "finish_reason": row.finish_reason,
        "prompt_tokens": generation.num_prompt_tokens,
        "input_length": generation.num_prompt_tokens,
        "generated_tokens": row.num_tokens,
        "prefix_tokens": generation.asked.num_prefix_tokens,
        "seed": generation.seed,
        "steps": list(row.steps),
    }


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.special,
        "skipped": False,
    }
