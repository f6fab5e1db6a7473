"""What is counted: phases, waits, health; and by tenant and task only where the operator asks."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.server.conftest import Running
from tests.server.fakes import EchoEngine, Gate
from tests.server.test_operations import metric


def names_with_labels(server: Running, part: str) -> list[str]:
    lines = server.http.get("/metrics").text.splitlines()
    return [
        line.rpartition(" ")[0] for line in lines if line.startswith(f"polyprefix_{part}") and "_created" not in line
    ]


def test_steps_are_timed_by_what_their_rows_did(start) -> None:  # type: ignore[no-untyped-def]
    server = start()
    server.generate("abc")
    assert metric(server, 'step_seconds_count{phase="prefill"}') == 1
    assert metric(server, 'step_seconds_count{phase="decode"}') == 3


def test_the_gaps_between_a_rows_tokens_and_its_end_are_timed(start) -> None:  # type: ignore[no-untyped-def]
    server = start()
    server.generate("abc")
    assert metric(server, "time_to_first_token_seconds_count") == 1
    assert metric(server, "inter_token_latency_seconds_count") == 3
    assert metric(server, "e2e_request_latency_seconds_count") == 1


def test_a_token_is_timed_when_it_comes_though_the_answer_is_written_at_its_end(start) -> None:  # type: ignore[no-untyped-def]
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.generate, "abc")
        gate.allow(2)
        deadline = time.monotonic() + 20
        while metric(server, "inter_token_latency_seconds_count") < 1:
            assert time.monotonic() < deadline
        assert metric(server, "time_to_first_token_seconds_count") == metric(server, "queue_seconds_count") == 1
        assert not asked.done()
        gate.open()
        assert asked.result()["generated_text"] == "abc"


def test_an_idle_engine_is_up_and_not_busy_and_has_all_its_slots(start) -> None:  # type: ignore[no-untyped-def]
    server = start()
    assert (metric(server, "engine_up"), metric(server, "engine_busy_seconds")) == (1, 0)
    assert metric(server, "slots") == metric(server, "free_slots") == 4


def test_an_engine_that_does_not_come_back_from_a_step_is_busy_longer_and_longer(start) -> None:  # type: ignore[no-untyped-def]
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.generate, "a")
        deadline = time.monotonic() + 20
        while metric(server, "engine_busy_seconds") < 0.05:
            assert time.monotonic() < deadline
        gate.open()
        asked.result()


def test_versions_taken_out_of_service_are_counted(start) -> None:  # type: ignore[no-untyped-def]
    server = start()
    server.upload("poet")
    assert metric(server, "quarantines_total") == 0
    server.services.store.quarantine("default", "poet", 1, "it fails")
    assert metric(server, "quarantines_total") == 1


def test_nothing_is_counted_by_tenant_or_task_unless_asked_for(start) -> None:  # type: ignore[no-untyped-def]
    server = start()
    server.generate("abc")
    assert names_with_labels(server, "tenant_") == names_with_labels(server, "task_") == []


def test_tokens_and_waiting_requests_are_counted_by_tenant(start) -> None:  # type: ignore[no-untyped-def]
    gate = Gate()
    server = start(EchoEngine(before_step=gate), metrics_by_tenant=True)
    num_slots = server.engine.max_num_seqs
    with ThreadPoolExecutor(num_slots + 1) as pool:
        asked = [pool.submit(server.generate, "abc") for _ in range(num_slots + 1)]
        server.wait_for_open_rows(num_slots + 1)
        gate.open()
        [each.result() for each in asked]
    assert metric(server, 'tenant_tokens_total{kind="prompt",tenant="default"}') == 3 * (num_slots + 1)
    assert metric(server, 'tenant_tokens_total{kind="generated",tenant="default"}') == 4 * (num_slots + 1)
    assert metric(server, 'tenant_requests_waiting{tenant="default"}') == 0
    assert names_with_labels(server, "task_") == []


def test_only_so_many_tasks_have_a_label_of_their_own(start) -> None:  # type: ignore[no-untyped-def]
    server = start(metrics_max_tasks=1)
    for task_id in ("poet", "clerk", "chef"):
        server.upload(task_id)
        server.generate("a", task_id=task_id)
    assert names_with_labels(server, "task_rows_total") == [
        'polyprefix_task_rows_total{task="poet",tenant="default"}',
        'polyprefix_task_rows_total{task="*",tenant="*"}',
    ]
    assert metric(server, 'task_rows_total{task="*",tenant="*"}') == 2
