"""Grammars over HTTP, on a real engine: every dialect, wrong and hostile ones, and who leaves while one is compiled."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from tokenizers import Tokenizer as Backend

import polyprefix
from batching.engine import Engine
from batching.pretrained import load_backbone
from server.constraints import GrammarFollower
from server.grammar_compiler import Grammar, GrammarError
from server.grammars import Grammars, GrammarTrial
from server.kept_grammars import MAX_KEPT, MAX_KEPT_OF_TENANT, KeptGrammars, OwnGrammar
from tests.server.conftest import Running, running
from tests.server.fakes import EOS
from tests.server.test_generate import events_of

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "size"],
    "additionalProperties": False,
}
REGEX = r"[a-z]{2}-\d{3}"
IS_GOOD = {"type": "regex", "value": REGEX}


def chain(num_references: int) -> dict[str, Any]:
    """Overflows the stack of whoever follows it by recursion."""
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(num_references)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{num_references}": {"type": "string"}}}


def slow(title: str) -> dict[str, Any]:
    """Would take minutes and gigabytes: the library builds a state for every remainder."""
    return {"type": "integer", "multipleOf": 62_615_533, "title": title}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, byte_tokenizer: Backend) -> Iterator[Running]:
    follower = GrammarFollower(byte_tokenizer.to_str(), EOS)
    engine = Engine(load_backbone(str(tiny_model), "cpu", "float32"), max_num_seqs=4, constrain=follower.begin)
    with running(tmp_path_factory.mktemp("store"), byte_tokenizer, engine) as server:  # type: ignore[arg-type]
        yield server


def generate(server: Running, **parameters: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.generate("it is ", max_new_tokens=110, details=True, **parameters)
    return answer


def fulfils(text: str) -> bool:
    return jsonschema_rs.is_valid(SCHEMA, json.loads(text))


def ask_openai(server: Running, route: str, **body: Any) -> httpx.Response:
    return server.http.post(f"/v1/{route}", json={"model": "tiny", "temperature": 0, "max_tokens": 110, **body})


@pytest.mark.parametrize("way", [{}, {"do_sample": True, "seed": 1}, {"temperature": 3.0, "seed": 2, "top_k": 20}])
def test_a_text_with_a_schema_is_json_that_fulfils_it(server: Running, way: dict[str, Any]) -> None:
    answer = generate(server, grammar={"type": "json", "value": SCHEMA}, **way)
    assert answer["details"]["finish_reason"] == "eos_token"
    assert fulfils(answer["generated_text"])


def test_a_text_with_an_expression_matches_it_as_a_whole(server: Running) -> None:
    answer = generate(server, grammar=IS_GOOD)
    assert answer["details"]["finish_reason"] == "eos_token"
    assert re.fullmatch(REGEX, answer["generated_text"])


def test_every_way_to_say_a_schema_says_the_same(server: Running) -> None:
    ways = [
        {"grammar": {"type": "json", "value": SCHEMA}},
        {"grammar": {"type": "json", "value": json.dumps(SCHEMA)}},
        {"grammar": {"type": "json_schema", "value": {"name": "toy", "schema": SCHEMA}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "value": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "toy", "schema": SCHEMA}}},
    ]
    texts = {generate(server, **way)["generated_text"] for way in ways}
    asked = ask_openai(server, "completions", prompt="it is ", response_format=ways[-1]["response_format"]).json()
    assert texts == {asked["choices"][0]["text"]}
    assert asked["choices"][0]["finish_reason"] == "stop"


def test_all_routes_of_our_own_take_a_grammar(server: Running) -> None:
    body = {"inputs": "it is ", "parameters": {"max_new_tokens": 110, "grammar": {"type": "json", "value": SCHEMA}}}
    text = server.http.post("/generate", json=body).json()["generated_text"]
    assert fulfils(text)
    assert server.http.post("/", json=body).json()[0]["generated_text"] == text
    events = events_of(server.http.post("/generate_stream", json=body).text)
    assert "".join(event["token"]["text"] for event in events) == text == events[-1]["generated_text"]
    server.upload("poet")
    for route in ("/tasks/poet/generate", "/tasks/poet/generate_stream"):
        answer = server.http.post(route, json=body)
        said = events_of(answer.text)[-1] if "stream" in route else answer.json()
        assert fulfils(said["generated_text"])


def test_the_best_of_several_samples_fulfils_the_grammar_as_all_others_do(server: Running) -> None:
    answer = generate(server, grammar=IS_GOOD, best_of=3, do_sample=True, seed=4)
    assert re.fullmatch(REGEX, answer["generated_text"])
    others = answer["details"]["best_of_sequences"]
    assert all(re.fullmatch(REGEX, other["generated_text"]) for other in others)


def test_each_choice_of_each_prompt_of_a_completion_fulfils_the_grammar(server: Running) -> None:
    options = {"prompt": ["a", "b"], "n": 2, "temperature": 1, "seed": 3, "max_tokens": 120}
    choices = ask_openai(
        server, "completions", response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}, **options
    ).json()["choices"]
    assert len(choices) == 4
    assert all(fulfils(choice["text"]) for choice in choices)


def test_a_chat_takes_a_response_format_streamed_or_not(server: Running) -> None:
    server.upload("chat")
    templates = {"system": "S{content}", "user": "U{content}", "assistant": "A{content}"}
    server.http.patch("/tasks/chat", json={"config": {"chat_template": templates}})
    said = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 110, "temperature": 0}
    said["response_format"] = {"type": "json_schema", "json_schema": {"name": "toy", "schema": SCHEMA, "strict": True}}
    text = server.http.post("/v1/chat/completions", json=said).json()["choices"][0]["message"]["content"]
    assert fulfils(text)
    streamed = server.http.post("/v1/chat/completions", json={**said, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.split("\n") if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text


def test_a_json_object_is_an_object_and_text_is_anything(server: Running) -> None:
    parameters = {"max_new_tokens": 110, "temperature": 1.5, "details": True}
    for seed in range(3):
        formatted = server.generate("x", response_format={"type": "json_object"}, seed=seed, **parameters)
        if formatted["details"]["finish_reason"] == "eos_token":
            assert isinstance(json.loads(formatted["generated_text"]), dict)
        assert formatted["generated_text"].startswith("{")
    free = server.generate("x", seed=1, **parameters)
    for way in ({"response_format": {"type": "text"}}, {"response_format": None, "grammar": None}):
        assert server.generate("x", seed=1, **way, **parameters)["generated_text"] == free["generated_text"]


def test_a_cut_text_is_told_by_its_finish_reason(server: Running) -> None:
    answer = server.generate("x", grammar={"type": "json", "value": SCHEMA}, max_new_tokens=5, details=True)
    assert answer["details"]["finish_reason"] == "length"
    stopped = server.generate(
        "x", grammar={"type": "json", "value": SCHEMA}, max_new_tokens=90, stop=['"'], details=True
    )
    assert stopped["details"]["finish_reason"] == "stop_sequence"


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        ({"type": "regex", "value": "("}, "unclosed group"),
        ({"type": "regex", "value": "(?=a)b"}, "look-around"),
        ({"type": "regex", "value": r"(a)\1"}, "backreferences"),
        ({"type": "regex", "value": r"[^\s\S]"}, "no text"),
        ({"type": "regex", "value": "(" * 300 + "a" + ")" * 300}, "nest"),
        ({"type": "regex", "value": "a" * 40_000}, "at most 32768"),
        ({"type": "regex", "value": 5}, "string"),
        ({"type": "regex"}, "required"),
        ({"type": "xml", "value": "a"}, "json"),
        ({"value": "a"}, "type"),
        ("a", "grammar"),
        ([], "grammar"),
        ({"type": "json", "value": '{"type": '}, "not the JSON of a schema"),
        ({"type": "json", "value": "5"}, "object"),
        ({"type": "json", "value": "\x00"}, "not the JSON of a schema"),
        ({"type": "json", "value": 5}, "grammar"),
        ({"type": "json", "value": {"type": "strin"}}, "strin"),
        ({"type": "json", "value": {"type": 5}}, "type"),
        ({"type": "json", "value": {"not": {"type": "string"}}}, "not"),
        ({"type": "json", "value": {"$ref": "#"}}, "no text"),
        ({"type": "json", "value": {"$ref": "http://127.0.0.1:9/x.json"}}, "127.0.0.1"),
        ({"type": "json", "value": {"enum": ["x" * 40_000]}}, "at most 32768"),
        ({"type": "json", "value": '{"enum": ["\\ud800"]}'}, "surrogates"),
        ({"type": "json", "value": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"type": "json", "value": {"x-guidance": {"whitespace_pattern": "("}, "type": "x"}}, "x"),
        ({"type": "json", "value": chain(900)}, "nested too deeply"),
    ],
)
def test_a_wrong_grammar_is_refused_in_words_and_the_server_lives_on(
    server: Running, grammar: Any, complaint: str
) -> None:
    error = server.generate("x", status=422, grammar=grammar)
    assert error["error_type"] == "validation"
    assert complaint in error["error"]
    assert "grammar" in error["error"]
    assert len(error["error"]) < 700
    assert re.fullmatch(REGEX, generate(server, grammar=IS_GOOD)["generated_text"])


def test_a_grammar_that_would_take_for_ever_is_refused_and_not_tried_again(server: Running) -> None:
    for _ in range(2):
        error = server.generate("x", status=422, grammar={"type": "json", "value": slow("for ever")})
        assert "too long to compile" in error["error"]
    assert re.fullmatch(REGEX, generate(server, grammar=IS_GOOD)["generated_text"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "json_schema", "json_schema": SCHEMA},
        {"type": "json_object", "json_schema": {"schema": SCHEMA}},
        {"type": "json_object", "properties": SCHEMA["properties"]},
    ],
)
def test_a_schema_in_the_wrong_place_is_refused_and_not_passed_over(server: Running, wrong: dict[str, Any]) -> None:
    assert "response_format" in server.generate("x", status=422, response_format=wrong)["error"]
    assert ask_openai(server, "completions", prompt="x", response_format=wrong).status_code == 422


def test_openai_routes_name_the_parameter_that_is_wrong(server: Running) -> None:
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}
    answer = ask_openai(server, "completions", prompt="x", response_format=wrong)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "response_format"
    assert ask_openai(server, "completions", prompt="x", response_format={"type": "yaml"}).status_code == 422


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"min_new_tokens": 2}, "min_new_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_a_grammar_does_not_go_together_with_is_refused(
    server: Running, parameters: dict[str, Any], named: str
) -> None:
    assert named in server.generate("x", status=422, grammar=IS_GOOD, **parameters)["error"]


def test_a_grammars_length_is_that_of_its_text_as_utf_8(server: Running) -> None:
    said = "\u98df\u5802" * 4_000  # 24 KB, and 48 KB where each character is written as \\uXXXX
    schema = {"type": "object", "properties": {"a": {"type": "boolean", "description": said}}, "required": ["a"]}
    generate(server, grammar={"type": "json", "value": schema})


def test_a_nul_is_a_character_like_any_other(server: Running) -> None:
    assert generate(server, grammar={"type": "regex", "value": "a\x00b"})["generated_text"] == "a\x00b"


def test_who_leaves_while_a_grammar_is_compiled_ends_its_trial(server: Running) -> None:
    schema = slow("left")
    body = {"inputs": "x", "parameters": {"grammar": {"type": "json", "value": schema}}}
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/generate", json=body, timeout=0.2)
    good = {"type": "regex", "value": "left|right"}
    assert generate(server, grammar=good)["generated_text"] in ("left", "right")
    assert OwnGrammar("local", Grammar("json", json.dumps(schema))) not in server.services.grammars._kept


def with_grammars(backend: Backend, use: Callable[[Grammars], Awaitable[None]], max_wait: float = 60) -> None:
    async def run() -> None:
        grammars = Grammars(backend.to_str(), EOS, max_wait)
        try:
            await use(grammars)
        finally:
            await grammars.close()

    asyncio.run(run())


def test_a_grammar_is_tried_once_for_each_tenant(byte_tokenizer: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Grammar] = []

    async def note(trial: GrammarTrial, grammar: Grammar) -> None:
        tried.append(grammar)
        await asyncio.sleep(0)

    monkeypatch.setattr(GrammarTrial, "check", note)

    async def use(grammars: Grammars) -> None:
        grammar = Grammar("regex", "ab")
        for tenant, num_tried in [("acme", 1), ("other", 2)]:
            await asyncio.gather(*(grammars.check(OwnGrammar(tenant, grammar)) for _ in range(3)))
            assert len(tried) == num_tried

    with_grammars(byte_tokenizer, use)


def test_a_tenant_that_sends_many_grammars_crowds_out_only_its_own() -> None:
    kept: KeptGrammars[int] = KeptGrammars()
    quiet = OwnGrammar("quiet", Grammar("regex", "ab"))
    loud = [OwnGrammar("loud", Grammar("regex", f"a{i}")) for i in range(MAX_KEPT_OF_TENANT + 3)]
    for i, own in enumerate([quiet, *loud]):
        kept.keep(own, i)
    assert [own in kept for own in loud] == [False] * 3 + [True] * MAX_KEPT_OF_TENANT
    assert kept.get(quiet) == 0


def test_beyond_the_limit_the_one_that_was_not_used_for_longest_is_forgotten() -> None:
    kept: KeptGrammars[int] = KeptGrammars()
    everybodys = [OwnGrammar(f"tenant {i}", Grammar("regex", "ab")) for i in range(MAX_KEPT + 1)]
    for i, own in enumerate(everybodys[:-1]):
        kept.keep(own, i)
    assert kept.get(everybodys[0]) == 0
    kept.keep(everybodys[-1], MAX_KEPT)
    assert [own in kept for own in everybodys[:3]] == [True, False, True]


def test_a_tenants_slow_grammars_take_one_place_in_the_queue(byte_tokenizer: Backend) -> None:
    async def use(grammars: Grammars) -> None:
        hostile = [Grammar("json", json.dumps(slow(str(i)))) for i in range(20)]
        flood = [asyncio.ensure_future(grammars.check(OwnGrammar("loud", grammar))) for grammar in hostile]
        await asyncio.sleep(0)  # they stand in the queue
        await grammars.check(OwnGrammar("quiet", Grammar("regex", "ab")))
        assert sum(each.done() for each in flood) <= 1
        for each in flood:
            each.cancel()
        await asyncio.gather(*flood, return_exceptions=True)

    with_grammars(byte_tokenizer, use)


def test_a_grammar_that_takes_too_much_memory_is_refused_however_often_such_ones_are_tried() -> None:
    """The process that tries them keeps what the last one took, and the next could grow into that."""

    async def use(grammars: Grammars) -> None:
        for attempt in range(4):
            large = json.dumps({"enum": [[[[[[i % 10]]]], i] for i in range(1800 + attempt)]}, separators=(",", ":"))
            with pytest.raises(GrammarError, match="MiB; expected at most 16"):
                await grammars.check(OwnGrammar("acme", Grammar("json", large)))

    with_grammars(Backend.from_file(str(Path(polyprefix.__file__).parent / "pocket" / "tokenizer.json")), use)


def test_a_process_that_somebody_killed_is_replaced(byte_tokenizer: Backend) -> None:
    async def use(grammars: Grammars) -> None:
        await grammars.check(OwnGrammar("acme", Grammar("regex", "a")))
        process = grammars._trial._process
        assert process is not None
        process.kill()
        await process.wait()
        await grammars.check(OwnGrammar("acme", Grammar("regex", "b")))

    with_grammars(byte_tokenizer, use)


def test_a_tokenizer_that_no_grammar_can_follow_refuses_every_one_and_no_more() -> None:
    async def use(grammars: Grammars) -> None:
        with pytest.raises(GrammarError, match="tokenizer"):
            await grammars.check(OwnGrammar("acme", Grammar("regex", "a")))

    class NotBytes:
        def to_str(self) -> str:
            return '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'

    with_grammars(NotBytes(), use)  # type: ignore[arg-type]
