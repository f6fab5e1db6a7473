"""How much a tenant may ask for in a minute: requests, weighted tokens, uploads.

Knows tenants' limits and a clock. Knows nothing of HTTP, and nothing of what the tokens are.
"""

import time
from collections.abc import Callable

from prefix_store.tenants import Principal
from server.errors import RateLimited

PROMPT_TOKEN_WEIGHT = 1
GENERATED_TOKEN_WEIGHT = 2
MINUTE = 60.0


class Bucket:
    """Holds up to `burst`, fills at `per_minute`, and may go below zero: a debt that time pays back."""

    def __init__(self, per_minute: int, burst: int, now: float) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._level = float(burst)
        self._at = now

    def take(self, amount: float, now: float) -> None:
        self._level = self._level_at(now) - amount
        self._at = now

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until it holds `amount`; a minute where it never does."""
        missing = amount - self._level_at(now)
        if missing <= 0:
            return 0.0
        return missing * MINUTE / self.per_minute if self.per_minute and amount <= self.burst else MINUTE

    def _level_at(self, now: float) -> float:
        return min(float(self.burst), self._level + (now - self._at) * self.per_minute / MINUTE)


class Limits:
    """One bucket for each limit of each tenant that has asked for something. Used on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def admit(self, principal: Principal) -> None:
        """Count one request. Raises `RateLimited`, before any work, where there were too many, or too many tokens.

        What a request will cost is known at its end only, so it is admitted while anything is left, and charged then.
        """
        limits = principal.limits
        if limits.tokens_per_minute is None:
            self._buckets.pop((principal.tenant, "tokens"), None)  # or a debt would grow that nobody asks for
        else:
            tokens = self._bucket(principal, "tokens", limits.tokens_per_minute, limits.tokens_per_minute)
            self._expect(tokens, 1, f"{limits.tokens_per_minute} weighted tokens a minute")
        self.count(principal)

    def count(self, principal: Principal) -> None:
        """Count one request, whatever it costs. Raises `RateLimited`."""
        limits = principal.limits
        if limits.requests_per_minute is not None:
            requests = self._bucket(principal, "requests", limits.requests_per_minute, limits.requests_per_minute)
            self._expect(requests, 1, f"{limits.requests_per_minute} requests a minute")
            requests.take(1, self._clock())

    def admit_upload(self, principal: Principal) -> None:
        """Count one upload. Raises `RateLimited`."""
        limits = principal.limits
        uploads = self._bucket(principal, "uploads", limits.uploads_per_minute, limits.upload_burst)
        self._expect(uploads, 1, f"{limits.uploads_per_minute} uploads a minute, in bursts of {limits.upload_burst}")
        uploads.take(1, self._clock())

    def charge(self, principal: Principal, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Take what a row has cost, however it ended, from what the tenant has by now: its limit may be another one.

        A beam search says nothing before its end: one that is cut off has cost its prompt.
        """
        bucket = self._buckets.get((principal.tenant, "tokens"))
        if bucket is not None:
            cost = PROMPT_TOKEN_WEIGHT * num_prompt_tokens + GENERATED_TOKEN_WEIGHT * num_generated_tokens
            bucket.take(cost, self._clock())

    def _expect(self, bucket: Bucket, amount: float, limit: str) -> None:
        seconds = bucket.seconds_until(amount, self._clock())
        if seconds > 0:
            raise RateLimited(f"this tenant may have {limit}", seconds)

    def _bucket(self, principal: Principal, what: str, per_minute: int, burst: int) -> Bucket:
        """The tenant's bucket; a new, full one where the limit was changed."""
        key = (principal.tenant, what)
        bucket = self._buckets.get(key)
        if bucket is None or (bucket.per_minute, bucket.burst) != (per_minute, burst):
            bucket = self._buckets[key] = Bucket(per_minute, burst, self._clock())
        return bucket
