"""A job that was checked: all that services keep of it besides its questions."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, Final, Self

from pydantic import BaseModel, TypeAdapter

from parallax.contracts.intake import NotJsonError, Offer, read_job
from parallax.contracts.job import ExecutionRef, JobHead, JobSpec, Question
from parallax.contracts.model import Strict
from parallax.contracts.plan import batch_count, execution_count
from parallax.contracts.problem import Problem

OFFER: Final = TypeAdapter(Offer)
"""Writes and reads an offer as JSON, for checks in another process."""


class CheckedJob(Strict):
    """A valid job without its questions: small, whatever their number."""

    head: JobHead
    questions: int
    batches: int
    executions: int
    partial: bool
    """Whether it asks for a part of its matrix only."""
    content_sha256: str
    """Equal for equal jobs, however they were written down."""

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """What is kept of a valid job."""
        return cls(
            head=JobHead.model_construct(**{name: getattr(spec, name) for name in JobHead.model_fields}),
            questions=len(spec.questions),
            batches=batch_count(spec),
            executions=execution_count(spec),
            partial=spec.only is not None,
            content_sha256=content_sha256(spec),
        )


class Verdict(Strict):
    """What came of a check: the job, or everything that is wrong with it."""

    job: CheckedJob | None = None
    problems: tuple[Problem, ...] = ()
    not_json: str | None = None
    """Why the bytes are no JSON document."""


def judge(body: bytes, offer: Offer) -> Verdict:
    """Check a job in bytes."""
    try:
        spec, problems = read_job(body, offer)
    except NotJsonError as error:
        return Verdict(not_json=str(error))
    return Verdict(job=None if spec is None else CheckedJob.of(spec), problems=problems)


def judge_in_worker(offer: bytes, body: bytes) -> Iterator[bytes]:
    """The same in a worker process; the only part is the verdict."""
    yield judge(body, OFFER.validate_json(offer)).model_dump_json().encode()


def content_sha256(spec: JobSpec) -> str:
    """The hash of a job's canonical form: JSON with sorted keys and without defaults.

    Defaults, written or not, mean the same; a key that a later version adds changes no hash. Hashed piece by
    piece, because the whole would be as large as the job again, or six times that in ASCII.
    """
    digest = sha256()
    for piece in _canonical_form(spec):
        digest.update(piece.encode())
    return digest.hexdigest()


def _canonical_form(spec: JobSpec) -> Iterator[str]:
    head = spec.model_dump(mode="json", exclude={"questions", "only"}, exclude_defaults=True)
    lists: dict[str, Sequence[Question | ExecutionRef]] = {"questions": spec.questions} | (
        {} if spec.only is None else {"only": spec.only}
    )
    separator = "{"
    for key in sorted((*head, *lists)):
        yield f'{separator}"{key}":'
        separator = ","
        items = lists.get(key)
        if items is None:
            yield _canonical(head.get(key))
            continue
        for number, item in enumerate(items):
            yield ("," if number else "[") + _canonical(_without_defaults(item))
        yield "]"
    yield "}"


def _without_defaults(item: Question | ExecutionRef) -> dict[str, Any]:
    """The members of an item that say something; a dump by pydantic takes three times as long."""
    defaults = _defaults(type(item))
    return {name: value for name, value in vars(item).items() if name not in defaults or value != defaults[name]}


@cache
def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }


_canonical: Final[Callable[[Any], str]] = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
