"""A submission as it arrives: bytes from anybody, turned into a job or into everything that is wrong with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal, NoReturn

from pydantic import TypeAdapter, ValidationError

from parallax.contracts.intake import Offer, check_job, pointer
from parallax.contracts.job import MAX_JOB_BYTES, JobSpec
from parallax.contracts.messages import Problem, Version
from parallax.contracts.model import JobId, Strict, Timestamp
from parallax.text import storable

MAX_PROBLEM_CHARS: Final = 2_000
"""Places and values in problems come from the submitter."""

_JOB_ID: TypeAdapter[str] = TypeAdapter(JobId)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that may run."""

    job_id: str
    spec: JobSpec

    @property
    def content_sha256(self) -> bytes:
        """Equal for equal jobs, however they were written down; a key that a later version adds changes no hash."""
        document = self.spec.model_dump(mode="json", exclude_defaults=True)
        return sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong with a submission. ``job_id`` is ``None`` when it does not give a usable one."""

    job_id: str | None
    problems: tuple[Problem, ...]


class _Envelope(Strict):
    """``SubmitJob`` without the job, which is checked apart so that every problem is found."""

    kind: Literal["submit_job"] = "submit_job"
    version: Version = 1
    job_id: JobId
    submitted_at: Timestamp | None = None


def read_submission(body: bytes, offer: Offer) -> Submission | Refusal:
    """The job in the body of a ``SubmitJob`` message. Pointers of problems are into the message."""
    try:
        return _read(body, offer)
    except RecursionError:
        return _refusal(None, [Problem(pointer="", message="is nested too deeply")])


def _read(body: bytes, offer: Offer) -> Submission | Refusal:
    if len(body) > MAX_JOB_BYTES:
        allowed = f"at most {MAX_JOB_BYTES} bytes"
        return _refusal(None, [Problem(pointer="", message=f"is {len(body)} bytes long", allowed=allowed)])
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except ValueError as error:
        return _refusal(None, [Problem(pointer="", message=f"is not JSON: {error}")])
    if not isinstance(document, dict):
        return _refusal(None, [Problem(pointer="", message="is not a JSON object", allowed="a SubmitJob message")])
    spec, problems = check_job(document.get("job", {}), offer)
    problems = (
        *_envelope_problems(document),
        *(problem.model_copy(update={"pointer": "/job" + problem.pointer}) for problem in problems),
    )
    job_id = _usable_id(document)
    if spec is None or problems or job_id is None:
        return _refusal(job_id, problems)
    return Submission(job_id, spec)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _usable_id(document: Mapping[str, Any]) -> str | None:
    try:
        return _JOB_ID.validate_python(document.get("job_id"), strict=True)
    except ValidationError:
        return None


def _envelope_problems(document: Mapping[str, Any]) -> list[Problem]:
    envelope = {key: value for key, value in document.items() if key != "job"}
    known = ", ".join((*_Envelope.model_fields, "job"))
    found = [] if "job" in document else [Problem(pointer="/job", message="is missing")]
    try:
        _Envelope.model_validate_json(json.dumps(envelope, ensure_ascii=False).encode(errors="replace"))
    except ValidationError as error:
        for details in error.errors(include_url=False):
            extra = details["type"] == "extra_forbidden"
            message = "unknown key" if extra else details["msg"]
            found.append(Problem(pointer=pointer(details["loc"]), message=message, allowed=known if extra else None))
    return found


def _refusal(job_id: str | None, problems: "list[Problem] | tuple[Problem, ...]") -> Refusal:
    return Refusal(job_id, tuple(_bounded(problem) for problem in problems))


def _bounded(problem: Problem) -> Problem:
    return Problem(
        pointer=storable(problem.pointer)[:MAX_PROBLEM_CHARS],
        message=storable(problem.message)[:MAX_PROBLEM_CHARS],
        allowed=problem.allowed and storable(problem.allowed)[:MAX_PROBLEM_CHARS],
    )
