"""Puts an OpenAI chat completion together from its parts. Pure; everything it reads is hostile."""

import json
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from pydantic import JsonValue

from executor.endpoints.port import ModelAnswer
from parallax.contracts.outcomes import Usage

MAX_TEXT_CHARS: Final = 2_000_000
"""Six bytes a character at worst as JSON: the fact stays below the 16 MiB that a broker takes."""
MAX_TIMINGS_CHARS: Final = 4_000
MAX_TOKENS: Final = 2**53


class MalformedError(Exception):
    """What arrived is not a chat completion."""


class StreamedError(Exception):
    """The server reported an error inside a stream that it had begun with status 200."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class AnswerParts:
    """An answer that grows with every event of its stream."""

    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    chars: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    call_id: str | None = None
    fingerprint: str | None = None
    timings: dict[str, JsonValue] = field(default_factory=dict)
    done: bool = False

    def add(self, data: bytes) -> None:
        """Take one event of a stream.

        Raises:
            MalformedError: It is not a chunk of a chat completion, or the answer outgrows every bound.
            StreamedError: It reports an error.
        """
        if data == b"[DONE]":
            self.done = True
            return
        document = parse_object(data)
        self._envelope(document)
        for choice in _objects(document.get("choices")):
            self._choice(choice, "delta")

    def add_whole(self, body: bytes) -> None:
        """Take an answer that came as one JSON document.

        Raises:
            MalformedError: It is not a chat completion.
            StreamedError: It reports an error.
        """
        document = parse_object(body)
        self._envelope(document)
        choices = _objects(document.get("choices"))
        if not choices:
            raise MalformedError("the answer has no choices")
        self._choice(choices[0], "message")
        self.done = True

    def answer(self) -> ModelAnswer:
        """The whole answer.

        Raises:
            MalformedError: The stream broke off before it said that it was complete.
        """
        if not self.done and self.finish_reason is None:
            raise MalformedError("the stream ended before the answer was complete")
        return ModelAnswer(
            text="".join(self.text),
            refusal="".join(self.refusal) or None,
            finish_reason=self.finish_reason,
            usage=self.usage,
            model_reported=self.model,
            provider_timings=self.timings,
            versions={"system_fingerprint": self.fingerprint} if self.fingerprint else {},
        )

    def _envelope(self, document: dict[str, Any]) -> None:
        if document.get("error"):
            raise _streamed_error(document["error"])
        self.call_id = self.call_id or _text(document, "id")
        self.model = self.model or _text(document, "model")
        self.fingerprint = self.fingerprint or _text(document, "system_fingerprint")
        usage = document.get("usage")
        if usage is not None:
            self.usage = _usage(usage) or self.usage
        timings = document.get("timings")
        if isinstance(timings, dict) and len(json.dumps(timings)) <= MAX_TIMINGS_CHARS:
            self.timings = timings

    def _choice(self, choice: dict[str, Any], key: str) -> None:
        if choice.get("index", 0) != 0:
            return
        part = choice.get(key)
        if part is not None:
            if not isinstance(part, dict):
                raise MalformedError(f"{key} is not an object")
            self._append(self.text, part, "content")
            self._append(self.refusal, part, "refusal")
        self.finish_reason = _text(choice, "finish_reason") or self.finish_reason

    def _append(self, parts: list[str], source: dict[str, Any], key: str) -> None:
        value = source.get(key)
        if value is None:
            return
        if not isinstance(value, str):
            raise MalformedError(f"{key} is not text")
        self.chars += len(value)
        if self.chars > MAX_TEXT_CHARS:
            raise MalformedError(f"the answer is longer than {MAX_TEXT_CHARS} characters")
        parts.append(value)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in the data.

    Raises:
        MalformedError: It is not one.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise MalformedError("not a JSON object")
    return document


def error_message(body: bytes) -> str:
    """What the body of an error says to people, in the forms that servers use; empty when it says nothing."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace").strip()
    if isinstance(document, dict):
        document = document.get("error") or document.get("detail") or document.get("message") or document
    if isinstance(document, dict):
        document = document.get("message") or document
    return document if isinstance(document, str) else json.dumps(document)


def _streamed_error(error: Any) -> StreamedError:
    if not isinstance(error, dict):
        return StreamedError(str(error), None)
    code = error.get("code")
    status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else None
    return StreamedError(str(error.get("message") or error), status)


def _objects(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise MalformedError("choices is not a list of objects")
    return value


def _text(document: dict[str, Any], key: str) -> str | None:
    value = document.get(key)
    return value if isinstance(value, str) and value else None


def _usage(value: Any) -> Usage | None:
    """The token counts, or ``None`` where they make no sense: an answer is not lost over its bill."""
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens", 0)
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MAX_TOKENS
