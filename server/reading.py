"""Reads what the engine says of one request's rows, as it comes: they grow, and how long they waited is measured.

Knows rows, metrics and accounts. Knows nothing of deadlines, or of how an answer is written.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.trace import get_tracer

from batching.types import Compiled, Request
from prefix_store.usage import Usage
from server.engine_messages import Letter
from server.generation import Generation
from server.rows import Row, Token
from server.services import Services
from server.tracing import trace_row


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One row of a request: what was asked, and what has come of it so far."""

    generation: Generation
    request: Request
    row: Row


Added: TypeAlias = dict[Sample, list[Token]]  # what some rows have said since the last time


class Reading:
    """The rows of one request while they run."""

    def __init__(self, services: Services, samples: Sequence[Sample], *, is_streaming: bool) -> None:
        """Made when the rows are submitted. `is_streaming`: each token is to be written as it comes; else there is
        nothing to do before the end."""
        self._services = services
        self._samples = {sample.request.request_id: sample for sample in samples}
        self._is_streaming = is_streaming
        self._added: Added = {}
        self._submitted_at = time.monotonic()
        self.num_open = len(samples)

    def read(self, letter: Letter) -> bool:
        """Take it in; returns whether there is something to do now. Raises as `Row.read`."""
        assert not isinstance(letter, Compiled), "an answer to Compile in a request's mailbox"
        sample = self._samples[letter.request_id]
        row = sample.row
        if row.finish_reason is not None:
            return False
        was_queued, num_before = row.admitted_at is None, row.num_tokens
        row.read(letter)
        if was_queued:
            self._services.metrics.queue_seconds.observe(max(0.0, letter.admitted_at - self._submitted_at))
        if row.num_tokens > num_before:
            self._time(sample)
            if self._is_streaming:
                self._added.setdefault(sample, []).extend(row.tokens[num_before:])
        if row.finish_reason is not None:
            row.ended_at = time.monotonic()
            self.num_open -= 1
            self._services.engine.abort(letter.request_id)  # the engine knows nothing of stop strings
        return bool(self._added) or self.num_open == 0

    def take(self) -> Added:
        """What the rows of a stream have said since the last time."""
        added, self._added = self._added, {}
        return added

    def account(self) -> None:
        """Put the rows' tokens on their tenant's account, however they ended; one that never ran costs nothing.

        A mix has a row for each of its tasks, and each of those is counted.
        """
        for sample in self._samples.values():
            if sample.row.admitted_at is not None:
                self._account(sample, sample.row.admitted_at)

    def _time(self, sample: Sample) -> None:
        """Measure how long the tokens that a row has just said were awaited."""
        metrics, row, caller = self._services.metrics, sample.row, sample.generation.caller
        now = time.monotonic()
        if row.last_token_at is None:
            row.first_token_at = now
            metrics.first_token_seconds.observe(now - caller.arrived_at)
            self._services.live.observe_first_token(caller.tenant, now - caller.arrived_at)
        else:
            metrics.inter_token_seconds.observe(now - row.last_token_at)
        row.last_token_at = now
        if row.finish_reason is not None:
            metrics.end_to_end_seconds.observe(now - caller.arrived_at)

    def _account(self, sample: Sample, admitted_at: float) -> None:
        services, generation, row = self._services, sample.generation, sample.row
        num_prompt_tokens, num_generated_tokens = generation.num_prompt_tokens, row.num_tokens
        used = Usage(
            prompt_tokens=num_prompt_tokens,
            generated_tokens=num_generated_tokens,
            seconds=(row.ended_at or time.monotonic()) - admitted_at,
        )
        caller = generation.caller
        for part in generation.asked.parts:
            services.metrics.prompt_tokens.inc(num_prompt_tokens)
            services.metrics.generated_tokens.inc(num_generated_tokens)
            services.accounts.observe_row(caller.tenant, part.name, num_prompt_tokens, num_generated_tokens)
            num_computed_tokens = num_generated_tokens * generation.parameters.num_slots  # by each of the beams
            services.limits.charge(caller.principal, num_prompt_tokens, num_computed_tokens)
            services.store.usage.add(caller.tenant, part.name, used)
        trace_row(
            get_tracer("polyprefix"),
            {"polyprefix.tenant": caller.tenant, "polyprefix.task": generation.asked.name},
            caller.arrived_at,
            admitted_at,
            row.first_token_at,
            row.last_token_at,
        )
