"""Rows of a real engine that follow real grammars: what they say is always right, and their mates do not notice."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest

from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.pretrained import load_backbone
from batching.types import FinishReason, Request, SamplingParams, StepOutput
from server.constraints import GrammarFollower
from server.grammar_compiler import Grammar, GrammarError
from server.kept_grammars import OwnGrammar
from server.text import Tokenizer
from server.tokenizer_loading import load_tokenizer
from tests.server.random_schemas import random_object

MATE_PARAMS = [
    SamplingParams(max_new_tokens=40),
    SamplingParams(max_new_tokens=40, temperature=1.0, seed=1),
    SamplingParams(max_new_tokens=40, temperature=1.0, top_p=0.8, seed=2, repetition_penalty=1.3),
    SamplingParams(max_new_tokens=20, num_beams=2),
]
REGEXES = [r"\d{3}-[a-z]{2,4}", r"(yes|no|perhaps)!", r"[^\x00-\x7f]{2}", r"(a|b)+c", ""]


@dataclass
class House:
    """A backbone with its tokenizer, and what its grammars need."""

    backbone: Backbone
    tokenizer: Tokenizer
    follower: GrammarFollower
    mates_alone: dict[str, list[tuple[int, ...]]]

    @property
    def eos_token_id(self) -> int:
        return self.backbone.eos_token_id

    def engine(self) -> Engine:
        return Engine(self.backbone, max_num_seqs=32, constrain=self.follower.begin)

    def request(self, name: str, params: SamplingParams, grammar: Grammar | None = None) -> Request:
        own = None if grammar is None else OwnGrammar("default", grammar)
        prompt = self.tokenizer.encode(f"this is {name}: ")
        return Request(name, "default", prompt, None, params, constraint=own)

    def text(self, outputs: list[StepOutput]) -> str:
        token_ids = [token_id for output in outputs for token_id in output.new_token_ids]
        return self.tokenizer.decode([token_id for token_id in token_ids if token_id != self.eos_token_id])


def make_house(model: str) -> Iterator[House]:
    backbone = load_backbone(model, "cpu", "float32")
    tokenizer = load_tokenizer(model, backbone.vocab_size)
    follower = GrammarFollower(tokenizer, backbone.eos_token_id)
    house = House(backbone, Tokenizer(tokenizer), follower, {})
    house.mates_alone = token_ids_of(run(house.engine(), mates(house)))
    yield house
    follower.close()


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def house(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[House]:
    """A random model that knows bytes, and the embedded one with its byte-level BPE."""
    yield from make_house(str(tiny_model) if request.param == "tiny" else str(files("polyprefix") / "pocket"))


def run(engine: Engine, requests: list[Request]) -> dict[str, list[StepOutput]]:
    outputs: dict[str, list[StepOutput]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add_request(request)
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, StepOutput)
            outputs[output.request_id].append(output)
    return outputs


def token_ids_of(outputs: dict[str, list[StepOutput]]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [output.new_token_ids for output in said if output.new_token_ids] for name, said in outputs.items()}


def mates(house: House) -> list[Request]:
    return [house.request(f"mate {i}", params) for i, params in enumerate(MATE_PARAMS)]


def params_of(i: int, max_new_tokens: int) -> SamplingParams:
    """Greedy, sampled, hot, truncated and penalised in turn."""
    ways = [
        {},
        {"temperature": 1.0},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_k": 5},
        {"repetition_penalty": 2.0},
    ]
    return SamplingParams(max_new_tokens=max_new_tokens, seed=i, **ways[i % len(ways)])


def test_every_text_fulfils_its_grammar_whatever_it_is_and_however_the_row_chooses(house: House) -> None:
    chooser = random.Random(3)
    schemas = {f"schema {i}": random_object(chooser) for i in range(20)}
    regexes = {f"regex {i}": pattern for i, pattern in enumerate(REGEXES)}
    grammars = {name: Grammar("json", json.dumps(schema)) for name, schema in schemas.items()}
    grammars |= {name: Grammar("regex", pattern) for name, pattern in regexes.items()}
    engine = house.engine()
    room = min(150, engine.max_model_len - 20)
    rows = [house.request(name, params_of(i, room), grammar) for i, (name, grammar) in enumerate(grammars.items())]
    outputs = run(engine, mates(house) + rows)

    assert token_ids_of(outputs).items() >= house.mates_alone.items()
    ended = [name for name in grammars if outputs[name][-1].finish_reason is FinishReason.STOP]
    cut = [name for name in grammars if outputs[name][-1].finish_reason is FinishReason.LENGTH]
    assert len(ended) + len(cut) == len(grammars)
    assert len(ended) > len(cut)
    for name in ended:
        text = house.text(outputs[name])
        if name in regexes:
            assert re.fullmatch(regexes[name], text), text
        else:
            assert jsonschema_rs.is_valid(schemas[name], json.loads(text)), (schemas[name], text)


def test_a_constrained_row_says_the_same_alone_and_in_a_crowd(house: House) -> None:
    grammar = Grammar("json", json.dumps(random_object(random.Random(1))))
    rows = [house.request(f"row {i}", params_of(i, 60), grammar) for i in range(3)]
    crowd = run(house.engine(), rows + mates(house))
    for row in rows:
        (alone,) = run(house.engine(), [row]).values()
        assert house.text(alone) == house.text(crowd[row.request_id])


def test_a_grammar_that_becomes_too_complex_fails_its_row_alone(house: House) -> None:
    params = SamplingParams(max_new_tokens=60)
    hostile = house.request("hostile", params, Grammar("regex", "(a?){1000}a{1000}"))
    outputs = run(house.engine(), [hostile, *mates(house)])
    last = outputs["hostile"][-1]
    assert last.finish_reason is FinishReason.ERROR
    assert "GrammarError" in (last.error or "")
    assert token_ids_of(outputs).items() >= house.mates_alone.items()


def test_an_error_that_is_kept_keeps_no_frame_of_who_asked(house: House) -> None:
    """Else what a step had allocated stays with every row that follows a grammar which could not be compiled."""
    lengths = set()
    for _ in range(3):
        row = house.follower.begin(OwnGrammar("default", Grammar("regex", "(")), house.backbone.vocab_size)
        with pytest.raises(GrammarError) as caught:
            row.allowed()
        lengths.add(len(caught.traceback))
    assert len(lengths) == 1


def test_a_vocabulary_that_is_larger_than_the_tokenizers_has_tokens_that_are_never_allowed(house: House) -> None:
    row = house.follower.begin(OwnGrammar("default", Grammar("regex", "(?s:.*)")), house.eos_token_id + 70_000)
    allowed = np.unpackbits(row.allowed(), bitorder="little", count=house.eos_token_id + 70_000)
    assert allowed[house.eos_token_id]
    assert not allowed[-60_000:].any()


def test_a_text_may_be_empty_where_the_grammar_says_so(house: House) -> None:
    (outputs,) = run(house.engine(), [house.request("x", SamplingParams(), Grammar("regex", ""))]).values()
    assert house.text(outputs) == ""
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_choices_of_one_request_follow_its_grammar_each_by_itself(house: House) -> None:
    params = SamplingParams(max_new_tokens=20, temperature=1.5, seed=1)
    request = house.request("x", params, Grammar("regex", "[a-z]{6}"))
    rows = [replace(request, request_id=f"x-{i}", sampling_params=replace(params, choice=i)) for i in range(4)]
    texts = [house.text(outputs) for outputs in run(house.engine(), rows).values()]
    assert all(re.fullmatch("[a-z]{6}", text) for text in texts)
    assert len(set(texts)) > 1
