"""Decides whether a refused request is sent again, and when.

Knows statuses and `Retry-After`. Knows nothing of sockets and never sleeps.
"""

from dataclasses import dataclass

from clients.errors import ApiError


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `max_retries` more attempts, none after a wait of more than `max_wait` seconds.

    429 is refused before any work, so every call may be repeated. 503 can come from the middle of the work, so only a
    call that may be done twice is. Nothing else is repeated: not a broken connection, and never a stream that began.
    Without `Retry-After` the wait is `first_wait`, then twice that, and so on up to `max_wait`.
    """

    max_retries: int = 3
    max_wait: float = 30.0
    first_wait: float = 0.5

    def seconds(self, error: ApiError, attempt: int, *, repeatable: bool) -> float | None:
        """How long to wait before attempt number `attempt + 1` (the first is 0), or None: give up."""
        may_repeat = error.status == 429 or (error.status == 503 and repeatable)
        if not may_repeat or attempt >= self.max_retries:
            return None
        wait = min(self.first_wait * 2**attempt, self.max_wait) if error.retry_after is None else error.retry_after
        return wait if wait <= self.max_wait else None
