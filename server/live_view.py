"""The live view's events, as their watcher may see them: an operator all of it, a tenant only its own by name.

Knows principals and what is recorded. Knows nothing of HTTP.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from prefix_store.cache import CacheStats
from prefix_store.tenants import Principal, Scope
from server.live import MAX_STEPS, Live, LiveStep, Owner

UNNAMED = -1  # another tenant's row, or nobody's
PERCENTILES = (0.5, 0.95, 0.99)


class LiveView:
    """One watcher's place in the steps: each event tells what is new since the last one, as far as it is still known.

    So a watcher that reads slowly misses steps and costs no memory.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: LiveStep | None = None
        self._gaps: deque[tuple[float, int]] = deque(maxlen=MAX_STEPS)  # seconds, and how many rows waited so long

    def event(self, principal: Principal, is_whole: bool, cache: CacheStats) -> dict[str, Any]:
        """`is_whole`: with everybody's names; else with those of the principal's own tenant.

        `steps` has a row as slot, place in `owners` (-1: unnamed), and number of the prompt's tokens (0: it decodes);
        `tokens` is how many answers got one more. `server` is another after a restart, and of another replica.
        Times are in milliseconds; `now` and `at` count from an unknown moment.
        """
        seen = None if is_whole else principal.tenant
        steps = self._news()
        owners: dict[tuple[str, str], int] = {}
        told = [_step(step, seen, owners) for step in steps]
        first_tokens = [each.seconds for each in self._live.first_tokens if seen in (None, each.tenant)]
        self._note_gaps(steps, seen)
        return {
            "server": self._live.server,
            "now": _ms(time.monotonic()),
            "num_slots": self._live.num_slots,
            "owners": [{"tenant": tenant, "task_id": task_name} for tenant, task_name in owners],
            "steps": told,
            "waiting": _waiting(self._live, seen),
            "first_token": percentiles((seconds, 1) for seconds in first_tokens),
            "gap": percentiles(self._gaps),
            "cache": _cache(cache) if is_whole else None,
        }

    def _news(self) -> list[LiveStep]:
        """The steps since the last event."""
        steps = list(self._live.steps)
        if self._last is not None:
            steps = [step for step in steps if step.stats.step > self._last.stats.step]
        return steps

    def _note_gaps(self, steps: Sequence[LiveStep], seen: str | None) -> None:
        """The time between two tokens of a row is that between two steps which follow each other and both hold it."""
        chain = steps if self._last is None else [self._last, *steps]
        for before, after in pairwise(chain):
            if after.stats.step == before.stats.step + 1:
                num_rows = sum(
                    row.is_decode and owner is not None and seen in (None, owner.tenant)
                    for row, owner in zip(after.stats.rows, after.owners, strict=True)
                )
                if num_rows:
                    self._gaps.append((after.at - before.at, num_rows))
        if steps:
            self._last = steps[-1]


def sees_all(principal: Principal, nobody: Principal | None) -> bool:
    """An operator, and everybody on a server without keys, which has one tenant."""
    return Scope.OPERATOR in principal.scopes or principal is nobody


def percentiles(weighted: Iterable[tuple[float, int]]) -> list[float] | None:
    """The median, the 95th and the 99th percentile, in milliseconds, of seconds that each count so many times."""
    ordered = sorted(weighted)
    total = sum(weight for _, weight in ordered)
    found: list[float] = []
    num_below = 0
    for seconds, weight in ordered:
        num_below += weight
        while len(found) < len(PERCENTILES) and num_below >= PERCENTILES[len(found)] * total:
            found.append(_ms(seconds))
    return found or None


def _step(step: LiveStep, seen: str | None, owners: dict[tuple[str, str], int]) -> dict[str, Any]:
    """Adds to `owners` whom the step's rows name."""
    stats = step.stats
    rows = [
        [row.slot, _place(owner, seen, owners), 0 if row.is_decode else row.num_tokens]
        for row, owner in zip(stats.rows, step.owners, strict=True)
    ]
    times = {"at": _ms(step.at), "ms": _ms(stats.seconds)}
    return {"step": stats.step, **times, "tokens": stats.num_tokens, "rows": rows}


def _place(owner: Owner | None, seen: str | None, owners: dict[tuple[str, str], int]) -> int:
    if owner is None or seen not in (None, owner.tenant):
        return UNNAMED
    return owners.setdefault((owner.tenant, owner.task_name), len(owners))


def _waiting(live: Live, seen: str | None) -> list[dict[str, Any]]:
    """The queue by tenant, longest first; what others than `seen` have in it is told in one number, without names."""
    waiting = live.num_waiting()
    named = [(tenant, num) for tenant, num in waiting.most_common() if seen in (None, tenant)]
    num_others = waiting.total() - sum(num for _, num in named)
    told = [*named, (None, num_others)] if num_others else named
    return [{"tenant": tenant, "requests": num} for tenant, num in told]


def _cache(stats: CacheStats) -> dict[str, int]:
    return {
        "hits": stats.hits,
        "misses": stats.misses,
        "prefixes": stats.num_prefixes,
        "bytes": stats.num_bytes,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
