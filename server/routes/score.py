"""The score route: how likely given continuations of a prompt are."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from prefix_store.tenants import Scope
from server.access import Needs
from server.answer_schemas import ScoreAnswer
from server.answers import final_headers, names_of
from server.caller import caller_of
from server.http import read_json, unless_disconnected, written
from server.openapi import errors, json_body
from server.running import run, samples_of
from server.schemas import ScoreBody
from server.scoring import prepare_scoring, score_of
from server.services import services_of

router = APIRouter(tags=["generate"], dependencies=[Depends(Needs(Scope.GENERATE))])

ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 422, 424, 429, 500, 503, 504)


@router.post("/score", responses={200: {"model": ScoreAnswer}, **ERRORS}, openapi_extra=json_body(ScoreBody))
async def score(request: Request) -> Response:
    """The log-likelihood of each continuation after `inputs`, as the task's template puts them."""
    services, caller = services_of(request), caller_of(request)
    body = await read_json(request, ScoreBody, services.settings.max_json_bytes)
    scoring = await unless_disconnected(request, prepare_scoring(services, caller, body))
    samples = samples_of(services, scoring.generations)
    await unless_disconnected(request, run(services, samples))

    def write() -> Response:
        answer = ScoreAnswer(
            **names_of(scoring.generations[0].asked),
            scores=[
                score_of(sample, num_tokens, services.tokenizer, bool(body.details))
                for sample, num_tokens in zip(samples, scoring.num_tokens, strict=True)
            ],
        )
        return JSONResponse(answer.model_dump(exclude_unset=True), headers=final_headers(samples))

    return await written(write, is_long=bool(body.details))
