"""Who runs each command that a document shows: `make test-docs` word for word, another target, or nobody, and why.

The first rule that fits a command holds. Knows the commands by their words. Runs nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from tests.docs.commands import Command


class By(Enum):
    HERE = "make test-docs, as it stands"
    TARGET = "a target, in the words of the tool that it has"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Rule:
    """`page` and `command` are searched for in a command's; `why` names the target, or says why there is none."""

    page: str
    command: str
    by: By
    why: str = "make test-docs"

    def fits(self, command: Command) -> bool:
        return bool(re.search(self.page, command.page) and re.search(self.command, command.text, re.DOTALL))


ANY = ""
RULES = (
    Rule(ANY, r"^make |make torture", By.TARGET, "it is a target"),
    Rule(ANY, r"^pip install .*metrics", By.NOBODY, "Java"),
    Rule(ANY, r"^pip install", By.TARGET, "make venv, from the checkout"),
    Rule("README", r"^docker build", By.TARGET, "make image-test"),
    Rule("README", r"^docker run .*/models", By.NOBODY, "a checkpoint of GPT-2's"),
    Rule("README|security", r"^docker run", By.TARGET, "make image-test"),
    Rule("operate", r"^docker compose (up|exec polyprefix cat)", By.TARGET, "make image-test"),
    Rule("operate", r"docker compose exec|--api-key …", By.NOBODY, "a server in a container, with a key"),
    Rule("operate", r"helm|kubectl", By.NOBODY, "a cluster; `make check-deploy` renders and checks the chart"),
    Rule("operate", r"^OTEL_", By.NOBODY, "a collector of traces"),
    Rule("fleet", r"docker compose", By.NOBODY, "others' images; `make test` checks the file"),
    Rule("fleet", r"helm", By.NOBODY, "a cluster; `make check-deploy` renders and checks the chart"),
    Rule("fleet", ANY, By.TARGET, "make test-fleet"),
    Rule("performance", r"benchmarks.* --data", By.NOBODY, "the challenges' data"),
    Rule("performance|scaling", r"benchmarks", By.TARGET, "make bench BENCH=…"),
    Rule("reliability", r"-m torture", By.TARGET, "make torture"),
    Rule("training", r"experiment .*cuda", By.NOBODY, "a GPU"),
    Rule("training", r"experiment", By.NOBODY, "over an hour"),
    Rule("training", r"(train|train-many|evaluate) ", By.NOBODY, "the challenges' data, and a GPU"),
    Rule(ANY, r"^(polyprefix|curl|cut|printf|export|python) ?", By.HERE),
)


def rule_of(command: Command) -> Rule:
    fitting = [rule for rule in RULES if rule.fits(command)]
    assert fitting, f"{command}: who runs it? See tests/docs/targets.py"
    return fitting[0]


def those(commands: Iterable[Command], by: By) -> list[Command]:
    return [command for command in commands if rule_of(command).by is by]
