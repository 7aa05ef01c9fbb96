"""Jobs of 15 MB: legal ones of every shape, and such as would cost a service its memory or its time."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from parallax.contracts.job import MAX_JOB_BYTES

MARGIN_BYTES: Final = 400
"""For the envelope of a message around the job."""
HEAD: Final = {"name": "large", "models": [{"id": "tiny"}], "regions": ["us"]}


class LargeJob(NamedTuple):
    """A job, and what is to be said of it."""

    body: bytes
    problem: str | None
    """Part of the message of a problem; ``None`` for a legal job."""


def _written(**parts: Any) -> bytes:
    return json.dumps(HEAD | parts, ensure_ascii=False, separators=(",", ":")).encode()


def _filled(unit: bytes, problem: str, *, mark: bytes = b'"HERE"', **parts: Any) -> LargeJob:
    """A job with as many units as fit in the place of the mark."""
    before, after = _written(**parts).split(mark)
    many = (MAX_JOB_BYTES - MARGIN_BYTES - len(before) - len(after)) // len(unit)
    return LargeJob(before + (unit * many).removesuffix(b",") + after, problem)


def _in_text(unit: bytes, problem: str) -> LargeJob:
    return _filled(unit, problem, mark=b"HERE", questions=[{"id": "q", "text": "HERE"}])


def _questions(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"q{index}", "text": "Why?", **more} for index in range(count)]


def _legal(text: str) -> LargeJob:
    room = (MAX_JOB_BYTES - MARGIN_BYTES) // 20_000 - len(b'{"id":"q19999","text":""},')
    return LargeJob(_written(questions=_questions(20_000, text=text * (room // len(text.encode())))), None)


def _legal_tags() -> LargeJob:
    return LargeJob(_written(questions=_questions(20_000, tags=[f"t{tag:06}" for tag in range(45)])), None)


def _legal_columns() -> LargeJob:
    columns = [{f"c{column}": f"v{column}-{index}" for column in range(26)} for index in range(20_000)]
    questions = [{"id": f"q{index}", "text": "?", "metadata": row} for index, row in enumerate(columns)]
    return LargeJob(_written(questions=questions), None)


def _legal_retry() -> LargeJob:
    only = [
        {"question_id": f"q{number % 20_000}", "model_id": "tiny", "region": "us", "sample": number // 20_000}
        for number in range(100_000)
    ]
    return LargeJob(_written(questions=_questions(20_000), samples=5, only=only), None)


def _keys(count: int) -> dict[str, int]:
    return {f"k{number}": 1 for number in range(count)}


_LISTED: Final[Mapping[str, Callable[[], LargeJob]]] = {
    "20,000 questions": partial(_legal, "why? "),
    "20,000 questions in Greek": partial(_legal, "\u03c0\u03cc\u03c4\u03b5; "),
    "20,000 questions with emoji": partial(_legal, "why? \U0001f600 or why not, then? And what else? "),
    "900,000 tags": _legal_tags,
    "520,000 columns": _legal_columns,
    "100,000 executions chosen": _legal_retry,
    "5 million empty lists": partial(_filled, b"[],", "more than 1000000 values", questions=["HERE"]),
    "5 million empty objects": partial(_filled, b"{},", "more than 1000000 values", questions=["HERE"]),
    "3 million texts": partial(_filled, b'"ab",', "more than 1000000 values", questions=["HERE"]),
    "7.7 million numbers": partial(_filled, b"1,", "more than 1000000 values", metadata={"a": ["HERE"]}),
    "15 million brackets": partial(_filled, b"[", "more than 1000000 values", questions=["HERE"]),
    "one text": partial(_in_text, b"x", "at most 200000 characters"),
    "one text of backslashes": partial(_in_text, b"\\\\", "at most 200000 characters"),
    "one text of half pairs": partial(_in_text, b"\\ud83d", "half of a surrogate pair"),
    "a million keys": lambda: LargeJob(_written(questions=_questions(1), metadata=_keys(1_050_000)), "600000 keys"),
    "590,000 keys in a question": lambda: LargeJob(_written(questions=[_keys(590_000)]), "holds 590000 keys"),
    "590,000 keys of a job": lambda: LargeJob(_written(**_keys(590_000)), "besides questions"),
    "490,000 bad questions": lambda: LargeJob(_written(questions=[[]] * 490_000), "should be an object"),
    "490,000 bad models": lambda: LargeJob(_written(models=[{}] * 490_000), "besides questions"),
    "20,000 unknown keys": lambda: LargeJob(_written(questions=_questions(20_000, surprise=1)), "unknown key"),
    "keys given twice": lambda: LargeJob(
        _written(questions=_questions(20_000, metadata={"a": 1, "b": 2})).replace(b'"b":', b'"a":'), "is given twice"
    ),
    "970,000 numbers in metadata": lambda: LargeJob(
        _written(questions=_questions(1), metadata={"a": [1.5] * 970_000}), "bytes long"
    ),
    "not UTF-8": lambda: LargeJob(b'{"name":"' + b"\xff" * (MAX_JOB_BYTES - MARGIN_BYTES) + b'"}', "is not UTF-8"),
}
KINDS: Final = tuple(_LISTED)


def large_job(kind: str) -> LargeJob:
    """One of these jobs."""
    return _LISTED[kind]()


def large_jobs() -> Iterator[tuple[str, LargeJob]]:
    """All of them, one after the other: together they would fill the memory themselves."""
    for kind in KINDS:
        yield kind, large_job(kind)
