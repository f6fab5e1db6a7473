"""The pocket model: how its pairs are made, and that what ships fits together."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefix_store.fingerprint import fingerprint
from prefix_store.formats import parse
from prefix_store.prefix import Prefix
from training.backbone import load_backbone
from training.pocket.card import write_prefix
from training.pocket.corpus import TEXT_FILES, detokenize, read_corpus
from training.pocket.decoding import answer
from training.pocket.facts import told_of
from training.pocket.mean import write_mean
from training.pocket.packing import Targets, write_tokens
from training.pocket.pairs import PairMaker, swap_values
from training.pocket.phrases import Phrases
from training.pocket.prefixes import make_prefix
from training.pocket.tasks import (
    Task,
    read_restaurants,
    read_topics,
    says_all,
    service,
    values_by_slot,
    with_other_values,
)

POCKET = Path(__file__).parents[2] / "polyprefix" / "pocket"
TASK_IDS = {"e2e", "e2e_fields", "topics", "events_acts", "events_1", "weather_fields", "homes_acts"}
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


def test_wikisplit_spacing_is_undone() -> None:
    assert detokenize("The band 's '' Own '' song ( 1990 ) , too .") == 'The band\'s "Own" song (1990), too.'


def write_corpus(data: Path) -> None:
    records = "".join(json.dumps(record) + "\n" for record in (RECORD, {**RECORD, "acts": RECORD["acts"][2:]}))
    for folder, name, text in [
        *(("pretrain", name, f"held out\n{name} has read this, and {TEXTS[0]}\n") for name in TEXT_FILES),
        ("pretrain", "targets_e2e_train.txt", "The Mill is a cheap pub.\n"),
        ("pretrain", "targets_commongen_train.txt", "a dog runs after a ball\n"),
        ("wikisplit", "validation.tsv", "One . Two .\tOne . <::::> Two .\n"),
        ("sgd_nlg", "train.jsonl.gz", records),
        ("sgd_nlg", "dev.jsonl", records),
    ]:
        (data / folder).mkdir(exist_ok=True)
        (data / folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def test_what_tasks_answer_is_read_only_where_it_is_asked_for(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    without, with_targets = (read_corpus(tmp_path, num_readings) for num_readings in (0, 2))
    assert without.targets == ()
    assert with_targets.targets == ("The Mill is a cheap pub.", "a dog runs after a ball") * 2
    assert (
        with_targets.train == without.train == {name: (f"{name} has read this, and {TEXTS[0]}",) for name in TEXT_FILES}
    )
    assert with_targets.held_out == without.held_out == ("held out",) * len(TEXT_FILES)


@pytest.mark.parametrize("in_pairs", [False, True])
def test_pairs_are_made_of_what_tasks_answer_only_where_it_is_asked_for(tmp_path: Path, in_pairs: bool) -> None:
    write_corpus(tmp_path)
    out, work = tmp_path / "out", tmp_path / "work"
    write_tokens(tmp_path, out, work, 50, 64, start=POCKET, targets=Targets(2, in_pairs), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(out)
    plain, pairs = (tokenizer.decode(np.load(work / name).tolist()) for name in ("plain.npy", "pairs.npy"))
    assert plain.count("a dog runs after a ball") == plain.count("The Mill is a cheap pub.") == 2
    assert ("runs" in pairs) == in_pairs


def test_another_seed_draws_other_pairs_of_the_same_text(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    pairs = []
    for name, seed in ("first", 0), ("again", 0), ("other", 1):
        work = tmp_path / name
        write_tokens(tmp_path, tmp_path / "out", work, 50, 64, start=POCKET, targets=Targets(0, False), seed=seed)
        pairs.append(np.load(work / "pairs.npy").tolist())
        assert len(np.load(work / "plain.npy")) == len(np.load(tmp_path / "first" / "plain.npy"))
    assert pairs[0] == pairs[1] != pairs[2]


def test_the_mean_of_two_models_has_the_mean_weights_and_the_rest_of_the_first(tmp_path: Path) -> None:
    first, second = torch.tensor([1.0, -2.0], dtype=torch.float16), torch.tensor([3.0, 2.0], dtype=torch.float16)
    for name, tensor in ("first", first), ("second", second):
        (tmp_path / name).mkdir()
        save_file({"wte.weight": tensor}, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text(name)
    write_mean(tmp_path / "first", tmp_path / "second", 0.25, tmp_path / "out")
    (mean,) = load_file(tmp_path / "out" / "model.safetensors").values()
    assert mean.dtype == torch.float16
    assert mean.tolist() == [1.5, -1.0]
    assert (tmp_path / "out" / "config.json").read_text() == "first"


def test_models_of_different_shapes_have_no_mean(tmp_path: Path) -> None:
    for name, tensor in ("first", torch.zeros(2)), ("second", torch.zeros(3)):
        (tmp_path / name).mkdir()
        save_file({"wte.weight": tensor}, tmp_path / name / "model.safetensors")
    with pytest.raises(ValueError, match="different shapes"):
        write_mean(tmp_path / "first", tmp_path / "second", 0.25, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prefix_is_tuned_by_the_projects_trainer_and_written_with_its_facts(tmp_path: Path) -> None:
    data = tmp_path / "sgd_nlg"
    data.mkdir()
    line = json.dumps(RECORD) + "\n"
    (data / "train.jsonl.gz").write_bytes(gzip.compress(3 * line.encode()))
    (data / "dev.jsonl").write_text(line)
    task = Task("dinner", "Dinner", "Says it.", service("Restaurants_1"), 4, num_steps=2, max_new_tokens=3)
    trained_on = load_backbone(POCKET, device="cpu", precision="float32")
    make_prefix(task, tmp_path, trained_on, tmp_path)
    facts = json.loads((tmp_path / "dinner.json").read_text())
    assert (facts["num_train_pairs"], facts["num_dev_inputs"]) == (3, 1)
    assert facts["steps"] in (1, 2), "whichever had the better dev loss"
    assert facts["samples"][0]["inputs"] == "offer restaurant name : Bushido | confirm party size : 2 | notify success"

    write_prefix(facts, tmp_path, tmp_path, trained_on.fingerprint)
    prefix = parse((tmp_path / "dinner.safetensors").read_bytes(), trained_on.shape, trained_on.fingerprint)
    assert isinstance(prefix, Prefix)
    assert (prefix.num_virtual_tokens, prefix.past_key_values.dtype) == (4, torch.float16)


def test_a_record_has_what_its_description_tells() -> None:
    record = "name : Cotto | food : Fast food | priceRange : less than £20 | area : riverside | familyFriendly : yes"
    assert told_of(record, "Cotto has cheap fast-food by the river, for kids too.") == record
    assert told_of(record, "Families like Cotto.") == "name : Cotto | familyFriendly : yes"
    assert told_of(record, "Cotto, for less than 20 euros.") == "name : Cotto | priceRange : less than £20"


def test_an_utterance_says_all_or_not() -> None:
    assert says_all(RECORD)
    assert not says_all({**RECORD, "text": "Bushido has a table."})


def test_a_description_is_learnt_from_where_it_tells_all_of_its_record_and_nothing_else(tmp_path: Path) -> None:
    record = "name[The Mill], area[riverside], near[Burger King]"
    told = ["The Mill is by the river, near Burger King.", "The Mill is near Burger King.",
            "The Mill is by the river, near Burger King. It is cheap."]  # fmt: skip
    (tmp_path / "e2e").mkdir()
    rows = "".join(f'"{record}","{text}"\n' for text in told)
    for name in ("trainset.csv", "devset.csv"):
        (tmp_path / "e2e" / name).write_text("mr,ref\n" + rows)
    train, dev = read_restaurants(tmp_path)
    assert [example.targets for example in train] == [(told[0],)]
    assert [example.targets for example in dev] == [tuple(told)]


def test_values_change_in_acts_and_utterance_alike() -> None:
    record = {**RECORD, "text": "Bushido has a table for 2."}
    other = {
        "acts": [
            {"act": "OFFER", "slot": "restaurant_name", "values": ["Taki"]},
            {"act": "INFORM", "slot": "party_size", "values": ["7"]},
            {"act": "REQUEST", "slot": "restaurant_name", "values": ["Ozu", "Kabuki"]},
        ]
    }
    pool = values_by_slot([other])
    texts = set()
    for seed in range(50):
        changed = with_other_values(record, pool, random.Random(seed))
        if changed is not None:
            (name,), (size,), none = (act["values"] for act in changed["acts"])
            assert changed["text"] == f"{name} has a table for {size}."
            assert none == []
            texts.add(changed["text"])
    assert texts == {"Taki has a table for 7.", "Taki has a table for 2.", "Bushido has a table for 7."}


def test_values_that_are_said_twice_or_within_others_stay() -> None:
    pool = {"restaurant_name": ["Taki"], "party_size": ["7"]}
    twice = {**RECORD, "text": "Bushido has a table. Enjoy Bushido!"}
    within = {**RECORD, "text": "Bushido2 has a table, on 02/12."}
    assert all(
        with_other_values(record, pool, random.Random(seed)) is None for record in (twice, within) for seed in range(20)
    )


def test_an_utterance_is_read_into_its_topic_where_it_tells_it(tmp_path: Path) -> None:
    def write(name: str, records: list[dict[str, Any]]) -> None:
        (tmp_path / "sgd_nlg").mkdir(exist_ok=True)
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        (tmp_path / "sgd_nlg" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    offer = {**RECORD, "acts": [{**act, "act": "OFFER"} for act in RECORD["acts"]], "service": "RideSharing_2"}
    short = {**RECORD, "acts": RECORD["acts"][1:], "text": "For 2?"}
    write("train.jsonl.gz", [RECORD, {**offer, "text": "Taki, for 4?"}, short])
    unknown = {**offer, "service": "RideSharing_3", "text": "Ozu, for 3?"}
    write("dev.jsonl", [RECORD, {**offer, "text": "Ozu, for 2?"}, unknown])
    train, dev = read_topics(tmp_path)
    assert [(example.inputs, example.targets) for example in train] == [
        (RECORD["text"], ("topic : restaurants | act : confirm",)),
        ("Taki, for 4?", ("topic : taxis | act : offer",)),
    ]
    assert [example.inputs for example in dev] == ["Ozu, for 2?"], "new, and of a service of the training set"


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
    with torch.device("meta"):  # holds no numbers: what is not put on the model's device could not go on
        assert answer(model, tokenizer, prefix, [record], max_new_tokens=60) == [text]
