"""From a request to an answer, both plain dictionaries: what runs inside a container, whatever the engine.

The executor's Modal endpoint speaks this format without importing it; ``docs/modal.md`` describes it and
``tests/integration/test_modal_endpoint.py`` holds the two together.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from modal_deployment.engine import (
    Engine,
    EngineBrokenError,
    Generation,
    GenerationFailedError,
    Piece,
    RequestRefusedError,
    Sampling,
)
from modal_deployment.plan import ModelPlan

VERSION: Final = 1
ABORT_BUDGET_S: Final = 5.0
"""Longest wait for an engine to confirm an abort; a cancelled input is killed by Modal some time after."""
_ROLES: Final = ("system", "user", "assistant")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a container runs, as it sees it from inside."""

    region: str | None
    """Modal's name of the place, such as ``us-east-1``: observed, never what was asked for."""
    cloud: str | None
    container: str | None

    @classmethod
    def observed(cls, env: Mapping[str, str]) -> "Where":
        """What Modal tells its containers."""
        return cls(
            region=env.get("MODAL_REGION"), cloud=env.get("MODAL_CLOUD_PROVIDER"), container=env.get("MODAL_TASK_ID")
        )


@dataclass(slots=True)
class _Progress:
    """An answer as far as it was generated."""

    texts: list[str]
    last: Piece | None = None
    first_token_s: float | None = None

    def take(self, piece: Piece, elapsed_s: float) -> None:
        if self.first_token_s is None:
            self.first_token_s = elapsed_s
        self.texts.append(piece.text)
        self.last = piece


async def answer(
    engine: Engine, request: object, *, model: ModelPlan, where: Where, monotonic: Callable[[], float]
) -> Document:
    """Answer one request. Cancelling the awaiting task aborts it in the engine and leaves the others alone.

    Errors are answers too (key ``error``), so that they reach the caller as data and not as exceptions that only
    this container could unpickle.

    Raises:
        EngineBrokenError: Nothing can be answered here any more.
    """
    started = monotonic()
    progress = _Progress(texts=[])
    try:
        generation = parse(request, model, engine.revision)
        await _generate(engine, generation, progress, lambda: monotonic() - started)
    except RequestRefusedError as error:
        return _placed(engine, model, where) | refusal(error.code, str(error))
    except GenerationFailedError as error:
        return _placed(engine, model, where) | failure("generation_failed", str(error))
    last = progress.last
    return _placed(engine, model, where) | {
        "text": "".join(progress.texts),
        "finish_reason": last.finish_reason if last else None,
        "usage": {
            "prompt_tokens": last.prompt_tokens if last else 0,
            "completion_tokens": last.completion_tokens if last else 0,
        },
        "timings": {
            "queue_s": last.queued_s if last else None,
            "first_token_s": progress.first_token_s,
            "total_s": monotonic() - started,
        },
    }


def refusal(code: str, message: str) -> Document:
    """The part of an answer that says why there is none, and that asking again will not help."""
    return {"error": {"error_class": "rejected", "code": code, "message": message[:2_000], "retryable": False}}


def failure(code: str, message: str) -> Document:
    """The part of an answer that says why there is none this time."""
    return {"error": {"error_class": "unavailable", "code": code, "message": message[:2_000], "retryable": True}}


def broken(message: str) -> Document:
    """The whole answer of a container that is about to be replaced."""
    return {"version": VERSION} | failure("engine_dead", message)


def parse(request: object, model: ModelPlan, revision: str | None) -> Generation:
    """Check a request. The caller says which weights it means; answering from others would be a lie.

    Raises:
        RequestRefusedError: It cannot be answered here, ever.
    """
    if not isinstance(request, Mapping) or request.get("version") != VERSION:
        raise RequestRefusedError("request_version", f"requests of version {VERSION} are understood here")
    if request.get("upstream") != model.upstream:
        raise RequestRefusedError(
            "wrong_model", f"this is {model.upstream!r}; the caller's catalog says {request.get('upstream')!r}"
        )
    wanted = request.get("revision")
    if wanted is not None and wanted != revision:
        raise RequestRefusedError("wrong_revision", f"revision {revision!r} is loaded; the caller means {wanted!r}")
    request_id = request.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise RequestRefusedError("request_id", "a request needs an id")
    return Generation(
        request_id=request_id,
        messages=_messages(request.get("messages")),
        sampling=_sampling(request.get("parameters")),
    )


def _messages(document: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(document, Sequence) or isinstance(document, str) or not document:
        raise RequestRefusedError("messages", "messages must be a non-empty list")
    messages = []
    for message in document:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise RequestRefusedError("messages", f"every message has a role of {', '.join(_ROLES)} and a text")
        messages.append({"role": role, "content": content})
    return tuple(messages)


def _sampling(document: object) -> Sampling:
    if not isinstance(document, Mapping):
        raise RequestRefusedError("parameters", "parameters must be a mapping")
    known = {field.name for field in fields(Sampling)}
    unknown = sorted(str(name) for name in document if name not in known)
    if unknown:
        raise RequestRefusedError("parameters", f"unknown parameters: {', '.join(unknown)}; known: {sorted(known)}")
    stop = document.get("stop")
    return Sampling(**{**document, "stop": None if stop is None else tuple(stop)})


async def _generate(
    engine: Engine, generation: Generation, progress: _Progress, elapsed_s: Callable[[], float]
) -> None:
    """Follow the engine to the end of the answer; tell it to stop when we leave before that."""
    finished = False
    try:
        async for piece in engine.generate(generation):
            progress.take(piece, elapsed_s())
        finished = True
    except (RequestRefusedError, GenerationFailedError, EngineBrokenError):
        finished = True
        raise
    finally:
        if not finished:
            await _abort(engine, generation.request_id)


async def _abort(engine: Engine, request_id: str) -> None:
    """Abort at the engine, although the task that asks for it is being cancelled."""
    aborting = asyncio.ensure_future(engine.abort(request_id))
    await asyncio.wait({aborting}, timeout=ABORT_BUDGET_S)
    aborting.cancel()


def _placed(engine: Engine, model: ModelPlan, where: Where) -> Document:
    """What every answer says about who answered."""
    return {
        "version": VERSION,
        "model": model.name,
        "upstream": model.upstream,
        "revision": engine.revision,
        "provider": "modal",
        "region": where.region,
        "cloud": where.cloud,
        "container": where.container,
        "versions": dict(engine.versions),
    }
