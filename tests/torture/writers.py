"""Somebody who uploads, replaces, rolls back and deletes one task over HTTP, and remembers what was acknowledged.

Knows the task routes. Knows nothing of how the server ends.
"""

import hashlib
import random
from dataclasses import dataclass, replace

import httpx
from safetensors.torch import load

from prefix_store.formats import dump
from tests.torture.processes import ServerProcess, prefix_file

KEYS_AND_VALUES = load(prefix_file("weather_fields"))["past_key_values"]


@dataclass(frozen=True, slots=True)
class State:
    """The sha256 of every version that was uploaded, and which one is served; 0 where there is no such task."""

    served_version: int = 0
    versions: tuple[str, ...] = ()


class Writer:
    def __init__(self, task_id: str, key: str, seed: int) -> None:
        self._task_id = task_id
        self._key = key
        self._chance = random.Random(seed)
        self._num_files = 0
        self._acknowledged = State()
        self._begun: State | None = None  # what there will be if the change in flight has been made

    def write_until_killed(self, server: ServerProcess) -> int:
        """One change after the other; how many were acknowledged before the server was gone."""
        num_acknowledged = 0
        with server.client(self._key) as http:
            while True:
                change, self._begun = self._choose()
                try:
                    answer = http.send(http.build_request(*change[:2], **change[2]))
                except httpx.TransportError:
                    return num_acknowledged
                assert answer.is_success, answer.text
                self._acknowledged, self._begun = self._begun, None
                num_acknowledged += 1

    def find_lost(self, server: ServerProcess) -> list[str]:
        """What of the acknowledged is not there or not served; the change in flight may be made or not, whole."""
        with server.client(self._key) as http:
            found = self._observe(http)
            is_served = not found.versions or self._generates(http)
        allowed = [self._acknowledged, *([] if self._begun is None else [self._begun])]
        lost = [] if found in allowed else [f"{self._task_id}: {found}, expected one of {allowed}"]
        lost += [] if is_served else [f"{self._task_id}: it does not generate"]
        self._acknowledged, self._begun = found, None
        return lost

    def _choose(self) -> tuple[tuple[str, str, dict[str, object]], State]:
        """The next change as a request, and what there is once it is made."""
        path, now = f"/tasks/{self._task_id}", self._acknowledged
        kind = self._chance.choices(("upload", "roll back", "delete"), (6, 2, 1))[0]
        if kind == "delete" and now.versions:
            return ("DELETE", path, {}), State()
        if kind == "roll back" and now.versions:
            version = self._chance.randint(1, len(now.versions))
            return ("PATCH", path, {"json": {"version": version}}), replace(now, served_version=version)
        self._num_files += 1
        file = dump(KEYS_AND_VALUES, {"file": str(self._num_files)})
        versions = (*now.versions, hashlib.sha256(file).hexdigest())
        return ("PUT", path, {"content": file}), State(len(versions), versions)

    def _observe(self, http: httpx.Client) -> State:
        """What the server has, each version read whole."""
        path = f"/tasks/{self._task_id}"
        answer = http.get(path)
        if answer.status_code == 404:
            return State()
        task = answer.raise_for_status().json()
        files = [
            http.get(f"{path}/prefix", params={"version": version["version"]}).raise_for_status().content
            for version in task["versions"]
        ]
        return State(task["version"], tuple(hashlib.sha256(file).hexdigest() for file in files))

    def _generates(self, http: httpx.Client) -> bool:
        body = {"task_id": self._task_id, "inputs": "the", "parameters": {"max_new_tokens": 1}}
        return http.post("/generate", json=body).status_code == 200
