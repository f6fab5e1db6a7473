"""Our own OpenAPI document against the server that wrote it: whatever it allows or forbids is answered as it says.

schemathesis makes up the requests, right ones and wrong ones; few of them here, many in `tests/torture`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tokenizers import Tokenizer as Backend

from prefix_store.tenants import Scope, Tenant
from server.app import create_app
from server.settings import Settings
from tests.server.conftest import Guarded, guarded, prefix_file
from tests.server.fakes import EchoEngine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]
# Not asked: that every right request is taken, since what fits a context or a task is not in the document; and that
# keys are needed, since all of these requests have one (`test_access.py` asks every route without).
# What the document cannot say: a file's inside; that /live never ends; and a backup would write wherever the requests
# say.
LEFT_OUT = {"path_regex": "^/(admin/backup|live)$"}


def document(mode: str) -> schemathesis.BaseSchema:
    generation = {"mode": mode, "database": "none", "allow-extra-parameters": False}  # unknown queries are ignored
    config = schemathesis.Config.from_dict({"generation": generation})
    return schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=config).exclude(**LEFT_OUT)


def effort(max_examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


POSITIVE, NEGATIVE = document("positive"), document("negative")
QUICK = effort(4)


@contextmanager
def documented_house(directory: Path, byte_tokenizer: Backend) -> Iterator[Guarded]:
    """A server with one tenant, which has a task and a key for everything."""
    with guarded(directory, byte_tokenizer, EchoEngine(), (Tenant(name="acme"),)) as house:
        house.keys["all"] = house.server.services.store.tenants.create_key("acme", list(Scope))[1]
        house.ask("all", "PUT", "/tasks/0", content=prefix_file())
        yield house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Guarded]:
    with documented_house(tmp_path_factory.mktemp("store"), byte_tokenizer) as house:
        yield house


def expect_as_documented(case: schemathesis.Case, house: Guarded) -> None:
    case.call_and_validate(str(house.server.http.base_url), headers=house.headers("all"), checks=CHECKS)


@POSITIVE.parametrize()
@QUICK
def test_right_requests_are_answered_as_documented(case: schemathesis.Case, house: Guarded) -> None:
    expect_as_documented(case, house)


@NEGATIVE.parametrize()
@QUICK
def test_wrong_requests_are_refused_as_documented(case: schemathesis.Case, house: Guarded) -> None:
    expect_as_documented(case, house)
