"""Problems that say where: pointers into a document, and pydantic's errors in plain words."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from parallax.contracts.job import JobSpec
from parallax.contracts.problem import Problem

Location = tuple[str | int, ...]
"""The steps from the root of a document to a place in it."""

_WORDS: Final = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "string_pattern_mismatch": "holds characters that are not allowed here",
    "tuple_type": "Input should be a valid array",
}


def pointer(location: Sequence[str | int]) -> str:
    """The RFC 6901 pointer of a place in a document."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in location)


def field_problems(error: ValidationError, place: Location) -> Iterator[Problem]:
    """What pydantic found in the part of a job that stands at a place."""
    found = error.errors(include_url=False, include_input=False)
    inside = {details["loc"][:depth] for details in found for depth in range(len(details["loc"]))}
    for details in found:
        if details["type"] == "too_short" and details["loc"] in inside:
            continue  # the list is only short because its items are wrong, which is told already
        if details["type"] == "string_unicode":
            continue  # told by the check of all texts
        location = (*place, *details["loc"])
        message = _WORDS.get(details["type"], details["msg"])[:2000]
        yield Problem(pointer=pointer(location), message=message, allowed=_allowed(details, location))


def _allowed(details: ErrorDetails, location: Location) -> str | None:
    context = details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        siblings = _fields_at(location[:-1])
        return ", ".join(siblings) if siblings else None
    if "expected" in context:
        return str(context["expected"])
    if "pattern" in context:
        return f"text that matches {context['pattern']}"
    return None


def _fields_at(location: Location) -> list[str]:
    """The keys that the job's model knows at a place, as its JSON schema says."""
    schema = _job_schema()
    node: Any = schema
    for step in location:
        node = _resolve(node, schema)
        node = node.get("items", {}) if isinstance(step, int) else node.get("properties", {}).get(step, {})
    return list(_resolve(node, schema).get("properties", {}))


@cache
def _job_schema() -> dict[str, Any]:
    return JobSpec.model_json_schema()


def _resolve(node: Any, schema: Any) -> Any:
    for choice in (node, *node.get("anyOf", ())):
        if "$ref" in choice:
            return schema["$defs"][choice["$ref"].rsplit("/", 1)[1]]
    return next((choice for choice in node.get("anyOf", ()) if choice.get("type") == "array"), node)
