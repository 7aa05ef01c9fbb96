"""A submission as it arrives: bytes from anybody, turned into a job or into everything that is wrong with them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from dispatcher.rows import chosen_rows, question_rows
from parallax.contracts.bounds import excess
from parallax.contracts.intake import MAX_FIELDS, MAX_PROBLEMS, NotJsonError, Offer, check_job, parse, pointer
from parallax.contracts.job import JobSpec
from parallax.contracts.model import JobId, Strict, Timestamp
from parallax.contracts.problem import Problem
from parallax.contracts.submission import OFFER, CheckedJob
from parallax.text import storable

MAX_PROBLEM_CHARS: Final = 2_000
"""Places and values in problems come from the submitter."""

_JOB_ID: TypeAdapter[str] = TypeAdapter(JobId)
_ID: Final = rb'"job_id"\s*:\s*"([a-z0-9][a-z0-9-]{0,79})"'
_OTHER: Final = rb'"(?:kind|version|submitted_at)"\s*:\s*(?:"[^"\\]{0,100}"|\d{1,9}|null)'
_ID_FIRST: Final = re.compile(rb"\s*\{(?:\s*" + _OTHER + rb"\s*,)*\s*" + _ID)
_ID_LAST: Final = re.compile(_ID + rb"(?:\s*,\s*" + _OTHER + rb")*\s*\}\s*\Z")
_MARGIN_BYTES: Final = 1_000
"""Enough for the members of a message beside its job."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that may run."""

    job_id: str
    job: CheckedJob
    questions: tuple[bytes, ...]
    """Its rows, see ``dispatcher.rows``."""
    chosen: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, job_id: str, spec: JobSpec) -> "Submission":
        """The submission of a job that was checked."""
        return cls(job_id, CheckedJob.of(spec), tuple(question_rows(spec)), tuple(chosen_rows(spec)))


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong with a submission. ``job_id`` is ``None`` when it does not give a usable one."""

    job_id: str | None
    problems: tuple[Problem, ...]


class _Envelope(Strict):
    """``SubmitJob`` without the job, which is checked apart so that every problem is found."""

    kind: Literal["submit_job"] = "submit_job"
    version: Literal[1] = 1
    job_id: JobId
    submitted_at: Timestamp | None = None


def read_submission(body: bytes, offer: Offer) -> Submission | Refusal:
    """The job in the body of a ``SubmitJob`` message. Pointers of problems are into the message."""
    problem = excess(body)
    if problem is not None:
        return refused(job_id_in(body), [problem])
    try:
        document, repeated, is_storable = parse(body)
    except NotJsonError as error:
        return refused(None, [Problem(pointer="", message=f"is not JSON: {error}")])
    if not isinstance(document, dict):
        return refused(None, [Problem(pointer="", message="is not a JSON object", allowed="a SubmitJob message")])
    spec, problems = check_job(document.get("job", {}), offer, storable=is_storable)
    problems = (
        *_envelope_problems(document),
        *repeated,
        *(problem.model_copy(update={"pointer": "/job" + problem.pointer}) for problem in problems),
    )
    job_id = _usable_id(document)
    if spec is None or problems or job_id is None:
        return refused(job_id, problems)
    return Submission.of(job_id, spec)


def refused(job_id: str | None, problems: Sequence[Problem]) -> Refusal:
    """A refusal whose problems can be sent and stored, whatever the submitter wrote."""
    return Refusal(job_id, tuple(_bounded(problem) for problem in problems[:MAX_PROBLEMS]))


def job_id_in(body: bytes) -> str | None:
    """The id in a message that is not to be read as a whole, when it stands before or behind the job."""
    found = _ID_FIRST.match(body, 0, _MARGIN_BYTES) or _ID_LAST.search(body[-_MARGIN_BYTES:])
    return None if found is None else found[1].decode()


# --- in another process


class _Outcome(Strict):
    """What a worker says before it hands over rows."""

    job_id: str | None
    problems: tuple[Problem, ...] = ()
    job: CheckedJob | None = None
    pieces: int = 0
    """Pieces of questions; those that follow are of chosen batches."""


def read_in_worker(offer: bytes, body: bytes) -> Iterator[bytes]:
    """``read_submission`` in a worker process: the outcome and then the rows, for :func:`outcome`."""
    found = read_submission(body, OFFER.validate_json(offer))
    if isinstance(found, Refusal):
        yield _Outcome(job_id=found.job_id, problems=found.problems).model_dump_json().encode()
        return
    yield _Outcome(job_id=found.job_id, job=found.job, pieces=len(found.questions)).model_dump_json().encode()
    yield from found.questions
    yield from found.chosen


def outcome(parts: Sequence[bytes]) -> Submission | Refusal:
    """What a worker found."""
    found = _Outcome.model_validate_json(parts[0])
    if found.job is None or found.job_id is None:
        return Refusal(found.job_id, found.problems)
    rows = 1 + found.pieces
    return Submission(found.job_id, found.job, tuple(parts[1:rows]), tuple(parts[rows:]))


# --- the envelope


def _usable_id(document: Mapping[str, Any]) -> str | None:
    try:
        return _JOB_ID.validate_python(document.get("job_id"), strict=True)
    except ValidationError:
        return None


def _envelope_problems(document: Mapping[str, Any]) -> list[Problem]:
    envelope = {key: value for key, value in document.items() if key != "job"}
    known = ", ".join((*_Envelope.model_fields, "job"))
    found = [] if "job" in document else [Problem(pointer="/job", message="is missing")]
    if len(envelope) > MAX_FIELDS:
        return [*found, Problem(pointer="", message=f"holds {len(envelope)} keys beside the job", allowed=known)]
    try:
        _Envelope.model_validate_json(json.dumps(envelope, ensure_ascii=False).encode(errors="replace"))
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            extra = details["type"] == "extra_forbidden"
            message = "unknown key" if extra else details["msg"]
            found.append(Problem(pointer=pointer(details["loc"]), message=message, allowed=known if extra else None))
    return found


def _bounded(problem: Problem) -> Problem:
    return Problem(
        pointer=storable(problem.pointer)[:MAX_PROBLEM_CHARS],
        message=storable(problem.message)[:MAX_PROBLEM_CHARS],
        allowed=problem.allowed and storable(problem.allowed)[:MAX_PROBLEM_CHARS],
    )
