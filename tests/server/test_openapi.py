"""Our own OpenAPI document against the server that wrote it: whatever it allows or forbids is answered as it says.

schemathesis makes up the requests, right ones and wrong ones; few of them in every run, many in the long form.
"""

from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
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
    negative_data_rejection,
]
# What the document cannot say: a file's inside; and a backup would write wherever the requests say.
LEFT_OUT = {"path_regex": "^/admin/backup$"}


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
QUICK, LONG = effort(4), effort(500)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Guarded]:
    tenant = Tenant(name="acme")
    with guarded(tmp_path_factory.mktemp("store"), byte_tokenizer, EchoEngine(), (tenant,)) as house:
        house.keys["all"] = house.server.services.store.tenants.create_key("acme", list(Scope))[1]
        house.ask("all", "PUT", "/tasks/0", content=prefix_file())
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


@pytest.mark.torture
@pytest.mark.timeout(3600)
@POSITIVE.parametrize()
@LONG
def test_right_requests_are_answered_as_documented_for_long(case: schemathesis.Case, house: Guarded) -> None:
    expect_as_documented(case, house)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@NEGATIVE.parametrize()
@LONG
def test_wrong_requests_are_refused_as_documented_for_long(case: schemathesis.Case, house: Guarded) -> None:
    expect_as_documented(case, house)
