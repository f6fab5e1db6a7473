"""Which task ids there are, and that no tenant's name leads out of its folder or into another's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_store.errors import InvalidTaskId
from prefix_store.names import check_new_task_id, check_task_id, tenant_folder


@pytest.mark.parametrize("task_id", ["e2e", "A", "0", "a.b_c-d", "a..", "x" * 128])
def test_a_plain_name_is_a_task_id(task_id: str) -> None:
    check_new_task_id(task_id, backbone_name="gpt2")


@pytest.mark.parametrize(
    "task_id",
    ["", ".", "..", "-a", "_a", "../../etc/passwd", "a/b", "a\\b", "a\0b", "a\r\nX: y", "a\n", "a b", "é", "٣", "🙂",
     "\ud800", "x" * 129, "x" * 100_000],
)  # fmt: skip
def test_anything_else_is_not_and_the_message_stays_one_short_line(task_id: str) -> None:
    with pytest.raises(InvalidTaskId) as refused:
        check_task_id(task_id)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("task_id", ["base", "tgi", "gpt2"])
def test_names_of_the_bare_backbone_cannot_be_taken(task_id: str) -> None:
    check_task_id(task_id)
    with pytest.raises(InvalidTaskId, match="backbone"):
        check_new_task_id(task_id, backbone_name="gpt2")


@pytest.mark.parametrize("tenant", ["default", "acme", "team-1", "0_x"])
def test_a_plain_tenant_has_a_folder_of_its_name(tenant: str) -> None:
    assert tenant_folder(tenant) == tenant


@given(st.text() | st.sampled_from(["", ".", "..", "/", "a/b", "~", "ACME", "acme", "registry.sqlite3", "lock"]))
def test_any_tenant_has_a_safe_folder(tenant: str) -> None:
    folder = tenant_folder(tenant)
    assert folder == folder.lower()
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-~")
    assert 1 <= len(folder) <= 65
    assert folder not in ("lock", "first-key"), "those are files of the store's own"


@given(st.text(), st.text())
def test_two_tenants_never_share_a_folder(one: str, other: str) -> None:
    assert (tenant_folder(one) == tenant_folder(other)) == (one == other)
