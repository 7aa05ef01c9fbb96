"""Checks a submitted job as a whole: every problem at once, each with its place and what is allowed.

The command line, the API and the dispatcher all call ``check_job``, so that a job means the same everywhere.
Checks that need the whole document read it as plain JSON data, so that they report even while single fields
are wrong.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from string import Formatter
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from parallax.contracts.job import MAX_BATCH_BYTES, MAX_BATCH_EXECUTIONS, JobSpec
from parallax.contracts.messages import Problem

PLACEHOLDERS: Final = frozenset({"region", "region_name", "model", "question_id"})
"""What a system prompt may name in braces."""

MAX_PROBLEMS: Final = 100
"""Problems reported at once; a file that is wrong in every row says so after this many."""

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


MAX_DEPTH: Final = 64
"""Levels of nesting in a job: parsers of JSON give up at some 200, and a job travels inside other documents."""


class Offer(NamedTuple):
    """What an installation can run: every region, and the regions of each model of the catalog."""

    regions: frozenset[str]
    models: Mapping[str, frozenset[str]]


def check_job(document: object, offer: Offer) -> tuple[JobSpec | None, tuple[Problem, ...]]:
    """The job in a JSON document, or everything that is wrong with it.

    Returns:
        The job and no problems, or ``None`` and at least one problem.
    """
    found: Iterator[Problem] = iter(())
    spec: JobSpec | None = None
    try:
        spec = JobSpec.model_validate_json(
            json.dumps(document, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        )
    except (ValidationError, TypeError, ValueError) as error:
        found = _field_problems(error)
    found = chain(found, _text_problems(document))
    if isinstance(document, Mapping):
        found = chain(found, _document_problems(document, offer))
    problems = tuple(islice(found, MAX_PROBLEMS))
    return (None, problems) if problems else (spec, ())


def pointer(location: Sequence[str | int]) -> str:
    """The RFC 6901 pointer of a place in a document."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in location)


def _field_problems(error: Exception) -> Iterator[Problem]:
    if not isinstance(error, ValidationError):
        yield Problem(pointer="", message=f"is not a JSON document: {error}"[:2000])
        return
    found = error.errors(include_url=False, include_input=False)
    inside = {details["loc"][:depth] for details in found for depth in range(len(details["loc"]))}
    for details in found:
        if details["type"] == "too_short" and details["loc"] in inside:
            continue  # the list is only short because its items are wrong, which is told already
        yield Problem(pointer=pointer(details["loc"]), message=_plain(details), allowed=_allowed(details))


def _plain(details: ErrorDetails) -> str:
    if details["type"] == "extra_forbidden":
        return "unknown key"
    if details["type"] == "missing":
        return "is missing"
    if details["type"] == "string_pattern_mismatch":
        return "holds characters that are not allowed here"
    return details["msg"][:2000]


def _allowed(details: ErrorDetails) -> str | None:
    context = details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        siblings = _fields_at(details["loc"][:-1])
        return ", ".join(siblings) if siblings else None
    if "expected" in context:
        return str(context["expected"])
    if "pattern" in context:
        return f"text that matches {context['pattern']}"
    return None


def _fields_at(location: Sequence[str | int]) -> list[str]:
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


def _text_problems(document: object) -> Iterator[Problem]:
    """Text that no database stores: NUL and surrogates without their other half."""
    waiting: list[tuple[tuple[str | int, ...], object]] = [((), document)]
    while waiting:
        location, value = waiting.pop()
        if len(location) > MAX_DEPTH:
            yield Problem(
                pointer=pointer(location[:1]), message="is nested too deeply", allowed=f"at most {MAX_DEPTH} levels"
            )
            return
        if isinstance(value, Mapping):
            waiting.extend(((*location, str(key)), item) for key, item in value.items())
            waiting.extend((location, key) for key in value)
        elif isinstance(value, list | tuple):
            waiting.extend(((*location, index), item) for index, item in enumerate(value))
        elif isinstance(value, str) and _UNSTORABLE.search(value):
            yield Problem(
                pointer=pointer(location).encode(errors="replace").decode(),
                message="holds a NUL character or half of a surrogate pair",
                allowed="text that is valid Unicode, without U+0000",
            )


def _document_problems(document: Mapping[str, Any], offer: Offer) -> Iterator[Problem]:
    yield from _duplicates(document.get("questions"), ("questions",))
    yield from _duplicates(document.get("models"), ("models",))
    yield from _region_problems(document.get("regions"), ("regions",), offer.regions)
    yield from _model_problems(document, offer)
    yield from _prompt_problems(document.get("system_prompt"))
    yield from _size_problems(document)
    yield from _selection_problems(document)


def _items(value: object) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from ((index, item) for index, item in enumerate(value) if isinstance(item, Mapping))


