"""A client that leaves frees its slot within two steps, in whatever phase its request is."""

from pathlib import Path

from tokenizers import Tokenizer as Backend

from tests.server.disconnects import held_server, leave_many


def test_clients_that_leave_leave_nothing_behind(tmp_path: Path, tiny_model: Path, byte_tokenizer: Backend) -> None:
    with held_server(tmp_path, tiny_model, byte_tokenizer) as server:
        assert leave_many(server, num_clients=12, seed=1) == []
        server.engine.before_step.open()
        assert len(server.generate("x", max_new_tokens=3)["generated_text"]) > 0
