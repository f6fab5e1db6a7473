"""Which tenants and keys there can be."""

import pytest

from prefix_store.errors import InvalidTenant
from prefix_store.keys import hash_of, key_id_of, new_key
from prefix_store.tenants import Tenant, TenantLimits, limits_of, limits_text


@pytest.mark.parametrize("name", ["", "..", "/etc", "a b", "-a", "a\0", "a\n", "é", "x" * 129])
def test_a_name_that_could_be_anything_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidTenant, match="expected"):
        Tenant(name=name)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_above_zero(weight: float) -> None:
    with pytest.raises(InvalidTenant, match="weight"):
        Tenant(name="acme", weight=weight)


@pytest.mark.parametrize(
    "limit", [{"max_tasks": -1}, {"max_bytes": 1.5}, {"max_queued": True}, {"upload_burst": 2**63}]
)
def test_a_limit_is_a_whole_number_or_none(limit: dict[str, object]) -> None:
    with pytest.raises(InvalidTenant, match=next(iter(limit))):
        TenantLimits(**limit)


def test_limits_survive_being_text() -> None:
    limits = TenantLimits(max_tasks=3, requests_per_minute=10)
    assert limits_of(limits_text(limits)) == limits


def test_keys_are_long_random_and_found_by_their_visible_part() -> None:
    first, second = new_key(), new_key()
    assert first.secret != second.secret
    assert len(first.secret) == len("pp_") + 8 + 1 + 64
    assert key_id_of(first.secret) == first.key_id
    assert hash_of(first.secret) != hash_of(second.secret)


@pytest.mark.parametrize(
    "text", ["", "pp_", "sk-1", "pp_ABCDEFGH_" + "0" * 64, "pp_abcdefgh_" + "0" * 63, "\ud800", "\0"]
)
def test_what_is_no_key_is_looked_up_as_one_that_nobody_has(text: str) -> None:
    assert key_id_of(text) == "--------"
    assert len(hash_of(text)) == 64
