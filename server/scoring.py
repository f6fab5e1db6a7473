"""How likely given continuations of a prompt are under a task: their tokens' log-probabilities, many in one batch.

Knows how a prompt and a continuation become tokens together. Knows nothing of HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from batching.types import TokenLogprob
from server.answer_schemas import ContinuationAnswer, ScoredTokenAnswer
from server.asked import find_asked
from server.caller import Caller
from server.generation import Generation, Prompt, plan, tokenize
from server.reading import Sample
from server.rows import finite
from server.schemas import GenerateParameters, ScoreBody
from server.services import Services
from server.text import Tokenizer, ends_with_its_own, render

# The prompt's log-probabilities come with a first new token; the likeliest token at each place tells what is greedy.
PARAMETERS = GenerateParameters(max_new_tokens=1, details=True, decoder_input_details=True, top_n_tokens=1)

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # the context's tokens and the continuation's own


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """One generation for each continuation, and how many of its prompt's last tokens are the continuation's."""

    generations: list[Generation]
    num_tokens: list[int]


async def prepare_scoring(services: Services, caller: Caller, body: ScoreBody) -> Scoring:
    """Find the task and tokenize. All that can be refused is refused here."""
    asked = await find_asked(services, caller, body.task_id)
    inputs = body.inputs or ""
    context = render(asked.prompt_template, inputs)
    num_kept = len(context) if ends_with_its_own(asked.prompt_template) else len(context.rstrip())
    pairs = await _encode_pairs(services, context, num_kept, body.continuations)
    prompts = [Prompt(inputs, before + own) for before, own in pairs]
    num_tokens = [len(own) for _, own in pairs]
    return Scoring(plan(services, caller, asked, PARAMETERS, prompts, has_scores=False), num_tokens)


async def _encode_pairs(services: Services, context: str, num_kept: int, continuations: Sequence[str]) -> list[Pair]:
    """Both are tokenized together, and as many tokens as the context alone has are its: lm-evaluation-harness' way
    (`_encode_pair`).

    Of the context the first `num_kept` characters are its: spaces at the end of a caller's text go to the continuation,
    where GPT-2's tokens have them, and those that end a template do not. An empty context is the end-of-text token. A
    continuation that would end within the context's last token is tokenized alone: with no tokens of its own it would
    be the likeliest of all.
    """
    kept = context[:num_kept]
    if not kept:
        return [((services.backbone.eos_token_id,), await tokenize(services, context + text)) for text in continuations]
    before = await tokenize(services, kept)
    pairs = []
    for text in continuations:
        whole = await tokenize(services, context + text)
        if len(whole) > len(before):
            pairs.append((whole[: len(before)], whole[len(before) :]))
        else:
            pairs.append((before, await tokenize(services, context[num_kept:] + text)))
    return pairs


def score_of(sample: Sample, num_tokens: int, tokenizer: Tokenizer, details: bool) -> ContinuationAnswer:
    """Of a row that has ended."""
    logprobs = sample.row.prompt_logprobs
    own = logprobs[len(logprobs) - num_tokens :]
    return ContinuationAnswer(
        logprob=sum(finite(token.logprob) for token in own),
        num_tokens=num_tokens,
        is_greedy=all(token.top[0][0] == token.token_id for token in own),
        tokens=[_token(token, tokenizer) for token in own] if details else None,
    )


def _token(token: TokenLogprob, tokenizer: Tokenizer) -> ScoredTokenAnswer:
    return ScoredTokenAnswer(id=token.token_id, text=tokenizer.name_of(token.token_id), logprob=finite(token.logprob))
