"""Whether grammars can be followed, each tenant's own: a new one is tried in a process of its own first.

Knows when and where grammars are tried. Knows nothing of what is in them, or of rows.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from weakref import WeakValueDictionary

from server.errors import DeadlinePassed, Unavailable
from server.grammar_compiler import Grammar, GrammarError
from server.kept_grammars import KeptGrammars, OwnGrammar

# By the signal that ended the process in which a grammar was tried.
DEATHS = {
    -signal.SIGPROF: "it takes too long to compile; expected a simpler one",
    -signal.SIGSEGV: "it is nested too deeply; expected a flatter one",
    -signal.SIGABRT: "it takes too much memory; expected a smaller one",
}


class GrammarTrial:
    """The process in which grammars are tried, one after another; started when there is none."""

    def __init__(self, tokenizer: str, eos_token_id: int) -> None:
        self._tokenizer = {"tokenizer": tokenizer, "eos_token_id": eos_token_id}
        self._process: asyncio.subprocess.Process | None = None

    async def check(self, grammar: Grammar) -> None:
        """Raise `GrammarError` where a grammar is wrong. Who stops waiting ends the process, busy as it may be."""
        process = await self._started()
        try:
            answer = await _ask(process, asdict(grammar))
            error = json.loads(answer)["error"] if answer else _epitaph(await process.wait())
        except BaseException:
            await self.close()
            raise
        if error is not None:
            raise GrammarError(error)

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "server.grammar_trial"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the server
            )
            _write(self._process, self._tokenizer)
        return self._process


async def _ask(process: asyncio.subprocess.Process, grammar: Mapping[str, Any]) -> bytes:
    """The answer's line; nothing where the process ended instead."""
    assert process.stdout is not None
    _write(process, grammar)
    return await process.stdout.readline()


def _write(process: asyncio.subprocess.Process, values: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(values).encode() + b"\n")


def _epitaph(status: int) -> str:
    """What a grammar did to the process. Raises `Unavailable` where it was not the grammar's doing."""
    if status not in DEATHS:
        raise Unavailable(f"the process in which grammars are tried ended with status {status}; try again")
    return DEATHS[status]


class Grammars:
    """Made and used on the event loop.

    A tenant's grammars are tried one at a time: whatever it sends takes one place in the queue. What was refused is
    remembered as well as what was not, for the same tenant only.
    """

    def __init__(self, tokenizer: str, eos_token_id: int, max_wait: float) -> None:
        """`tokenizer` is the text of a tokenizer.json; `max_wait` how many seconds one trial may take in all."""
        self._max_wait = max_wait
        self._trial = GrammarTrial(tokenizer, eos_token_id)
        self._trying = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of tenants that have one tried
        self._kept: KeptGrammars[GrammarError | None] = KeptGrammars()

    async def check(self, own: OwnGrammar) -> None:
        """Raises `GrammarError`, and `DeadlinePassed` where its turn did not come in time."""
        if own not in self._kept:
            try:
                async with asyncio.timeout(self._max_wait):
                    await self._try_in_turn(own)
            except TimeoutError:
                raise DeadlinePassed(f"the grammar was not compiled within {self._max_wait:g} s; try again") from None
        error = self._kept.get(own)
        if error is not None:
            raise GrammarError(str(error))

    async def close(self) -> None:
        await self._trial.close()

    async def _try_in_turn(self, own: OwnGrammar) -> None:
        turn = self._turns.setdefault(own.tenant, asyncio.Lock())
        async with turn:
            if own in self._kept:
                return  # somebody of the same tenant asked for it meanwhile
            async with self._trying:
                try:
                    error = None
                    await self._trial.check(own.grammar)
                except GrammarError as found:
                    error = found
            self._kept.keep(own, error)
