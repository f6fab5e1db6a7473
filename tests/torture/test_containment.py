"""A thousand poisoned rows and a thousand clients that leave: no mate changes, nothing is left behind."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from tests.batching.poison import KINDS, poison_many
from tests.server.disconnects import held_server, leave_many
from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]


@pytest.fixture
def no_log() -> Iterator[None]:
    """A traceback for every culprit would be all that is seen of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_log")
def test_a_poisoned_rows_mates_say_what_they_say_without_it(report: Report) -> None:
    outcomes = poison_many(num_trials=1000, seed=2)
    num_changed = sum(outcome.num_mates_changed for outcome in outcomes)
    num_not_contained = sum(not outcome.is_contained for outcome in outcomes)
    count(report, poison_trials=len(outcomes), poison_mates_changed=num_changed, poison_not_contained=num_not_contained)
    out_of_memory = outcomes[list(KINDS).index("the forward runs out of memory") :: len(KINDS)]  # they take turns
    num_ended = sum(not outcome.is_contained for outcome in out_of_memory)
    count(report, out_of_memory_trials=len(out_of_memory), out_of_memory_not_contained=num_ended)
    assert num_changed == 0
    assert num_not_contained == 0


def test_clients_that_leave_leave_nothing_behind(
    tmp_path: Path, tiny_model: Path, byte_tokenizer: Backend, report: Report
) -> None:
    num_clients = 1000
    with held_server(tmp_path, tiny_model, byte_tokenizer) as server:
        leaks = leave_many(server, num_clients, seed=2)
    count(report, disconnects=num_clients, disconnect_leaks=len(leaks))
    assert leaks == []
