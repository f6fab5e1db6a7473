"""Which tenant is served next: the Virtual Token Counter, and each tenant's share of the slots.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (arXiv 2401.00588), algorithm 2. Keyed by tenant,
never by task: ten tasks must not be ten shares. Knows tenants, weights and counts; nothing of requests or tensors.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

PROMPT_TOKEN_COST = 1.0
OUTPUT_TOKEN_COST = 2.0


@dataclass(slots=True)
class Account:
    """One tenant with work: what it was served, in weighted tokens, and what it holds and waits for now."""

    weight: float
    served: float = 0.0
    num_slots: int = 0
    num_waiting: int = 0


class FairShare:
    """Accounts of the tenants that have work. One that returns is lifted to the least of them: idling saves nothing up.

    What a tenant owes it still owes when it returns, until the others have caught up with it or nobody has work.
    """

    def __init__(self, num_slots: int, num_reserved_slots: int = 0) -> None:
        """The last `num_reserved_slots` free slots are for a tenant's first slot, and for who stays within its share.

        While slots gather for one request, others may have as many as are reserved, and it leaves as many: one that
        wants more than `num_slots - 2 * num_reserved_slots` could wait for ever, so nobody may queue it.
        """
        self._num_slots = num_slots
        self._num_reserved_slots = num_reserved_slots
        self._accounts: dict[str, Account] = {}
        self._owed: dict[str, float] = {}  # by tenants without work: what they were served, where it is above the least

    def enter(self, tenant: str, weight: float) -> None:
        """A request of the tenant's begins to wait."""
        account = self._accounts.get(tenant)
        if account is None:
            served = max(self._least_served, self._owed.pop(tenant, 0.0))
            account = self._accounts[tenant] = Account(weight, served)
        account.weight = weight
        account.num_waiting += 1

    def admit(self, tenant: str, num_slots: int, num_prompt_tokens: int) -> None:
        """One of its requests leaves the queue for `num_slots` slots, and is charged for its prompt."""
        account = self._accounts[tenant]
        account.num_waiting -= 1
        account.num_slots += num_slots
        account.served += PROMPT_TOKEN_COST * num_prompt_tokens / account.weight

    def charge_output(self, tenant: str, num_tokens: int) -> None:
        account = self._accounts[tenant]
        account.served += OUTPUT_TOKEN_COST * num_tokens / account.weight

    def leave_queue(self, tenant: str) -> None:
        """One of its requests ends without having run."""
        self._accounts[tenant].num_waiting -= 1
        self._forget_if_idle(tenant)

    def give_back(self, tenant: str, num_slots: int) -> None:
        """One of its requests ends. What it was charged stays charged, also where it was cancelled."""
        self._accounts[tenant].num_slots -= num_slots
        self._forget_if_idle(tenant)

    def choose(self, num_free_slots: int, slots_wanted: dict[str, int]) -> str | None:
        """Which of the waiting tenants is served next; `slots_wanted` is what each one's first request takes.

        It is the one that was served least, of those within their share of the slots where there are such. Where its
        request does not fit yet, beside the reserve where it may not use that, slots gather for it: else requests of
        one slot would keep those of many waiting for ever. Only tenants' first slots are given meanwhile, as many at
        once as are reserved.
        """
        within = [tenant for tenant, num_slots in slots_wanted.items() if self._is_within_share(tenant, num_slots)]
        allowed = [
            tenant
            for tenant in within or slots_wanted
            if self._accounts[tenant].num_slots == 0
            or self._fits(tenant, slots_wanted[tenant], num_free_slots)
            or self._may_use_reserve(tenant, slots_wanted[tenant])
        ]
        tenant = self._least(allowed)
        if tenant is None or self._fits(tenant, slots_wanted[tenant], num_free_slots):
            return tenant
        num_small = sum(account.num_slots == 1 for account in self._accounts.values())
        if num_free_slots == 0 or num_small >= self._num_reserved_slots:
            return None
        return self._least(name for name, num_slots in slots_wanted.items() if self._is_first(name, num_slots))

    def _least(self, tenants: Iterable[str]) -> str | None:
        """Who was served least."""
        return min(tenants, key=lambda name: self._accounts[name].served, default=None)

    def _is_first(self, tenant: str, num_slots: int) -> bool:
        """Whether it wants one slot and has none."""
        return self._accounts[tenant].num_slots == 0 and num_slots == 1

    def _fits(self, tenant: str, num_slots: int, num_free_slots: int) -> bool:
        num_kept = 0 if self._may_use_reserve(tenant, num_slots) else self._num_reserved_slots
        return num_slots <= num_free_slots - num_kept

    def _is_within_share(self, tenant: str, num_slots: int) -> bool:
        """Whether the tenant holds nothing yet, or not more than its share with `num_slots` more."""
        account = self._accounts[tenant]
        return account.num_slots == 0 or account.num_slots + num_slots <= math.ceil(self._share(account))

    def _may_use_reserve(self, tenant: str, num_slots: int) -> bool:
        """Whether it wants its first slot, or stays within its share as if one more tenant had work: somebody may come
        at any time.

        And rounded down. Shares that are rounded up can add up to all that is not reserved; then slots are given by
        those shares and no longer by what was served: with 16 slots weights of 3 to 1 gave 2.6 to 1.
        """
        account = self._accounts[tenant]
        share = self._share(account, weight_of_newcomers=1.0)
        return self._is_first(tenant, num_slots) or account.num_slots + num_slots <= math.floor(share)

    def _share(self, account: Account, weight_of_newcomers: float = 0.0) -> float:
        total = sum(other.weight for other in self._accounts.values()) + weight_of_newcomers
        return self._num_slots * account.weight / total

    @property
    def _least_served(self) -> float:
        return min((account.served for account in self._accounts.values()), default=0.0)

    def _forget_if_idle(self, tenant: str) -> None:
        account = self._accounts[tenant]
        if account.num_slots == account.num_waiting == 0:
            del self._accounts[tenant]
            self._owed[tenant] = account.served
            least = self._least_served
            self._owed = {name: served for name, served in self._owed.items() if self._accounts and served > least}
