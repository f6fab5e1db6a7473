"""How likely given continuations of a prompt are under a task: their tokens' log-probabilities, many in one batch.

Knows how a prompt and a continuation become tokens together. Knows nothing of HTTP.
"""

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
from server.text import Tokenizer, render

# The prompt's log-probabilities come with a first new token; the likeliest token at each place tells what is greedy.
PARAMETERS = GenerateParameters(max_new_tokens=1, details=True, decoder_input_details=True, top_n_tokens=1)


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
    prompts, num_tokens = [], []
    for continuation in body.continuations:
        whole, num_context_tokens = await _encode_pair(services, context, continuation)
        prompts.append(Prompt(inputs, whole))
        num_tokens.append(max(0, len(whole) - num_context_tokens))
    return Scoring(plan(services, caller, asked, PARAMETERS, prompts, has_scores=False), num_tokens)


async def _encode_pair(services: Services, context: str, continuation: str) -> tuple[tuple[int, ...], int]:
    """The tokens of both together, and how many are the context's: lm-evaluation-harness' way (`_encode_pair`).

    Spaces at the context's end go to the continuation, where GPT-2's tokens have them. An empty context is the
    end-of-text token. A continuation that the context's last token swallows has no tokens of its own.
    """
    kept = context.rstrip()
    whole = await tokenize(services, context + continuation)
    if not kept:
        return (services.backbone.eos_token_id, *whole), 1
    return whole, len(await tokenize(services, kept))


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
    return ScoredTokenAnswer(id=token.token_id, text=tokenizer.decode([token.token_id]), logprob=finite(token.logprob))
