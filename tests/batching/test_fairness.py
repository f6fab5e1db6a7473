"""Who is served next: by what each tenant has been served, and within its share of the slots."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from batching.engine import Engine
from batching.fairness import FairShare
from batching.gpt2 import Backbone
from batching.types import RequestError
from tests.batching.support import ask, make_engine, make_model

MODEL = make_model()


def serve(fair_share: FairShare, num_rounds: int, cost: dict[str, int]) -> dict[str, int]:
    """Give the one slot away again and again between tenants that always wait; tokens each was served."""
    served = dict.fromkeys(cost, 0)
    for _ in range(num_rounds):
        tenant = fair_share.choose(1, dict.fromkeys(cost, 1))
        assert tenant is not None
        fair_share.admit(tenant, 1, 10)
        fair_share.charge_output(tenant, cost[tenant])
        served[tenant] += cost[tenant]
        fair_share.enter(tenant, fair_share._accounts[tenant].weight)
        fair_share.give_back(tenant, 1)
    return served


@pytest.mark.parametrize(("weight", "ratio"), [(1.0, 1.0), (3.0, 3.0), (0.5, 0.5)])
def test_backlogged_tenants_are_served_by_their_weights(weight, ratio):
    fair_share = FairShare(num_slots=1)
    fair_share.enter("a", weight)
    fair_share.enter("b", 1.0)
    served = serve(fair_share, 400, {"a": 20, "b": 20})
    assert served["a"] / served["b"] == pytest.approx(ratio, rel=0.05)


def test_a_tenant_with_longer_answers_gets_fewer_of_them():
    fair_share = FairShare(num_slots=1)
    fair_share.enter("short", 1.0)
    fair_share.enter("long", 1.0)
    served = serve(fair_share, 400, {"short": 5, "long": 50})
    weighted = {
        "short": served["short"] * 2 + served["short"] // 5 * 10,
        "long": served["long"] * 2 + served["long"] // 50 * 10,
    }
    assert weighted["short"] / weighted["long"] == pytest.approx(1.0, abs=0.05)


def test_a_tenant_that_returns_has_saved_nothing_up():
    fair_share = FairShare(num_slots=1)
    fair_share.enter("busy", 1.0)
    serve(fair_share, 50, {"busy": 100})
    fair_share.enter("idle", 1.0)
    served = serve(fair_share, 20, {"busy": 100, "idle": 100})
    assert abs(served["busy"] - served["idle"]) <= 100


def test_a_tenant_that_leaves_for_a_moment_still_owes_what_it_was_served():
    fair_share = FairShare(num_slots=1)
    lengths = {"backlogged": 10, "returning": 1000}
    served = dict.fromkeys(lengths, 0)
    fair_share.enter("backlogged", 1.0)
    fair_share.enter("returning", 1.0)
    for _ in range(1000):
        tenant = fair_share.choose(1, {"backlogged": 1, "returning": 1})
        assert tenant is not None
        fair_share.admit(tenant, 1, 0)
        fair_share.charge_output(tenant, lengths[tenant])
        served[tenant] += lengths[tenant]
        if tenant == "backlogged":  # it has more in the queue; the other asks again only when it has its answer
            fair_share.enter(tenant, 1.0)
        fair_share.give_back(tenant, 1)
        if tenant == "returning":
            fair_share.enter(tenant, 1.0)
    assert abs(served["returning"] - served["backlogged"]) <= 1000


def test_while_others_wait_below_their_share_nobody_gets_slots_beyond_its_own():
    fair_share = FairShare(num_slots=8)
    for tenant, weight in (("greedy", 1.0), ("other", 3.0)):
        for _ in range(9):
            fair_share.enter(tenant, weight)
    for _ in range(2):  # its share: 8 * 1 / 4
        fair_share.admit("greedy", 1, 1)
    fair_share.admit("other", 1, 1000)
    assert fair_share.choose(5, {"greedy": 1, "other": 1}) == "other", "though it was served more"
    for _ in range(5):
        fair_share.admit("other", 1, 1000)
    assert fair_share.choose(1, {"greedy": 1, "other": 1}) == "greedy", "all have their share: no slot stays idle"
    assert fair_share.choose(1, {"greedy": 1}) == "greedy", "nobody else waits"


def test_the_reserve_is_kept_for_tenants_below_their_share():
    fair_share = FairShare(num_slots=16, num_reserved_slots=2)
    for _ in range(20):
        fair_share.enter("alone", 1.0)
    for _ in range(14):
        assert fair_share.choose(16 - fair_share._accounts["alone"].num_slots, {"alone": 1}) == "alone"
        fair_share.admit("alone", 1, 1)
    assert fair_share.choose(2, {"alone": 1}) is None
    fair_share.enter("newcomer", 1.0)
    assert fair_share.choose(2, {"alone": 1, "newcomer": 1}) == "newcomer"


def test_a_request_beyond_its_tenants_share_leaves_the_reserve():
    fair_share = FairShare(num_slots=16, num_reserved_slots=2)
    fair_share.enter("beams", 1.0)
    assert fair_share.choose(15, {"beams": 14}) is None
    assert fair_share.choose(16, {"beams": 14}) == "beams"
    fair_share.admit("beams", 14, 1)
    fair_share.enter("newcomer", 1.0)
    assert fair_share.choose(2, {"newcomer": 1}) == "newcomer"


def test_a_request_for_the_reserve_too_is_refused_before_it_waits_for_ever():
    engine = Engine(Backbone.from_model(MODEL), 16, has_reserve=True)
    wide = ask((1, 2), num_beams=12, max_new_tokens=2)
    engine.check(wide)
    with pytest.raises(RequestError, match="num_beams is 13; the server has 12 slots for one request"):
        engine.check(ask((1, 2), num_beams=13, max_new_tokens=2))
    engine.add_request(wide)
    while engine.has_work:
        engine.step()


def test_a_request_of_many_slots_is_not_overtaken_for_ever():
    fair_share = FairShare(num_slots=8)
    fair_share.enter("beams", 1.0)
    fair_share.enter("rows", 1.0)
    fair_share.admit("rows", 1, 100)
    fair_share.enter("rows", 1.0)
    assert fair_share.choose(3, {"beams": 5, "rows": 1}) is None, "slots gather for who was served least"
    assert fair_share.choose(5, {"beams": 5, "rows": 1}) == "beams"


def test_while_slots_gather_for_one_request_tenants_get_their_first_one_and_no_more_than_are_reserved():
    fair_share = FairShare(num_slots=16, num_reserved_slots=2)
    for _ in range(8):
        fair_share.enter("busy", 1.0)
    fair_share.admit("busy", 8, 100)
    fair_share.enter("beams", 1.0)
    wanted = {"beams": 12, "busy": 1}
    for name in ("one", "two", "three"):
        fair_share.enter(name, 1.0)
        wanted[name] = 1
    for num_free, name in ((8, "one"), (7, "two")):
        assert fair_share.choose(num_free, wanted) == name
        fair_share.admit(name, 1, 1)
        fair_share.enter(name, 1.0)  # what it asks for besides is not its first
    assert fair_share.choose(6, wanted) is None, "neither a third, nor a second one of the first's"
    fair_share.give_back("busy", 8)
    assert fair_share.choose(14, wanted) == "beams", "it comes about though they never end all at once"


@pytest.mark.parametrize("num_slots", [8, 16, 32])
def test_neither_a_wide_request_nor_who_comes_beside_it_waits_for_the_other(num_slots):
    """C always has rows waiting, A a search of all slots that it may have, B a short request now and then."""
    chance = random.Random(0)
    reserve = num_slots // 8
    fair_share = FairShare(num_slots, reserve)
    width = num_slots - 2 * reserve
    rows: list[tuple[str, int, int]] = []  # tenant, slots, the step in which it ends
    waiting = {"a": 1, "b": 0, "c": 2 * num_slots}
    for tenant, number in waiting.items():
        for _ in range(number):
            fair_share.enter(tenant, 1.0)
    num_slots_of, num_steps_of = {"a": width, "b": 1, "c": 1}, {"a": 32, "b": 16}
    since, waits = {"a": 0, "b": 0}, {"a": [], "b": []}
    for step in range(20_000):
        for ended in [row for row in rows if row[2] == step]:
            rows.remove(ended)
            fair_share.give_back(ended[0], ended[1])
            if ended[0] == "a":
                fair_share.enter("a", 1.0)
                waiting["a"], since["a"] = 1, step
        if step % 97 == 0 and not waiting["b"] and not any(row[0] == "b" for row in rows):
            fair_share.enter("b", 1.0)
            waiting["b"], since["b"] = 1, step
        while True:
            wanted = {tenant: num_slots_of[tenant] for tenant, number in waiting.items() if number}
            tenant = fair_share.choose(num_slots - sum(row[1] for row in rows), wanted)
            if tenant is None:
                break
            fair_share.admit(tenant, num_slots_of[tenant], 32)
            num_steps = num_steps_of.get(tenant) or chance.randint(200, 600)
            rows.append((tenant, num_slots_of[tenant], step + num_steps))
            if tenant == "c":
                fair_share.enter("c", 1.0)
            else:
                waiting[tenant] = 0
                waits[tenant].append(step - since[tenant])
        for tenant, number, _ in rows:
            fair_share.charge_output(tenant, number)
    assert sum(waits["b"]) / len(waits["b"]) <= 4, "mostly its first slot is there"
    assert max(waits["b"]) <= 32, "a search at most"
    assert len(waits["a"]) > 5
    assert max(waits["a"]) <= 4 * 600


def test_prompts_that_are_long_do_not_keep_another_tenants_short_one_waiting():
    engine = Engine(Backbone.from_model(MODEL), 8, has_reserve=True)
    long = [5] * (engine.max_model_len - 8)
    engine.add_request(replace(ask((1,), max_new_tokens=40, min_new_tokens=40), tenant="decoding"))
    engine.step()
    for _ in range(20):
        engine.add_request(replace(ask(long, max_new_tokens=6, min_new_tokens=6), tenant="flood"))
    engine.step()
    quiet = replace(ask((3, 4, 5), max_new_tokens=2, min_new_tokens=2), tenant="quiet")
    engine.add_request(quiet)
    num_steps = 1
    while quiet.request_id not in {output.request_id for output in engine.step() if output.new_token_ids}:
        num_steps += 1
    assert num_steps <= 3, "from its slot to its first token"
    while engine.has_work:
        engine.step()


def test_a_steps_prompt_tokens_are_shared_by_weight_and_what_one_leaves_is_the_others():
    engine = make_engine(MODEL, 4)
    for tenant, weight, num_tokens in (("a", 1.0, 40), ("b", 2.0, 40), ("c", 1.0, 4)):
        engine.add_request(replace(ask(range(num_tokens), max_new_tokens=2), tenant=tenant, weight=weight))
    scheduler = engine._scheduler
    scheduler.admit()
    read = {step.sequence.request.tenant: step.num_new_tokens for step in scheduler._bounded(scheduler.running, 1)}
    assert scheduler.max_prompt_tokens_beside(1) == 18
    assert read == {"a": 4, "b": 10, "c": 4}


def test_a_weight_that_vanishes_beside_another_has_a_share_all_the_same():
    engine = make_engine(MODEL, 4)
    for tenant, weight in (("a", 1.0), ("b", 1e-17)):
        engine.add_request(replace(ask(range(30), max_new_tokens=2, min_new_tokens=2), tenant=tenant, weight=weight))
    while engine.has_work:
        engine.step()
    assert engine.num_free_slots == 4


def test_a_flood_of_one_tenant_does_not_keep_another_waiting():
    engine = make_engine(MODEL, 4)
    for _ in range(40):
        engine.add_request(replace(ask((1, 2), max_new_tokens=6, min_new_tokens=6), tenant="flood"))
    for _ in range(3):
        engine.step()
    quiet = replace(ask((3,), max_new_tokens=2, min_new_tokens=2), tenant="quiet")
    engine.add_request(quiet)
    num_steps = 0
    while quiet.request_id not in {output.request_id for output in engine.step()}:
        num_steps += 1
    assert num_steps <= 4, "it gets the first slot that is given back"
    while engine.has_work:
        engine.step()
    assert engine.num_free_slots == 4


def test_a_cancelled_requests_tokens_stay_charged():
    engine = make_engine(MODEL, 1)
    cancelled, next_one = (replace(ask(range(50), max_new_tokens=9, min_new_tokens=9), tenant="acme") for _ in range(2))
    for request in (cancelled, next_one):
        engine.add_request(request)
    for _ in range(3):
        engine.step()
    engine.abort(cancelled.request_id)
    assert engine._scheduler._fair_share._accounts["acme"].served == 50 * 1 + 3 * 2


def test_the_account_of_a_tenant_without_work_is_dropped():
    engine = make_engine(MODEL, 2)
    for i in range(5):
        engine.add_request(replace(ask((1,), max_new_tokens=2), tenant=f"tenant-{i}"))
    engine.add_request(last := replace(ask((1,), max_new_tokens=2), tenant="tenant-9"))
    engine.abort(last.request_id)
    while engine.has_work:
        engine.step()
    assert engine._scheduler._fair_share._accounts == {}


@pytest.mark.parametrize(("num_slots", "weight"), [(8, 3.0), (16, 1.0), (16, 3.0), (64, 3.0)])
def test_with_a_reserve_backlogged_tenants_are_still_served_by_their_weights(num_slots, weight):
    chance = random.Random(0)
    fair_share = FairShare(num_slots, num_reserved_slots=num_slots // 8)
    weights, served = {"a": weight, "b": 1.0}, Counter()
    for tenant in weights:
        for _ in range(2 * num_slots):
            fair_share.enter(tenant, weights[tenant])
    rows: list[tuple[str, int]] = []  # a running row's tenant, and the step in which it ends
    for step in range(3000):
        while tenant := fair_share.choose(num_slots - len(rows), dict.fromkeys(weights, 1)):
            fair_share.admit(tenant, 1, 32)
            fair_share.enter(tenant, weights[tenant])
            rows.append((tenant, step + chance.randint(28, 36)))
        for tenant, _ in rows:
            fair_share.charge_output(tenant, 1)
            served[tenant] += step > 500
        for tenant, _ in [row for row in rows if row[1] == step]:
            fair_share.give_back(tenant, 1)
        rows = [row for row in rows if row[1] > step]
    assert served["a"] / served["b"] == pytest.approx(weight, rel=0.02)
