"""Whom a request asks: one task, the bare backbone, or a mix of several, each in the version that this request gets.

Knows names, versions and their settings. Knows nothing of prompts or rows.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefix_store.errors import InvalidTaskId
from prefix_store.names import RESERVED_TASK_IDS, check_task_id
from prefix_store.prefix import Prefix
from prefix_store.tasks import Served, TaskConfig
from server.caller import Caller
from server.errors import InvalidValue, NoSuchTask
from server.schemas import TaskMix
from server.services import Services


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """`served` None is the bare backbone. `weight` is relative to the other parts'."""

    served: Served | None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """As it is told to whoever reads what was used."""
        return "base" if self.served is None else self.served.task_id

    @property
    def prefix(self) -> Prefix | None:
        return None if self.served is None else self.served.prefix


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One part, or the parts of a mix, each of which has a row of its own."""

    parts: tuple[Part, ...]

    @property
    def is_mix(self) -> bool:
        return len(self.parts) > 1

    @property
    def served(self) -> Served | None:
        """The one task; None for the bare backbone and for a mix."""
        return None if self.is_mix else self.parts[0].served

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)  # no task's own name has a plus

    @property
    def num_prefix_tokens(self) -> int:
        """In a mix, of the longest prefix."""
        return max(0 if part.prefix is None else part.prefix.num_virtual_tokens for part in self.parts)

    @property
    def defaults(self) -> Mapping[str, object]:
        """The task's parameters; in a mix those on which all its tasks agree."""
        first, *others = [config.parameters for config in self._configs] or [{}]
        return {
            name: value
            for name, value in first.items()
            if all(name in other and other[name] == value for other in others)
        }

    @property
    def prompt_template(self) -> str | None:
        """Raises `InvalidValue` where a mix's tasks have different ones: its rows read the same prompt."""
        templates = {config.prompt_template for config in self._configs} or {None}
        if len(templates) > 1:
            raise InvalidValue("the tasks of this mix have different prompt templates; expected the same", "task_id")
        return templates.pop()

    @property
    def _configs(self) -> list[TaskConfig]:
        return [part.served.config for part in self.parts if part.served is not None]


async def find_asked(services: Services, caller: Caller, *named: str | TaskMix | None) -> Asked:
    """The one task or mix that is named, in whichever dialect."""
    names = [each for each in named if not isinstance(each, TaskMix)]
    mixes = [each for each in named if isinstance(each, TaskMix)]
    if not mixes:
        return Asked((Part(await _find_served(services, caller, names)),))
    if any(names):
        raise InvalidValue("a mix names its tasks itself; leave out the path's task and adapter_id", "task_id")
    weights = mixes[0].mix
    return Asked(
        tuple([Part(await _find_served(services, caller, [name]), weight) for name, weight in weights.items()])
    )


def choose_task(names: Sequence[str | None], backbone_name: str) -> str | None:
    """The one task that is named; None is the bare backbone.

    Raises `InvalidValue` where two differ, `NoSuchTask` where the name can be no task's.
    """
    bare = {*RESERVED_TASK_IDS, backbone_name}
    named = {None if name in bare else name for name in names if name}
    if len(named) > 1:
        raise InvalidValue("the path, task_id and adapter_id name different tasks; name one")
    task_id = next(iter(named), None)
    if task_id is not None:
        try:
            check_task_id(task_id)
        except InvalidTaskId as error:
            raise NoSuchTask(str(error)) from None
    return task_id


async def _find_served(services: Services, caller: Caller, names: Sequence[str | None]) -> Served | None:
    """The version that this request of the task's gets, loaded off the event loop where it is not in memory."""
    task_id = choose_task(names, services.backbone.name)
    if task_id is None:
        return None
    draw = random.random()  # once: were it drawn anew to load it, a version in memory would get more than its share
    cached = services.store.cached(caller.tenant, task_id, draw)
    return cached or await services.loads.get(caller.tenant, task_id, draw)
