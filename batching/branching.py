"""Gives each hypothesis of a beam search a slot that holds what its parent's held.

Knows rows and slots. Knows nothing of scores.
"""

from batching.beams import Branch
from batching.kv_cache import KVCache
from batching.sequence import Row, Sequence


def branch_rows(sequence: Sequence, branches: list[Branch], cache: KVCache) -> None:
    """Replace the sequence's rows by the branches that grow from them.

    A parent's first child stays in its slot; only further ones are copied, into slots of parents that have no child.
    """
    parents = [sequence.rows[branch.parent] for branch in branches]
    first_children = {parent: i for i, parent in reversed(list(enumerate(parents)))}
    kept = {parent.slot for parent in first_children}
    free_slots = [slot for slot in sequence.slots if slot not in kept]
    rows = []
    for i, (parent, branch) in enumerate(zip(parents, branches, strict=True)):
        slot = parent.slot
        if first_children[parent] != i:
            slot = free_slots.pop()
            cache.copy(parent.slot, slot, parent.num_cached)
        output_token_ids = [*parent.output_token_ids, branch.token.token_id]
        rows.append(Row(slot, parent.prefix, parent.num_cached, output_token_ids, [*parent.logprobs, branch.token]))
    sequence.rows = rows