def _duplicates(value: object, location: tuple[str | int, ...]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, item in _items(value):
        identifier = item.get("id")
        if not isinstance(identifier, str):
            continue
        if identifier in first:
            place = pointer((*location, index, "id"))
            yield Problem(
                pointer=place,
                message=f"id {identifier!r:.200} was already used at {pointer((*location, first[identifier]))}",
                allowed="ids that differ from each other",
            )
        first.setdefault(identifier, index)


def _region_problems(value: object, location: tuple[str | int, ...], allowed: frozenset[str]) -> Iterator[Problem]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return
    seen: set[str] = set()
    for index, region in enumerate(value):
        if not isinstance(region, str):
            continue
        place = pointer((*location, index))
        if region not in allowed:
            yield Problem(
                pointer=place, message=f"unknown region {region!r:.200}", allowed=", ".join(sorted(allowed)) or "none"
            )
        if region in seen:
            yield Problem(pointer=place, message=f"region {region!r:.200} is named twice", allowed="each region once")
        seen.add(region)


def _model_problems(document: Mapping[str, Any], offer: Offer) -> Iterator[Problem]:
    for index, model in _items(document.get("models")):
        name = model.get("model") or model.get("id")
        if not isinstance(name, str):
            continue
        if name not in offer.models:
            place = pointer(("models", index, "model" if model.get("model") else "id"))
            known = ", ".join(sorted(offer.models)) or "none"
            yield Problem(pointer=place, message=f"unknown model {name!r:.200}", allowed=known)
            continue
        yield from _region_problems(model.get("regions"), ("models", index, "regions"), offer.regions)
        yield from _unserved_regions(document, index, model, name, offer)


def _unserved_regions(
    document: Mapping[str, Any], index: int, model: Mapping[str, Any], name: str, offer: Offer
) -> Iterator[Problem]:
    wanted = model.get("regions") or document.get("regions")
    if not isinstance(wanted, Sequence) or isinstance(wanted, str):
        return
    served = offer.models[name]
    missing = [r for r in wanted if isinstance(r, str) and r in offer.regions and r not in served]
    if missing:
        yield Problem(
            pointer=pointer(("models", index, "regions")) if model.get("regions") else pointer(("models", index)),
            message=f"model {name!r:.200} does not run in {', '.join(missing)}",
            allowed=", ".join(sorted(served)),
        )


def _prompt_problems(prompt: object) -> Iterator[Problem]:
    if not isinstance(prompt, str):
        return
    allowed = ", ".join("{" + name + "}" for name in sorted(PLACEHOLDERS)) + "; {{ and }} for literal braces"
    try:
        fields = [(field, spec, conversion) for _, field, spec, conversion in Formatter().parse(prompt)]
    except ValueError as error:
        yield Problem(pointer="/system_prompt", message=f"has unbalanced braces: {error}", allowed=allowed)
        return
    for field, spec, conversion in fields:
        if field is not None and (field not in PLACEHOLDERS or spec or conversion):
            yield Problem(pointer="/system_prompt", message=f"unknown placeholder {{{field:.200}}}", allowed=allowed)


def _size_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    samples = document.get("samples", 1)
    job_regions = document.get("regions")
    if not isinstance(samples, int):
        return
    cells = 0
    for _, model in _items(document.get("models")):
        regions = model.get("regions") or job_regions
        cells += len(regions) if isinstance(regions, list) else 0
    size = cells * samples
    if size > MAX_BATCH_EXECUTIONS:
        yield Problem(
            pointer="",
            message=f"one question makes {size} executions (models x regions x samples)",
            allowed=f"at most {MAX_BATCH_EXECUTIONS} executions in a batch",
        )
        return
    system_bytes = _size_bytes(document.get("system_prompt"))
    for index, question in _items(document.get("questions")):
        prompts_bytes = size * (system_bytes + _size_bytes(question.get("text")))
        if prompts_bytes > MAX_BATCH_BYTES:
            yield Problem(
                pointer=pointer(("questions", index, "text")),
                message=f"makes {prompts_bytes} bytes of prompts ({size} executions, each with its own copy)",
                allowed=f"at most {MAX_BATCH_BYTES} bytes in a batch",
            )


def _size_bytes(text: object) -> int:
    return len(text.encode(errors="replace")) if isinstance(text, str) else 0


def _selection_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """``only`` must name executions of the job's own matrix, each once."""
    if document.get("only") is None:
        return
    questions = {item["id"] for _, item in _items(document.get("questions")) if isinstance(item.get("id"), str)}
    samples = document.get("samples", 1)
    regions = {
        model["id"]: _listed(model.get("regions")) or _listed(document.get("regions"))
        for _, model in _items(document.get("models"))
        if isinstance(model.get("id"), str)
    }
    seen: set[tuple[object, ...]] = set()
    for index, ref in _items(document.get("only")):
        cell = (ref.get("question_id"), ref.get("model_id"), ref.get("region"), ref.get("sample", 0))
        if not all(isinstance(part, str | int) for part in cell):
            continue
        question, model, region, sample = cell
        known = question in questions and region in regions.get(model, ())
        if not known or not (isinstance(sample, int) and isinstance(samples, int) and sample < samples):
            yield Problem(pointer=pointer(("only", index)), message="names no execution of this job's matrix")
        if cell in seen:
            yield Problem(pointer=pointer(("only", index)), message="names an execution a second time")
        seen.add(cell)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
