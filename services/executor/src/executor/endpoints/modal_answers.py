"""Reads what a Modal class answered. The app is ours, its text is a model's: nothing of it is taken on trust."""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue

from executor.endpoints.answers import MAX_TEXT_CHARS, MAX_TIMINGS_CHARS, MAX_TOKENS
from executor.endpoints.port import EndpointError, ModelAnswer
from executor.error_codes import ErrorCode
from parallax.contracts.outcomes import ErrorInfo, Usage

MAX_NAME_CHARS: Final = 200
MAX_VERSIONS: Final = 20


def remote_error(document: object) -> ErrorInfo | None:
    """The error that the class answered with, if that is what the answer is.

    Raises:
        EndpointError: The answer is not a document, or the error in it is not one.
    """
    if not isinstance(document, Mapping):
        raise _malformed(f"the class answered with {type(document).__name__}, not with a document")
    error = document.get("error")
    if error is None:
        return None
    if not isinstance(error, Mapping):
        raise _malformed("the error in the answer is not a document")
    try:
        return ErrorInfo.model_validate(dict(error), extra="ignore")
    except ValueError as problem:
        raise _malformed(f"the error in the answer is not one: {str(problem)[:500]}") from problem


def model_answer(document: object) -> ModelAnswer:
    """The answer in a document without an error.

    Raises:
        EndpointError: There is none, or it outgrows every bound.
    """
    assert isinstance(document, Mapping)
    text = document.get("text")
    if not isinstance(text, str):
        raise _malformed("the answer holds no text")
    if len(text) > MAX_TEXT_CHARS:
        raise _malformed(f"the answer is longer than {MAX_TEXT_CHARS} characters")
    refusal = document.get("refusal")
    return ModelAnswer(
        text=text,
        refusal=refusal[: MAX_TEXT_CHARS - len(text)] or None if isinstance(refusal, str) else None,
        finish_reason=_name(document, "finish_reason"),
        usage=_usage(document.get("usage")),
        model_reported=_name(document, "upstream"),
        provider_timings=_timings(document),
        versions=_versions(document),
    )


def _malformed(message: str) -> EndpointError:
    info = ErrorInfo(error_class="protocol", code=ErrorCode.MALFORMED_ANSWER, message=message, retryable=True)
    return EndpointError(info)


def _name(document: Mapping[Any, Any], key: str) -> str | None:
    value = document.get(key)
    return value[:MAX_NAME_CHARS] if isinstance(value, str) and value else None


def _usage(value: object) -> Usage | None:
    """The token counts, or ``None`` where they make no sense: an answer is not lost over its bill."""
    if not isinstance(value, Mapping):
        return None
    counts = [value.get("prompt_tokens"), value.get("completion_tokens")]
    if any(type(count) is not int or not 0 <= count < MAX_TOKENS for count in counts):
        return None
    return Usage(prompt_tokens=value["prompt_tokens"], completion_tokens=value["completion_tokens"])


def _timings(document: Mapping[Any, Any]) -> dict[str, JsonValue]:
    """Timings, cloud and container as the class reports them; dropped when they are not small JSON."""
    timings = document.get("timings")
    reported: dict[str, Any] = dict(timings) if isinstance(timings, Mapping) else {}
    reported |= {key: document.get(key) for key in ("cloud", "container") if document.get(key) is not None}
    try:
        text = json.dumps(reported, allow_nan=False)
    except (TypeError, ValueError):
        return {}
    return json.loads(text) if len(text) <= MAX_TIMINGS_CHARS else {}


def _versions(document: Mapping[Any, Any]) -> dict[str, str]:
    """Versions of the software and of the weights that generated."""
    versions = document.get("versions")
    reported = dict(versions) if isinstance(versions, Mapping) else {}
    reported["weights"] = document.get("revision")
    kept = [(str(name), value) for name, value in reported.items() if isinstance(value, str)]
    return {name[:MAX_NAME_CHARS]: value[:MAX_NAME_CHARS] for name, value in kept[-MAX_VERSIONS:]}
