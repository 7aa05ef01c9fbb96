"""From an outcome to the fact: receipt, hashes, and text that every database can store. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from executor.error_codes import ErrorCode
from executor.execution import Execution
from executor.outcome import Ended
from parallax.contracts.messages import ExecutionFinished
from parallax.contracts.outcomes import Attempt, ChatMessage, ErrorInfo, Output, Receipt, Timings
from parallax.text import clean, storable

MAX_TEXT: Final = 2_000
MAX_LABEL: Final = 300
"""Names that a provider reports: models, regions, versions."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes the facts."""

    executor_id: str
    provider: str
    versions: Mapping[str, str]


def prompt_sha256(messages: Sequence[ChatMessage]) -> str:
    """SHA-256 of the prompt: of the JSON array of ``[role, content]`` pairs, in UTF-8 without spaces."""
    pairs = [[message.role, message.content] for message in messages]
    document = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return _sha256(document)


def build_fact(execution: Execution, ended: Ended, author: Author) -> ExecutionFinished:
    """The observed fact of an execution."""
    task = execution.task
    output, replaced = _output(ended)
    attempts = tuple(_storable(attempt) for attempt in execution.attempts)
    call_id = _label(ended.trace.provider_call_id, MAX_TEXT) if ended.trace else None
    return ExecutionFinished(
        execution_id=task.execution_id,
        batch=task.batch,
        batch_size=task.batch_size,
        question_id=task.question_id,
        model_id=task.model_id,
        model=task.model,
        region=task.region,
        sample=task.sample,
        status=ended.status,
        observed=True,
        provider_id=call_id,
        messages=task.messages,
        output=output,
        finish_reason=_label(ended.answer.finish_reason) if ended.answer else None,
        usage=ended.answer.usage if ended.answer else None,
        receipt=_receipt(execution, ended, author, replaced),
        error=_storable_error(ended.error),
        attempts=attempts,
        started_at=attempts[0].started_at if attempts else None,
        completed_at=ended.ended_at,
    )


def broken_fact(execution: Execution, ended: Ended, error: Exception) -> ExecutionFinished:
    """What is said when the fact cannot be built: an execution never ends without one."""
    info = ErrorInfo(
        error_class="internal", code=ErrorCode.FACT_NOT_BUILT, message=storable(repr(error))[:MAX_TEXT], retryable=False
    )
    return ExecutionFinished.failed(execution.task, info, observed=True, completed_at=ended.ended_at)


def _output(ended: Ended) -> tuple[Output | None, int]:
    if ended.answer is None:
        return None, 0
    text, replaced = clean(ended.answer.text)
    refusal = ended.answer.refusal
    if refusal is not None:
        refusal, more = clean(refusal)
        replaced += more
    return Output(text=text, refusal=refusal), replaced


def _receipt(execution: Execution, ended: Ended, author: Author, replaced: int) -> Receipt | None:
    """The receipt; ``None`` for a model that this executor does not know."""
    task, model, answer, trace = execution.task, execution.model, ended.answer, ended.trace
    if model is None:
        return None
    first = execution.attempts[0].started_at if execution.attempts else None
    timings = Timings(
        queue_s=max(0.0, (first - task.published_at).total_seconds()) if first else None,
        first_byte_s=ended.first_byte_s,
        total_s=ended.total_s,
        provider=_storable_timings(answer.provider_timings) if answer else {},
    )
    reported = {storable(key): storable(value)[:MAX_LABEL] for key, value in answer.versions.items()} if answer else {}
    return Receipt(
        prompt_sha256=prompt_sha256(task.messages),
        output_sha256=_sha256(answer.text) if answer else None,
        model=task.model,
        model_requested=model.upstream,
        model_reported=_label(answer.model_reported) if answer else None,
        model_revision=model.revision,
        region_claimed=task.region,
        region_observed=_label(trace.region_observed) if trace else None,
        provider=author.provider,
        executor_id=author.executor_id,
        parameters=task.parameters,
        timings=timings,
        versions={**author.versions, **reported},
        replaced_characters=replaced,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _label(text: str | None, longest: int = MAX_LABEL) -> str | None:
    return storable(text)[:longest] if text else None


def _storable_timings(timings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The provider's timings, or nothing when they hold text or numbers that cannot be stored."""
    try:
        text = json.dumps(timings, ensure_ascii=False, allow_nan=False).replace("\\u0000", "\x00")
    except ValueError:
        return {}
    return dict(timings) if storable(text) == text else {}


def _storable_error(error: ErrorInfo | None) -> ErrorInfo | None:
    return error and error.model_copy(update={"message": storable(error.message)})


def _storable(attempt: Attempt) -> Attempt:
    """The attempt, which may come from another executor's message."""
    kept = {"error": _storable_error(attempt.error), "provider_call_id": _label(attempt.provider_call_id, MAX_TEXT)}
    return attempt.model_copy(update=kept)
