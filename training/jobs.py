"""Reads `tasks.toml`, the list of tasks that `polyprefix train-many` trains together.

Knows the file's keys, and refuses others. Knows nothing of training.
"""

import tomllib
from pathlib import Path
from typing import Any

from training.errors import BadSettings
from training.examples import guess_format
from training.run import Job
from training.settings import PRESETS, check_dev_settings, make_settings, with_given

TOP_KEYS = {"out", "defaults", "tasks"}
TEXT_KEYS = {"data", "valid", "format", "preset"}


def read_jobs(path: Path) -> list[Job]:
    """Paths in the file are relative to its folder. Raises `BadSettings`, which names the task and the key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadSettings(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(content) - TOP_KEYS)
    tasks = content.get("tasks")
    if unknown or not isinstance(tasks, dict) or not tasks:
        raise BadSettings(f"{path}: expected out, [defaults] and at least one [tasks.NAME]; found {sorted(content)}")
    out = content.get("out", "prefixes")
    if not isinstance(out, str):
        raise BadSettings(f"{path}: out is {out!r}; expected a text")
    folder = path.parent / out
    defaults = content.get("defaults", {})
    for name, keys in {"[defaults]": defaults, **{f"task {task_id}": own for task_id, own in tasks.items()}}.items():
        if not isinstance(keys, dict):
            raise BadSettings(f"{name}: expected a table of keys, found {keys!r}")
    return [make_job(task_id, with_given(defaults, own), path.parent, folder) for task_id, own in tasks.items()]


def make_job(task_id: str, keys: dict[str, Any], base: Path, folder: Path) -> Job:
    """One task from its keys: `data`, `valid`, `format`, `preset`, and any setting by its name."""
    if "data" not in keys:
        raise BadSettings(f"task {task_id}: data is missing; expected the path of its training examples")
    for name in sorted(TEXT_KEYS & keys.keys()):
        if not isinstance(keys[name], str):
            raise BadSettings(f"task {task_id}: {name} is {keys[name]!r}; expected a text")
    data = base / keys["data"]
    preset = keys.get("preset")
    given = {name: value for name, value in keys.items() if name not in TEXT_KEYS}
    try:
        settings = make_settings(preset, given)
        check_dev_settings(given, keys.get("valid"))
    except BadSettings as error:
        raise BadSettings(f"task {task_id}: {error}") from error
    return Job(
        task_id,
        data,
        keys.get("format") or choose_format(preset, data),
        base / keys["valid"] if "valid" in keys else None,
        folder / f"{task_id}.safetensors",
        settings,
    )


def choose_format(preset: str | None, data: Path) -> str:
    """The format that goes with a preset, if the file can be one; else what the file's name stands for."""
    suffixes = {"e2e": (".csv",), "webnlg": (".jsonl", ".json", ".xml"), "dart": (".json", ".xml")}
    assert set(suffixes) < set(PRESETS)
    if preset in suffixes and not {*suffixes[preset]}.isdisjoint(data.suffixes):
        return preset
    return guess_format(data)
