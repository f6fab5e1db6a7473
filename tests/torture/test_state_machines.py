"""The state machines of the engine and of the store, for long: hundreds of histories that hypothesis makes up."""

import hypothesis
import pytest
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.batching.test_state_machine import EngineMachine
from tests.prefix_store.test_state_machine import StoreMachine
from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

MACHINES: dict[str, tuple[type[RuleBasedStateMachine], int]] = {
    "engine": (EngineMachine, 60),
    "store": (StoreMachine, 40),
}
NUM_HISTORIES = 300


@pytest.mark.parametrize("name", MACHINES)
def test_whatever_happens_in_whatever_order_is_as_the_model_says(name: str, report: Report) -> None:
    machine, num_steps = MACHINES[name]
    settings = hypothesis.settings(
        max_examples=NUM_HISTORIES,
        stateful_step_count=num_steps,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(machine, settings=settings)
    count(report, **{f"{name}_histories": NUM_HISTORIES, f"{name}_history_steps": num_steps})
