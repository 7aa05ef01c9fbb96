"""Checks a submitted job as a whole: every problem at once, each with its place and what is allowed.

The command line, the API and the dispatcher all call ``check_job``, so that a job means the same everywhere. Where a
job arrives as bytes ``read_job`` is called, which bounds the document before anything is built from it.

Each question is checked by itself, and the reading stops with the hundredth problem: neither a long list nor an object
of many keys makes a problem for each of its parts.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from pydantic import ValidationError

from parallax.contracts.bounds import excess
from parallax.contracts.job import (
    MAX_DEPTH,
    MAX_METADATA_BYTES,
    MAX_ONLY,
    MAX_QUESTIONS,
    MAX_TAGS,
    ExecutionRef,
    JobHead,
    JobSpec,
    Question,
)
from parallax.contracts.model import Strict
from parallax.contracts.places import Location, field_problems, pointer
from parallax.contracts.problem import Problem
from parallax.contracts.rules import Offer, PromptBudget, Selection, choice_problems, head_problems, repetition

__all__ = ["MAX_PROBLEMS", "NotJsonError", "Offer", "check_job", "parse", "pointer", "read_job"]

MAX_PROBLEMS: Final = 100
"""Problems reported at once; a file that is wrong in every row says so after this many."""

MAX_HEAD_VALUES: Final = 10_000
"""Values of a job without questions, ``only`` and metadata; 100 models that say everything have half as many."""
MAX_FIELDS: Final = 50
"""Keys of a question or of an entry of ``only``: more than there are, so that misspelt ones are named one by one."""

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
"""How JSON has to write what cannot be stored; the texts of a document without it need not be looked at."""

Item = TypeVar("Item", bound=Strict)


class NotJsonError(ValueError):
    """Bytes that are no JSON document; the message says why."""


class Document(NamedTuple):
    """A JSON document that was read."""

    value: Any
    problems: tuple[Problem, ...]
    """Keys that an object gives twice."""
    storable: bool
    """Whether its bytes show that every text in it can be stored."""


def parse(body: bytes) -> Document:
    """Read a document; ``bounds.excess`` says beforehand whether that is safe.

    Raises:
        NotJsonError: It is not JSON in UTF-8.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise NotJsonError(f"byte {error.start} is not UTF-8") from error
    keys = _Keys()
    try:
        value = json.loads(text, object_pairs_hook=keys.members, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise NotJsonError("arrays and objects are nested too deeply") from error
    except ValueError as error:  # NaN, Infinity, and integers of thousands of digits
        raise NotJsonError("holds a number that JSON does not know or that is too long") from error
    problems = tuple(islice(keys.problems(value), MAX_PROBLEMS))
    return Document(value, problems, storable=_SUSPICIOUS.search(body) is None)


def read_job(body: bytes, offer: Offer) -> tuple[JobSpec | None, tuple[Problem, ...]]:
    """The job in the bytes of a JSON document, or everything that is wrong with it.

    Raises:
        NotJsonError: The bytes are no JSON document.
    """
    problem = excess(body)
    if problem is not None:
        return None, (problem,)
    document = parse(body)
    spec, problems = check_job(document.value, offer, storable=document.storable)
    problems = (*document.problems, *problems)[:MAX_PROBLEMS]
    return (None, problems) if problems else (spec, ())


def check_job(document: object, offer: Offer, *, storable: bool = False) -> tuple[JobSpec | None, tuple[Problem, ...]]:
    """The job in a JSON document, or everything that is wrong with it.

    ``storable`` says that every text is known to be storable and nothing to be nested too deeply, so that the document
    need not be searched for that.

    Returns:
        The job and no problems, or ``None`` and at least one problem.
    """
    parts = _Parts()
    problems = tuple(islice(_problems(document, offer, parts, storable=storable), MAX_PROBLEMS))
    if problems:
        return None, problems
    assert parts.head is not None, "without a head there is a problem"
    fields = {name: getattr(parts.head, name) for name in JobHead.model_fields}
    only = None if parts.only is None else tuple(parts.only)
    return JobSpec.model_construct(**fields, questions=tuple(parts.questions), only=only), ()


@dataclass(slots=True)
class _Parts:
    """What was read of a job so far."""

    head: JobHead | None = None
    questions: list[Question] = field(default_factory=list)
    only: list[ExecutionRef] | None = None


def _problems(document: object, offer: Offer, parts: _Parts, *, storable: bool) -> Iterator[Problem]:
    if not storable:
        yield from _text_problems(document)
    if not isinstance(document, Mapping):
        yield Problem(pointer="", message="Input should be an object")
        return
    if _is_larger(MAX_HEAD_VALUES, [value for key, value in document.items() if key not in _COUNTED_APART]):
        message = f"holds more than {MAX_HEAD_VALUES} values besides questions, only and metadata"
        yield Problem(pointer="", message=message)
        return
    yield from _head_problems(document, parts)
    yield from head_problems(document, offer)
    yield from _question_problems(document, parts)
    yield from _only_problems(document, parts)


# --- parts of a job

_ITEMS: Final = ("questions", "only")
_COUNTED_APART: Final = (*_ITEMS, "metadata")


def _head_problems(document: Mapping[str, Any], parts: _Parts) -> Iterator[Problem]:
    rest = {key: value for key, value in document.items() if key not in _COUNTED_APART}
    metadata = document.get("metadata", {})
    yield from _metadata_problems(metadata, ("metadata",))
    try:
        head = JobHead.model_validate_json(json.dumps(rest, ensure_ascii=False).encode(errors="replace"))
        parts.head = head.model_copy(update={"metadata": metadata})
    except ValidationError as error:
        yield from field_problems(error, ())
    except (TypeError, ValueError) as error:
        yield Problem(pointer="", message=f"is not a JSON document: {error}"[:2000])


def _question_problems(document: Mapping[str, Any], parts: _Parts) -> Iterator[Problem]:
    listed = yield from _listed(document, "questions", MAX_QUESTIONS)
    budget = PromptBudget(document)
    first: dict[str, int] = {}
    for index, item in enumerate(listed):
        place = ("questions", index)
        question = yield from _item(Question, item, place)
        if question is not None:
            parts.questions.append(question)
        if isinstance(item, Mapping):
            if "metadata" in item:
                yield from _metadata_problems(item["metadata"], (*place, "metadata"))
            yield from budget.problems(item, index)
            yield from repetition(item, place, first)
            yield from choice_problems(item, place)


def _only_problems(document: Mapping[str, Any], parts: _Parts) -> Iterator[Problem]:
    if document.get("only") is None:
        return
    listed = yield from _listed(document, "only", MAX_ONLY)
    parts.only = []
    selection = Selection(document)
    for index, item in enumerate(listed):
        ref = yield from _item(ExecutionRef, item, ("only", index))
        if ref is not None:
            parts.only.append(ref)
        if isinstance(item, Mapping):
            yield from selection.problems(item, index)


def _listed(document: Mapping[str, Any], key: str, most: int) -> Generator[Problem, None, Sequence[Any]]:
    """The items of a list that must not be empty, as far as it may be long."""
    place = pointer((key,))
    if key not in document:
        yield Problem(pointer=place, message="is missing")
        return ()
    value = document[key]
    if not isinstance(value, list | tuple):
        yield Problem(pointer=place, message="Input should be a valid array")
        return ()
    if not 1 <= len(value) <= most:
        yield Problem(pointer=place, message=f"should hold at least 1 item and at most {most}, not {len(value)}")
    return value[:most]


def _item(model: type[Item], item: object, place: Location) -> Generator[Problem, None, Item | None]:
    """An item of a list, unless something is wrong with its fields."""
    if not isinstance(item, Mapping):
        yield Problem(pointer=pointer(place), message="Input should be an object")
        return None
    tags = item.get("tags")
    if len(item) > MAX_FIELDS or (isinstance(tags, list) and len(tags) > MAX_TAGS):
        message = f"holds {len(item)} keys, and {len(tags) if isinstance(tags, list) else 0} tags"
        yield Problem(pointer=pointer(place), message=message, allowed=f"at most {MAX_FIELDS}, and {MAX_TAGS}")
        return None
    try:
        return model.model_validate(item)
    except ValidationError as error:
        yield from field_problems(error, place)
    return None


_compact: Final[Callable[[object], str]] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


def _metadata_problems(metadata: object, place: Location) -> Iterator[Problem]:
    if not isinstance(metadata, Mapping):
        yield Problem(pointer=pointer(place), message="Input should be an object")
        return
    try:
        written = _compact(metadata)
    except (TypeError, ValueError) as error:
        yield Problem(pointer=pointer(place), message=f"is not a JSON document: {error}"[:2000])
        return
    size = len(written.encode(errors="replace"))
    if size > MAX_METADATA_BYTES:
        allowed = f"at most {MAX_METADATA_BYTES} bytes of compact JSON"
        yield Problem(pointer=pointer(place), message=f"is {size} bytes long", allowed=allowed)


# --- whatever the document is


def _is_larger(most: int, value: object) -> bool:
    """Whether a value is made of more than ``most`` values; looks at no more than these."""
    waiting, seen = [value], 0
    while waiting and seen <= most:
        inner = waiting.pop()
        seen += 1
        if isinstance(inner, Mapping):
            inner = list(inner.values())
        if isinstance(inner, list | tuple):
            waiting.extend(islice(inner, most + 1))
    return seen > most


def _text_problems(document: object) -> Iterator[Problem]:
    """Text that no database stores: NUL and surrogates without their other half."""
    waiting: list[tuple[Location, object]] = [((), document)]
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


class _Keys:
    """Notes objects that give a key twice: readers differ in which of the values they take."""

    def __init__(self) -> None:
        self._twice: list[tuple[dict[str, Any], str]] = []

    def members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object of its members; for ``json.loads``."""
        members = dict(pairs)
        if len(members) != len(pairs) and len(self._twice) < MAX_PROBLEMS:
            self._twice.append((members, _first_repeated([key for key, _ in pairs])))
        return members

    def problems(self, document: object) -> Iterator[Problem]:
        """What was noted, with its places in the finished document."""
        twice = {id(members): key for members, key in self._twice}
        waiting: list[tuple[Location, object]] = [((), document)] if twice else []
        while waiting:
            location, value = waiting.pop()
            if isinstance(value, dict):
                if id(value) in twice:
                    place = pointer((*location, twice[id(value)])).encode(errors="replace").decode()
                    yield Problem(pointer=place, message="is given twice", allowed="each key of an object once")
                waiting.extend(((*location, key), item) for key, item in value.items())
            elif isinstance(value, list):
                waiting.extend(((*location, index), item) for index, item in enumerate(value))


def _first_repeated(keys: Sequence[str]) -> str:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            break
        seen.add(key)
    return key


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
