"""The pipes between the comparison and its peers, with the peer that runs in our own environment."""

from pathlib import Path

import pytest

from benchmarks.peers.child import Peer, PeerError, running
from tests.batching.support import make_model

PROMPTS = [[1, 2, 3], [4, 5, 6]]


def test_a_peer_answers_as_often_as_it_is_asked(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with running(Peer("transformers_peer"), tmp_path, num_threads=1) as child:
        speeds = [child.tokens_per_second(PROMPTS, num_new_tokens=4) for _ in range(2)]
    assert min(speeds) > 0


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(PeerError, match=r"No module named benchmarks\.peers\.nobody"),
        running(Peer("nobody"), tmp_path, num_threads=1),
    ):
        pass


def test_a_peer_that_fails_at_its_work_says_why(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with (
        running(Peer("transformers_peer"), tmp_path, num_threads=1) as child,
        pytest.raises(PeerError, match="expected sequence of length 3"),
    ):
        child.tokens_per_second([[1, 2, 3], [4]], num_new_tokens=4)
