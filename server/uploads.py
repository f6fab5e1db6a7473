"""From uploaded bytes to a served version: parse, let the backbone compile what it must, try it out, publish.

Knows the store's formats and the engine's `Compile`. Knows nothing of HTTP.
"""

import asyncio
import secrets
from dataclasses import dataclass

from batching.types import Compile, Compiled, Request, SamplingParams, StepOutput
from prefix_store.formats import dump, max_file_bytes, parse
from prefix_store.prefix import Prefix, PromptEmbeddings
from prefix_store.tasks import Published
from server.caller import Caller
from server.engine_messages import Letter
from server.errors import GenerationFailed, InvalidValue
from server.generation import tokenize
from server.rows import Row
from server.running import Patience
from server.services import Services


@dataclass(frozen=True, slots=True)
class Conditions:
    """`if_match`: the sha256 that the served version must have, or `*`; `if_none_match`: there must be no such task."""

    if_match: str | None = None
    if_none_match: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An upload that has been read and compiled, and is still to be tried out. `upload` is kept byte for byte."""

    upload: bytes
    native: bytes
    prefix: Prefix
    kind: str
    backbone_checked: bool


def max_upload_bytes(services: Services) -> int:
    """No file that is a prefix of this backbone is larger."""
    return min(services.settings.max_upload_bytes, max_file_bytes(services.backbone.spec.shape))


async def read_file(services: Services, caller: Caller, upload: bytes) -> Candidate:
    """A safetensors file of ours or PEFT's. Raises `InvalidPrefix`; `InvalidValue` where it compiles to
    numbers that are not finite, `GenerationFailed` where it cannot be compiled."""
    spec = services.backbone.spec
    parsed = await asyncio.to_thread(parse, upload, spec.shape, spec.fingerprint)
    backbone_checked = "backbone" in parsed.metadata
    if isinstance(parsed, PromptEmbeddings):
        work = Compile(
            secrets.token_hex(16), caller.tenant, embeddings=parsed.embeddings, weight=caller.principal.weight
        )
        return await _compile(services, caller, work, upload, parsed.kind, backbone_checked)
    native = (
        upload if parsed.kind == "prefix" else await asyncio.to_thread(dump, parsed.past_key_values, parsed.metadata)
    )
    return Candidate(upload, native, parsed, parsed.kind, backbone_checked)


async def read_text(services: Services, caller: Caller, upload: bytes, text: str) -> Candidate:
    """A fixed text; `upload` is the JSON body that held it. Raises `RequestError` where it fills the context."""
    token_ids = await tokenize(services, text)
    work = Compile(secrets.token_hex(16), caller.tenant, token_ids=token_ids, weight=caller.principal.weight)
    return await _compile(services, caller, work, upload, "text", True)


async def try_out(services: Services, caller: Caller, candidate: Candidate) -> None:
    """One token after `<|endoftext|>`, as an ordinary request. Raises `InvalidValue` where its numbers are
    not finite, `GenerationFailed` where the row fails otherwise.

    Finite numbers are not enough: a prefix of finite numbers can make attention overflow.
    """
    prompt = (services.backbone.eos_token_id,)
    params = SamplingParams(max_new_tokens=1)
    request = Request(
        secrets.token_hex(16), caller.tenant, prompt, candidate.prefix, params, weight=caller.principal.weight
    )
    services.engine.check(request)
    row = Row(services.tokenizer, ())

    def read(output: Letter) -> bool:
        assert isinstance(output, StepOutput), "an answer to Compile in a request's mailbox"
        if output.not_finite_row is not None:
            raise InvalidValue(f"the prefix does not run on this backbone: {output.error}")
        row.read(output)  # what else has failed is not the file's fault
        return row.finish_reason is not None

    with services.engine.submitted(request, read=read, max_queued=caller.principal.limits.max_queued) as mailbox:
        patience = Patience(services, mailbox)
        while row.finish_reason is None:
            await patience.wait()


async def publish(
    services: Services, caller: Caller, task_id: str, candidate: Candidate, conditions: Conditions, serve: bool
) -> Published:
    """Keep it durably and, if it is to `serve`, do so from now on."""
    published = await services.write(
        services.store.publish,
        caller.tenant,
        task_id,
        upload=candidate.upload,
        native=candidate.native,
        kind=candidate.kind,
        num_virtual_tokens=candidate.prefix.num_virtual_tokens,
        backbone_checked=candidate.backbone_checked,
        serve=serve,
        if_match=conditions.if_match,
        if_none_match=conditions.if_none_match,
    )
    services.metrics.uploads.labels(candidate.kind).inc()
    return published


async def _compile(
    services: Services, caller: Caller, work: Compile, upload: bytes, kind: str, backbone_checked: bool
) -> Candidate:
    services.engine.check(work)
    compiled: Compiled | None = None

    def read(answer: Letter) -> bool:
        nonlocal compiled
        compiled = answer if isinstance(answer, Compiled) else None  # else it has only got its slot
        return compiled is not None

    with services.engine.submitted(work, read=read, max_queued=caller.principal.limits.max_queued) as mailbox:
        patience = Patience(services, mailbox)
        while compiled is None:
            await patience.wait()
    if compiled.past_key_values is None:
        error = GenerationFailed if compiled.is_finite else InvalidValue
        raise error(f"the backbone could not compile it: {compiled.error}")
    spec = services.backbone.spec
    metadata = {"backbone": spec.fingerprint, "kind": kind}
    native = await asyncio.to_thread(dump, compiled.past_key_values, metadata)
    prefix = await asyncio.to_thread(parse, native, spec.shape, spec.fingerprint)
    assert isinstance(prefix, Prefix), "the native file is not read as native"
    return Candidate(upload, native, prefix, kind, backbone_checked)
