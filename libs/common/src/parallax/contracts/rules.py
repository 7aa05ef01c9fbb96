"""The rules of a job that need more than one field, or the catalog. They read plain JSON data, whatever it holds."""

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, Final, NamedTuple

from parallax.contracts.job import MAX_BATCH_BYTES, MAX_BATCH_EXECUTIONS, MAX_CHOICES
from parallax.contracts.places import Location, pointer
from parallax.contracts.problem import Problem

PLACEHOLDERS: Final = frozenset({"region", "region_name", "model", "question_id"})
"""What a system prompt may name in braces."""

MOST_BYTES_OF_CHARACTER: Final = 4
"""In UTF-8."""


class Offer(NamedTuple):
    """What an installation can run: every region, and the regions of each model of the catalog."""

    regions: frozenset[str]
    models: Mapping[str, frozenset[str]]


def head_problems(document: Mapping[str, Any], offer: Offer) -> Iterator[Problem]:
    """What is wrong with models, regions and prompt, and with the number of executions of a question."""
    ids: dict[str, int] = {}
    for index, model in items(document.get("models")):
        yield from repetition(model, ("models", index), ids)
    yield from _region_problems(document.get("regions"), ("regions",), offer.regions)
    yield from _model_problems(document, offer)
    yield from _prompt_problems(document.get("system_prompt"))
    size = batch_size(document)
    if size > MAX_BATCH_EXECUTIONS:
        yield Problem(
            pointer="",
            message=f"one question makes {size} executions (models x regions x samples)",
            allowed=f"at most {MAX_BATCH_EXECUTIONS} executions in a batch",
        )


def items(value: object) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a list, with their indexes."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from ((index, item) for index, item in enumerate(value) if isinstance(item, Mapping))


def repetition(item: Mapping[str, Any], place: Location, first: dict[str, int]) -> Iterator[Problem]:
    """The problem of an item whose id stands in ``first``, which it is entered into otherwise."""
    identifier = item.get("id")
    if not isinstance(identifier, str):
        return
    if identifier in first:
        earlier = pointer((*place[:-1], first[identifier]))
        yield Problem(
            pointer=pointer((*place, "id")),
            message=f"id {identifier!r:.200} was already used at {earlier}",
            allowed="ids that differ from each other",
        )
    first.setdefault(identifier, int(place[-1]))


def choice_problems(question: Mapping[str, Any], place: Location) -> Iterator[Problem]:
    """Choices that answers could not be told apart by, and an expected answer that is none of them."""
    choices, expected = question.get("choices"), question.get("expected")
    listed = choices if isinstance(choices, list | tuple) else ()
    known = [str(choice).strip().casefold() for choice in listed[: MAX_CHOICES + 1]]
    for number, choice in enumerate(known):
        if choice in known[:number] or not choice:
            where = pointer((*place, "choices", number))
            yield Problem(
                pointer=where, message="is blank or named twice", allowed="choices that differ by more than case"
            )
    if isinstance(expected, str) and expected.strip().casefold() not in known:
        allowed = ", ".join(map(str, listed[:MAX_CHOICES]))[:500] or "only with choices"
        yield Problem(pointer=pointer((*place, "expected")), message="is none of the choices", allowed=allowed)


def _region_problems(value: object, location: Location, allowed: frozenset[str]) -> Iterator[Problem]:
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
    for index, model in items(document.get("models")):
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
            message=f"model {name!r:.200} does not run in {', '.join(dict.fromkeys(missing))}",
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


# --- the size of a batch


def batch_size(document: Mapping[str, Any]) -> int:
    """Executions that one question makes; 0 when that cannot be told."""
    samples = document.get("samples", 1)
    if not isinstance(samples, int):
        return 0
    cells = 0
    for _, model in items(document.get("models")):
        regions = model.get("regions") or document.get("regions")
        cells += len(regions) if isinstance(regions, list) else 0
    return cells * samples


class PromptBudget:
    """Whether the prompts of a question fit into a batch: every execution carries its own copy."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._size = batch_size(document)
        self._system_bytes = _size_bytes(document.get("system_prompt"))
        if self._size > MAX_BATCH_EXECUTIONS:
            self._size = 0  # told already

    def problems(self, question: Mapping[str, Any], index: int) -> Iterator[Problem]:
        """The problem of a question whose prompts are too large in all."""
        text = question.get("text")
        if not isinstance(text, str):
            return
        if self._size * (self._system_bytes + MOST_BYTES_OF_CHARACTER * len(text)) <= MAX_BATCH_BYTES:
            return  # whatever its characters are
        prompts_bytes = self._size * (self._system_bytes + _size_bytes(text))
        if prompts_bytes > MAX_BATCH_BYTES:
            yield Problem(
                pointer=pointer(("questions", index, "text")),
                message=f"makes {prompts_bytes} bytes of prompts ({self._size} executions, each with its own copy)",
                allowed=f"at most {MAX_BATCH_BYTES} bytes in a batch",
            )


def _size_bytes(text: object) -> int:
    return len(text.encode(errors="replace")) if isinstance(text, str) else 0


# --- a part of the matrix


class Selection:
    """``only``: executions of the job's own matrix, each once."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._questions = {q["id"] for _, q in items(document.get("questions")) if isinstance(q.get("id"), str)}
        self._samples = document.get("samples", 1)
        self._regions = {
            model["id"]: _listed(model.get("regions")) or _listed(document.get("regions"))
            for _, model in items(document.get("models"))
            if isinstance(model.get("id"), str)
        }
        self._seen: set[tuple[object, ...]] = set()

    def problems(self, ref: Mapping[str, Any], index: int) -> Iterator[Problem]:
        """What is wrong with an entry; it is remembered, to be named once."""
        cell = (ref.get("question_id"), ref.get("model_id"), ref.get("region"), ref.get("sample", 0))
        if not all(isinstance(part, str | int) for part in cell):
            return
        question, model, region, sample = cell
        known = question in self._questions and region in self._regions.get(model, ())
        samples = self._samples
        if not known or not (isinstance(sample, int) and isinstance(samples, int) and sample < samples):
            yield Problem(pointer=pointer(("only", index)), message="names no execution of this job's matrix")
        if cell in self._seen:
            yield Problem(pointer=pointer(("only", index)), message="names an execution a second time")
        self._seen.add(cell)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
