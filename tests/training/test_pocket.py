"""The pocket model: how its pairs are made, and that what ships fits together."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefix_store.fingerprint import fingerprint
from training.pocket.corpus import detokenize
from training.pocket.decoding import answer
from training.pocket.pairs import PairMaker, dialogue_fields, render, swap_values
from training.pocket.phrases import Phrases

POCKET = Path(__file__).parents[2] / "polyprefix" / "pocket"
TASK_IDS = {"e2e", "commongen", "wikisplit", "wordnet", "events_1", "hotels_1", "rentalcars_1"}
RECORD: dict[str, Any] = {
    "service": "Restaurants_1",
    "acts": [
        {"act": "OFFER", "slot": "restaurant_name", "values": ["Bushido"]},
        {"act": "CONFIRM", "slot": "party_size", "values": ["2"]},
        {"act": "NOTIFY_SUCCESS", "slot": "", "values": []},
    ],
    "text": "Bushido has a table for 2. Enjoy Bushido!",
}
TEXTS = ["we saw Halifax and old Winterbourne again by the quiet harbour, near Halifax and Winterbourne"] * 8


@pytest.fixture(scope="module")
def phrases() -> Phrases:
    return Phrases(TEXTS)


@pytest.fixture(scope="module")
def backbone() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(POCKET, dtype="auto")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(POCKET)


def test_a_swapped_value_changes_in_record_and_sentence_alike(phrases: Phrases) -> None:
    pair = swap_values(RECORD, phrases, random.Random(0), share=1.0)
    assert "Bushido" not in pair.source + pair.target
    assert len(pair.values) == 2
    for value in pair.values:
        assert value in pair.source
        assert value in pair.target


def test_a_value_that_the_sentence_does_not_say_stays(phrases: Phrases) -> None:
    silent = {**RECORD, "text": "Done."}
    pair = swap_values(silent, phrases, random.Random(0), share=1.0)
    assert "Bushido" in pair.source
    assert pair.values == ()


def test_every_kind_of_pair_can_be_answered_from_its_record(phrases: Phrases) -> None:
    maker = PairMaker([RECORD, {**RECORD, "acts": RECORD["acts"][2:]}], TEXTS, phrases)
    rng = random.Random(0)
    for _ in range(300):
        pair = maker.draw(rng)
        assert pair.source
        assert pair.target
        assert "\n" not in pair.source
        assert all(value in pair.source for value in pair.values)


def test_a_record_is_written_as_keys_and_values() -> None:
    assert render(dialogue_fields(RECORD["acts"])) == (
        "offer restaurant name : Bushido | confirm party size : 2 | notify success"
    )


def test_wikisplit_spacing_is_undone() -> None:
    assert detokenize("The band 's '' Own '' song ( 1990 ) , too .") == 'The band\'s "Own" song (1990), too.'


def test_the_shipped_files_are_small_and_list_every_task() -> None:
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) <= 25_000_000
    tasks = json.loads((POCKET / "tasks.json").read_text())
    assert {task["task_id"] for task in tasks} == TASK_IDS
    for task in tasks:
        assert task["prompt_template"].count("{inputs}") == 1
        assert len(task["examples"]) >= 12


@pytest.mark.parametrize("task_id", sorted(TASK_IDS))
def test_a_shipped_prefix_belongs_to_the_shipped_backbone(task_id: str, backbone: GPT2LMHeadModel) -> None:
    with safe_open(POCKET / "prefixes" / f"{task_id}.safetensors", framework="pt") as file:
        metadata, prefix = file.metadata(), file.get_tensor("past_key_values")
    config = backbone.config
    assert metadata["format"] == "polyprefix/1"
    assert metadata["backbone"] == fingerprint(backbone.named_parameters())
    assert prefix.dtype == torch.float16
    assert prefix.isfinite().all()
    assert prefix.shape[:2] == (config.n_layer, 2)
    assert prefix.shape[3:] == (config.n_head, config.n_embd // config.n_head)


def test_a_restaurant_description_names_the_restaurant(tokenizer: PreTrainedTokenizerFast) -> None:
    model = GPT2LMHeadModel.from_pretrained(POCKET, dtype=torch.float32).eval()
    with safe_open(POCKET / "prefixes" / "e2e.safetensors", framework="pt") as file:
        prefix = file.get_tensor("past_key_values")
    record = "name : The Vaults | eatType : pub | food : Italian | area : riverside"
    [text] = answer(model, tokenizer, prefix, [record], max_new_tokens=60)
    assert "The Vaults" in text
