"""Whatever comes, goes, fails and is aborted, in whatever order: every request ends once, with the tokens that are its.

The real engine and scheduler under a hand-written model, driven by hypothesis; the long form is in `tests/torture`.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batching.types import Compile, Compiled, FinishReason, MixedPrefix, Request, SamplingParams, StepOutput
from prefix_store.prefix import Prefix
from tests.batching.support import run, tokens
from tests.batching.tagged import (
    CURSED,
    EOS,
    SHAPE,
    VOCAB_SIZE,
    next_logits,
    poisoned_prefix,
    tagged_engine,
    tagged_prefix,
)

NUM_SLOTS = 6
TENANTS = st.sampled_from(["acme", "zeta", "quiet"])
TASKS = ("poet", "clerk", "chef")
PROMPTS = st.lists(st.integers(1, VOCAB_SIZE - 2), min_size=1, max_size=30).map(tuple)
SHORT = SamplingParams(max_new_tokens=9)
_ids = count()


@st.composite
def sampling(draw: st.DrawFn) -> SamplingParams:
    """Parameters of every kind, set in one request and unset in the next."""
    num_new = draw(st.integers(1, 12))
    given: dict[str, object] = {"max_new_tokens": num_new, "min_new_tokens": draw(st.integers(0, num_new))}
    kind = draw(st.sampled_from(["greedy", "greedy", "sampled", "beams"]))
    if kind == "sampled":
        given |= {"temperature": draw(st.sampled_from([0.5, 1.0, 2.0])), "seed": draw(st.integers(0, 99))}
        given |= {"top_k": draw(st.sampled_from([0, 3])), "top_p": draw(st.sampled_from([1.0, 0.7]))}
    elif kind == "beams":
        given |= {"num_beams": draw(st.integers(2, 4)), "length_penalty": draw(st.sampled_from([0.0, 1.0, 2.0]))}
    given["repetition_penalty"] = draw(st.sampled_from([1.0, 1.0, 1.8]))
    given["logprobs"] = draw(st.sampled_from([None, 0, 2]))
    return SamplingParams(**given)  # type: ignore[arg-type]


@dataclass
class Expected:
    """An open request: what it must say in the end, and what it has said."""

    request: Request | Compile
    answer: list[int]
    must_fail: bool = False
    stop_token: int | None = None  # as the server does: once it is said, the request is aborted
    is_aborted: bool = False
    said: list[int] = field(default_factory=list)


def answer_alone(request: Request) -> list[int]:
    """The tokens of the request in an engine of its own; of a plain greedy one also by the model's function."""
    (outputs,) = run(tagged_engine(NUM_SLOTS)[0], [request])
    answer = tokens(outputs)
    params = request.sampling_params
    if params.temperature == 0 and params.num_beams == 1 and params.repetition_penalty == 1 and not request.mix:
        assert answer == greedy_answer(request)
    return answer


