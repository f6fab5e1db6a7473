"""Runs trials, several at a time, and keeps what each one came to, so that an experiment goes on where it was left.

Knows processes and files. `trials.jsonl` has one line for each result; what was tuned lies in `tuned/` beside it, and
both belong to the backbone, precision, scale and data that `lab.json` names.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

from training.backbone import default_precision, device_named
from training.checkpoint import check_same_run, sha256_of, write_whole
from training.experiments.problems import PROBLEMS
from training.experiments.trials import Trial
from training.experiments.worker import Place, start_worker, work

STEP_OF_RATES = 3.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial with its dev loss and its greedy BLEU on the dev set; `num_tuned` is how many numbers it tuned."""

    trial: Trial
    dev_loss: float
    dev_bleu: float
    num_tuned: int


class Lab:
    def __init__(self, place: Place, fingerprint: str, num_processes: int, tell: Callable[[str], None]) -> None:
        """`fingerprint` is the backbone's; `tell` hears one line for each result.

        Raises OtherRun if the folder holds results of another backbone, precision, scale or data."""
        made_with = {"backbone": fingerprint, **asdict(place.scale)}
        claim(place.out / "lab.json", made_with, computed_with(place))
        self.scale = place.scale
        self._tell = tell
        self._path = place.out / "trials.jsonl"
        self._known = dict(read_results(self._path))
        self._pool = ProcessPoolExecutor(
            num_processes, get_context("spawn"), start_worker, (place, num_processes)
        )  # its processes start with the first trial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, trials: Iterable[Trial]) -> list[Outcome]:
        """Tune each one and score it on the dev set."""
        wanted = list(trials)
        results = self._results([(trial, None) for trial in wanted])
        return [
            Outcome(trial, result["dev_loss"], result["dev_bleu"], result["num_tuned"])
            for trial, result in zip(wanted, results, strict=True)
        ]

    def test(self, trials: Iterable[Trial], split: str) -> list[float]:
        """BLEU of each one on a test split, by beam search. They have run before."""
        return [result["bleu"] for result in self._results([(trial, split) for trial in trials])]

    def search(self, trial: Trial) -> list[Outcome]:
        """The trial at its method's learning rates, and at further ones until the best by dev BLEU is not at an edge;
        the best one comes first."""
        rates = list(self.scale.learning_rates[trial.method])
        while True:
            outcomes = self.run(replace(trial, learning_rate=rate) for rate in sorted(rates))
            best = max(outcomes, key=lambda outcome: (outcome.dev_bleu, -outcome.dev_loss))
            rate = best.trial.learning_rate
            if rate not in (min(rates), max(rates)) or len(rates) >= self.scale.most_rates:
                return [best, *(outcome for outcome in outcomes if outcome is not best)]
            rates.append(round_rate(rate / STEP_OF_RATES if rate == min(rates) else rate * STEP_OF_RATES))

    def _results(self, asked: Sequence[tuple[Trial, str | None]]) -> list[dict[str, Any]]:
        missing = [ask for ask in dict.fromkeys(asked) if key_of(*ask) not in self._known]
        for future in as_completed([self._pool.submit(work, *ask) for ask in missing]):
            self._keep(future.result())
        return [self._known[key_of(*ask)] for ask in asked]

    def _keep(self, result: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        self._known[key_of(Trial(**result["trial"]), result["split"])] = result
        self._tell(describe(result))


def claim(path: Path, made_with: dict[str, Any], computed_with: dict[str, str]) -> None:
    """Adds to the file what it does not tell of `computed_with`: old ones tell none of it, and data may come later."""
    expected = json.loads(json.dumps({**made_with, **computed_with}))  # as a file gives it back: lists, not tuples
    found = {}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        check_same_run(path, {**computed_with, **found}, expected)
    if found != {**found, **expected}:
        write_whole(path, (json.dumps({**found, **expected}, indent=2) + "\n").encode())


def computed_with(place: Place) -> dict[str, str]:
    """The precision, and what is in the data of each problem that there is."""
    files = {name: [place.data / file for file in problem.files] for name, problem in PROBLEMS.items()}
    hashes = {
        f"sha256 of {name}": sha256_of(paths) for name, paths in files.items() if all(path.is_file() for path in paths)
    }
    return {"precision": default_precision(device_named(place.device)), **hashes}


def round_rate(rate: float) -> float:
    return float(f"{rate:.0e}")


def read_results(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every result by its key. Half a line at the end, of a run that was killed, is cut off."""
    if not path.exists():
        return
    whole, end, half = path.read_bytes().rpartition(b"\n")
    if half:
        os.truncate(path, len(whole + end))
    for line in whole.splitlines():
        result = json.loads(line)
        yield key_of(Trial(**result["trial"]), result["split"]), result


def key_of(trial: Trial, split: str | None) -> str:
    return json.dumps([asdict(trial), split])


def describe(result: dict[str, Any]) -> str:
    trial = Trial(**result["trial"])
    changed = [f"{name} {value}" for name, value in result["trial"].items() if value != getattr(PLAIN, name, None)]
    score = f"dev BLEU {result['dev_bleu']:.2f}" if result["split"] is None else f"BLEU {result['bleu']:.2f}"
    where = "" if result["split"] is None else f" on {result['split']}"
    return f"{trial.problem} {trial.method}: {score}{where} ({', '.join(changed[2:])})"


PLAIN = Trial("", "")
