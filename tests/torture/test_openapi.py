"""Five hundred requests of each mode to each operation that our own OpenAPI document has, by schemathesis."""

from collections.abc import Iterator

import pytest
import schemathesis
from tokenizers import Tokenizer as Backend

from tests.server.conftest import Guarded
from tests.server.test_openapi import NEGATIVE, POSITIVE, documented_house, effort, expect_as_documented
from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

LONG = effort(500)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Guarded]:
    with documented_house(tmp_path_factory.mktemp("store"), byte_tokenizer) as house:
        yield house


def expect(case: schemathesis.Case, house: Guarded, report: Report) -> None:
    try:
        expect_as_documented(case, house)
    except BaseException:
        count(report, schemathesis_cases=1, schemathesis_failures=1)
        raise
    count(report, schemathesis_cases=1, schemathesis_failures=0)


@POSITIVE.parametrize()
@LONG
def test_right_requests_are_answered_as_documented(case: schemathesis.Case, house: Guarded, report: Report) -> None:
    expect(case, house, report)


@NEGATIVE.parametrize()
@LONG
def test_wrong_requests_are_refused_as_documented(case: schemathesis.Case, house: Guarded, report: Report) -> None:
    expect(case, house, report)