def greedy_answer(request: Request) -> list[int]:
    params, said = request.sampling_params, []
    tags = [] if request.prefix is None else request.prefix.past_key_values[0, 0, :, 0, 0].tolist()
    while len(said) < params.max_new_tokens and EOS not in said:
        logits = next_logits([*tags, *request.prompt_token_ids, *said]).clone()
        if len(said) < params.min_new_tokens:
            logits[EOS] = -torch.inf
        said.append(int(logits.argmax()))
    return said


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine, self.backbone = tagged_engine(NUM_SLOTS)
        self.engine.cache.keys[:] = self.engine.cache.values[:] = 1e4  # what former owners may leave
        self.tasks: dict[str, Prefix] = {}
        self.tags = count(100)
        self.open: dict[str, Expected] = {}
        self.ended: set[str] = set()
        self.served: dict[str, float] = {}  # by tenant, as long as it has an account
        self.last_step = 0

    # ------------------------------------------------------------ tasks

    @rule(task=st.sampled_from(TASKS), num_virtual_tokens=st.integers(1, 8))
    def upload_or_replace(self, task: str, num_virtual_tokens: int) -> None:
        self.tasks[task] = tagged_prefix(next(self.tags), num_virtual_tokens)

    @rule(task=st.sampled_from(TASKS))
    def delete(self, task: str) -> None:
        self.tasks.pop(task, None)

    # ------------------------------------------------------------ requests

    @rule(
        tenant=TENANTS,
        task=st.sampled_from([*TASKS, None]),
        prompt=PROMPTS,
        params=sampling(),
        mixed_with=st.just([]) | st.lists(st.sampled_from([*TASKS, None]), min_size=1, max_size=3),
        num_choices=st.sampled_from([1, 1, 1, 3]),
        stop_token=st.none() | st.integers(1, VOCAB_SIZE - 2),
        weight=st.sampled_from([1.0, 3.0]),
    )
    def ask(
        self,
        tenant: str,
        task: str | None,
        prompt: tuple[int, ...],
        params: SamplingParams,
        mixed_with: list[str | None],
        num_choices: int,
        stop_token: int | None,
        weight: float,
    ) -> None:
        prefixes = [self.tasks.get(each) if each is not None else None for each in (task, *mixed_with)]
        mix = tuple(MixedPrefix(prefix, weight=1.0 + i) for i, prefix in enumerate(prefixes))
        for choice in range(num_choices if params.temperature > 0 else 1):
            request = Request(
                f"request-{next(_ids)}", tenant, prompt, prefixes[0], replace(params, choice=choice), weight
            )
            if mixed_with and params.num_beams == 1:
                request = replace(request, prefix=None, mix=mix)
            self._add(Expected(request, answer_alone(request), stop_token=stop_token))

    @rule(tenant=TENANTS, prompt=PROMPTS, num_virtual_tokens=st.integers(1, 8), in_a_mix=st.booleans())
    def ask_for_a_poisoned_task(
        self, tenant: str, prompt: tuple[int, ...], num_virtual_tokens: int, in_a_mix: bool
    ) -> None:
        request = Request(f"request-{next(_ids)}", tenant, prompt, poisoned_prefix(num_virtual_tokens), SHORT)
        if in_a_mix:
            request = replace(request, prefix=None, mix=(MixedPrefix(None, 1.0), MixedPrefix(request.prefix, 0.01)))
        self._add(Expected(request, [], must_fail=True))

    @rule(tenant=TENANTS, prompt=PROMPTS, place=st.integers(0, 29))
    def ask_what_makes_the_forward_raise(self, tenant: str, prompt: tuple[int, ...], place: int) -> None:
        place %= len(prompt)
        cursed = (*prompt[:place], CURSED, *prompt[place:])
        self._add(Expected(Request(f"request-{next(_ids)}", tenant, cursed, None, SHORT), [], must_fail=True))

    @rule(tenant=TENANTS, prompt=PROMPTS)
    def compile(self, tenant: str, prompt: tuple[int, ...]) -> None:
        self._add(Expected(Compile(f"compile-{next(_ids)}", tenant, token_ids=prompt), list(prompt)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._abort(data.draw(st.sampled_from(sorted(self.open))))

    @rule()
    def abort_what_is_not_there(self) -> None:
        self.engine.abort("nobody")
        for request_id in list(self.ended)[:3]:
            self.engine.abort(request_id)

    def _add(self, expected: Expected) -> None:
        self.engine.add_request(expected.request)
        self.open[expected.request.request_id] = expected

    def _abort(self, request_id: str) -> None:
        self.open[request_id].is_aborted = True
        self.engine.abort(request_id)

    # ------------------------------------------------------------ steps

    @rule()
    def step(self) -> None:
        self._step()

    @precondition(lambda self: self.engine.has_work)
    @rule(num_steps=st.integers(2, 8))
    def take_steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()
            self.slots_belong_to_one_row_each()

    @rule(num_passes=st.integers(1, 3))
    def step_while_the_forward_raises(self, num_passes: int) -> None:
        self.backbone.num_raising = num_passes
        self._step()
        self.backbone.num_raising = 0

    def _step(self) -> None:
        self.backbone.num_raised_alone = 0
        num_unlucky = 0
        for output in self.engine.step():
            expected = self.open[output.request_id]  # a KeyError: it had ended before
            if isinstance(output, Compiled):
                num_unlucky += self._end_compile(expected, output)
            else:
                num_unlucky += self._read(expected, output)
        assert num_unlucky <= self.backbone.num_raised_alone, "a row failed though it was not alone in what raised"

    def _read(self, expected: Expected, output: StepOutput) -> bool:
        """Take an output in; whether it was a failure that is none of the row's."""
        assert output.step >= self.last_step
        self.last_step = output.step
        expected.said += output.new_token_ids
        assert expected.said == expected.answer[: len(expected.said)]
        reason = output.finish_reason
        if reason is None:
            if expected.stop_token in output.new_token_ids:
                self._abort(output.request_id)
            return False
        self._close(output.request_id)
        if expected.is_aborted:
            assert reason is FinishReason.ABORT
        elif reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert not expected.must_fail
            assert expected.said == expected.answer
            assert (reason is FinishReason.STOP) == (expected.answer[-1] == EOS)
        else:
            assert reason is FinishReason.ERROR
            return not expected.must_fail
        return False

    def _end_compile(self, expected: Expected, output: Compiled) -> bool:
        self._close(output.request_id)
        if output.past_key_values is None:
            return not expected.is_aborted
        assert not expected.is_aborted
        assert output.past_key_values.shape == (1, 2, len(expected.answer), 1, 1)
        assert output.past_key_values[0, 0, :, 0, 0].tolist() == expected.answer
        return False

    def _close(self, request_id: str) -> None:
        del self.open[request_id]
        self.ended.add(request_id)

    # ------------------------------------------------------------ what always holds

    @invariant()
    def slots_belong_to_one_row_each(self) -> None:
        running = self.engine._scheduler.running
        taken = [slot for sequence in running for slot in sequence.slots]
        assert sorted([*taken, *self.engine.cache._free]) == list(range(NUM_SLOTS))
        for sequence in running:
            slots = [row.slot for row in sequence.rows]
            assert len(set(slots)) == len(slots)
            assert set(slots) <= set(sequence.slots)
            assert len(sequence.slots) == sequence.num_slots_needed
            for row in sequence.rows:
                length = row.num_virtual_tokens + sequence.num_prompt_tokens + len(row.output_token_ids)
                assert row.num_cached <= length <= SHAPE.n_positions

    @invariant()
    def counts_agree(self) -> None:
        num_open = sum(not expected.is_aborted for expected in self.open.values())
        assert self.engine.num_running + self.engine.num_waiting == len(self.engine._sequences) == num_open
        assert self.engine.has_work == bool(self.open)
        if self.engine.last_step is not None:
            stats = self.engine.last_step
            assert stats.num_rows <= NUM_SLOTS
            assert stats.num_distinct_prefixes <= stats.num_rows <= stats.num_prefill_tokens + stats.num_decode_tokens

    @invariant()
    def accounts_agree_and_only_grow(self) -> None:
        waiting, holding = Counter[str](), Counter[str]()
        for sequence in self.engine._sequences.values():
            holding[sequence.request.tenant] += len(sequence.slots)
            waiting[sequence.request.tenant] += not sequence.slots
        accounts = self.engine._scheduler._fair_share._accounts
        assert set(accounts) == set(waiting) | set(holding)
        for tenant, account in accounts.items():
            assert (account.num_waiting, account.num_slots) == (waiting[tenant], holding[tenant])
            assert account.served >= self.served.get(tenant, 0.0)
        self.served = {tenant: account.served for tenant, account in accounts.items()}

    @invariant()
    def nothing_that_is_not_finite_stays_in_a_slot(self) -> None:
        running = {slot for sequence in self.engine._scheduler.running for slot in sequence.slots}
        free = [slot for slot in range(NUM_SLOTS) if slot not in running]
        assert self.engine.cache.keys[:, free].isfinite().all()
        assert self.engine.cache.values[:, free].isfinite().all()

    def teardown(self) -> None:
        for _ in range(1000):
            if self.engine.has_work:
                self._step()
        self.counts_agree()
        self.slots_belong_to_one_row_each()
        assert self.open == {}
        assert self.engine.num_free_slots == NUM_SLOTS
        assert self.engine._scheduler._fair_share._accounts == {}


class TestEngine(EngineMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
