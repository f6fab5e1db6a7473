"""Compiled grammars, each tenant's own. A new one is tried in another process first, then compiled in a thread.

Knows when and where grammars are compiled. Knows nothing of what is in them, or of rows.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from server.constraints import CompiledGrammar
from server.errors import DeadlinePassed, Unavailable
from server.grammar_compiler import Grammar, GrammarCompiler, GrammarError

MAX_KEPT = 64
MAX_KEPT_OF_TENANT = 8
NUM_WORKERS = 4

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

    A tenant's grammars are compiled one at a time: whatever it sends takes one place in the queue. What was refused is
    remembered as well as what was compiled, for the same tenant only.
    """

    def __init__(self, tokenizer: str, eos_token_id: int, max_wait: float) -> None:
        """`tokenizer` is the text of a tokenizer.json; `max_wait` how many seconds one compilation may take in all."""
        self._max_wait = max_wait
        self._make_compiler = partial(GrammarCompiler, tokenizer, eos_token_id)
        self._compiler: GrammarCompiler | None = None  # made with the first grammar: it takes half a second for GPT-2
        self._trial = GrammarTrial(tokenizer, eos_token_id)
        self._compiling = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of tenants that compile now
        self._kept: OrderedDict[tuple[str, Grammar], CompiledGrammar | GrammarError] = OrderedDict()
        self._workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="grammar")

    async def compile(self, tenant: str, grammar: Grammar) -> CompiledGrammar:
        """Raises `GrammarError`, and `DeadlinePassed` where its turn did not come in time."""
        result = self._kept.get((tenant, grammar))
        if result is not None:
            self._kept.move_to_end((tenant, grammar))
        else:
            try:
                async with asyncio.timeout(self._max_wait):
                    result = await self._compile_in_turn(tenant, grammar)
            except TimeoutError:
                raise DeadlinePassed(f"the grammar was not compiled within {self._max_wait:g} s; try again") from None
        if isinstance(result, GrammarError):
            raise GrammarError(str(result))
        return result

    async def close(self) -> None:
        """After the engine has stopped: no row may need a worker any more."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        await self._trial.close()

    async def _compile_in_turn(self, tenant: str, grammar: Grammar) -> CompiledGrammar | GrammarError:
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        async with turn:
            result = self._kept.get((tenant, grammar))  # somebody of the same tenant may have asked for it meanwhile
            if result is None:
                async with self._compiling:
                    result = await self._compile(grammar)
                self._keep(tenant, grammar, result)
            return result

    async def _compile(self, grammar: Grammar) -> CompiledGrammar | GrammarError:
        try:
            if self._compiler is None:
                self._compiler = await asyncio.to_thread(self._make_compiler)
            compiler = self._compiler
            await self._trial.check(grammar)
            matcher = await asyncio.to_thread(compiler.compile, grammar)
        except GrammarError as error:
            return error
        return CompiledGrammar(matcher, self._workers)

    def _keep(self, tenant: str, grammar: Grammar, result: CompiledGrammar | GrammarError) -> None:
        """As the latest; beyond the limits the tenant's own oldest is forgotten, then everybody's."""
        self._kept[tenant, grammar] = result
        own = [key for key in self._kept if key[0] == tenant]
        if len(own) > MAX_KEPT_OF_TENANT:
            del self._kept[own[0]]
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
