"""What is counted by tenant and by task, where the operator asks for it.

Each label is a series that Prometheus keeps, so neither is on by itself, and tasks have a bound: tenants make them.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

OTHERS = ("*", "*")  # no tenant's name, and no task's


class AccountMetrics:
    """Used on the event loop. Without labels there are names, types and no values."""

    def __init__(self, registry: CollectorRegistry, by_tenant: bool, max_tasks: int) -> None:
        """The first `max_tasks` tasks that run have labels of their own; all later ones share `OTHERS`."""
        self._by_tenant = by_tenant
        self._max_tasks = max_tasks
        self._tasks: set[tuple[str, str]] = set()
        self._tenants_waiting: set[str] = set()
        self._waiting = Gauge(
            "polyprefix_tenant_requests_waiting", "Requests that wait for a slot", ("tenant",), registry=registry
        )
        self._tenant_tokens = Counter(
            "polyprefix_tenant_tokens", "Tokens of prompts, and generated ones", ("tenant", "kind"), registry=registry
        )
        self._task_rows = Counter("polyprefix_task_rows", "Rows that ran", ("tenant", "task"), registry=registry)
        self._task_tokens = Counter(
            "polyprefix_task_tokens",
            "Tokens of prompts, and generated ones",
            ("tenant", "task", "kind"),
            registry=registry,
        )

    def observe_waiting(self, count: Callable[[], Mapping[str, int]]) -> None:
        """`count` tells how many requests of each tenant wait now; those that it does not name have none."""
        if self._by_tenant:
            num_waiting = count()
            self._tenants_waiting |= num_waiting.keys()
            for tenant in self._tenants_waiting:
                self._waiting.labels(tenant).set(num_waiting.get(tenant, 0))

    def observe_row(self, tenant: str, task: str, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        if self._by_tenant:
            self._tenant_tokens.labels(tenant, "prompt").inc(num_prompt_tokens)
            self._tenant_tokens.labels(tenant, "generated").inc(num_generated_tokens)
        if self._max_tasks:
            labels = self._task_labels(tenant, task)
            self._task_rows.labels(*labels).inc()
            self._task_tokens.labels(*labels, "prompt").inc(num_prompt_tokens)
            self._task_tokens.labels(*labels, "generated").inc(num_generated_tokens)

    def _task_labels(self, tenant: str, task: str) -> tuple[str, str]:
        if (tenant, task) not in self._tasks and len(self._tasks) == self._max_tasks:
            return OTHERS
        self._tasks.add((tenant, task))
        return tenant, task
