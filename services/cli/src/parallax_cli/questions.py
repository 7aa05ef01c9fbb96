"""Questions from a file beside the job file: CSV with a header, or one JSON object per line.

Columns ``id`` and ``text`` are required; every other column is kept as the question's metadata. A row that cannot
be read is reported with its line and the others are read all the same, so that one run tells everything.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from parallax.contracts.job import MAX_JOB_BYTES, MAX_QUESTION_CHARS, MAX_QUESTIONS

REQUIRED: Final = ("id", "text")
CHOICE_SEPARATOR: Final = "|"
"""Between the choices in a column of a CSV file."""
FORMATS: Final = (".csv", ".jsonl")
MAX_FIELD_CHARS: Final = 2 * MAX_QUESTION_CHARS
"""One CSV field: above the limit of a question, so that a long one gets the problem that names that limit."""


@dataclass(slots=True)
class QuestionRows:
    """What a file holds: the questions as plain data, the line of each, and what is wrong with it."""

    questions: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, row: dict[str, Any]) -> None:
        """Keep a row as a question."""
        closed = _closed(row.get("choices"), row.get("expected"))
        metadata = {key: value for key, value in row.items() if key not in REQUIRED and key not in closed}
        question: dict[str, Any] = {key: row[key] for key in REQUIRED if key in row} | closed
        if metadata:
            question["metadata"] = metadata
        self.questions.append(question)
        self.lines.append(line)


def _closed(choices: object, expected: object) -> dict[str, Any]:
    """The keys of a closed question. Without choices there is none, and ``expected`` is metadata like any other."""
    if isinstance(choices, str):
        choices = [choice.strip() for choice in choices.split(CHOICE_SEPARATOR) if choice.strip()]
    if not isinstance(choices, list) or not choices:
        return {}
    return {"choices": choices} | ({"expected": expected} if expected not in ("", None) else {})


def read_questions(path: Path) -> QuestionRows:
    """Read every question of a file; nothing is raised, whatever is wrong is in ``problems``."""
    rows = QuestionRows()
    if path.suffix.lower() not in FORMATS:
        rows.problems.append((0, f"is not a questions file; allowed: {', '.join(FORMATS)}"))
        return rows
    text = _text_of(path, rows)
    if text is None:
        return rows
    read = _read_csv if path.suffix.lower() == ".csv" else _read_jsonl
    read(text, rows)
    if not rows.questions and not rows.problems:
        rows.problems.append((1, "holds no question"))
    return rows


def _text_of(path: Path, rows: QuestionRows) -> str | None:
    try:
        if path.stat().st_size > MAX_JOB_BYTES:
            rows.problems.append((0, f"is larger than {MAX_JOB_BYTES} bytes"))
            return None
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        rows.problems.append((line, "is not UTF-8 text"))
    except OSError as error:
        rows.problems.append((0, f"cannot be read: {error.strerror}"))
    return None


def _read_csv(text: str, rows: QuestionRows) -> None:
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for line, record in _records(reader):
            if header is None:
                header = [name.strip() for name in record]
                if not _check_header(header, line, rows):
                    return
            elif record:
                _csv_row(header, record, line, rows)
            if len(rows.questions) > MAX_QUESTIONS:
                rows.problems.append((line, f"holds more than {MAX_QUESTIONS} questions"))
                return
    except csv.Error as error:
        rows.problems.append((reader.line_num, f"is not CSV: {error}"))
    if header is None:
        rows.problems.append((1, "is empty; the first line must name the columns id,text"))


def _records(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Every record with the line it starts on: a quoted field may span several lines."""
    line = 1
    for record in reader:
        yield line, record
        line = reader.line_num + 1


def _check_header(header: list[str], line: int, rows: QuestionRows) -> bool:
    named = ", ".join(repr(name)[:60] for name in header)
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        rows.problems.append((line, f"has no column {' and '.join(missing)}; its columns are {named[:500]}"))
    for name in sorted({name for name in header if header.count(name) > 1 and name}):
        rows.problems.append((line, f"names column {name!r:.100} twice"))
    if "" in header:
        rows.problems.append((line, "has a column without a name"))
    return not rows.problems


def _csv_row(header: list[str], record: list[str], line: int, rows: QuestionRows) -> None:
    if len(record) != len(header):
        rows.problems.append((line, f"has {len(record)} fields; the header names {len(header)}"))
        return
    rows.add(line, dict(zip(header, record, strict=True)))


def _read_jsonl(text: str, rows: QuestionRows) -> None:
    for line, source in enumerate(text.split("\n"), start=1):
        if not source.strip():
            continue
        try:
            row = json.loads(source, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
        except json.JSONDecodeError as error:
            rows.problems.append((line, f"is not JSON: {error.msg} at column {error.colno}"))
            continue
        except (ValueError, RecursionError) as error:
            rows.problems.append((line, f"is not JSON: {error}"))
            continue
        if not isinstance(row, dict):
            rows.problems.append((line, "is not a JSON object"))
            continue
        rows.add(line, row)
        if len(rows.questions) > MAX_QUESTIONS:
            rows.problems.append((line, f"holds more than {MAX_QUESTIONS} questions"))
            return


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's members; for ``json.loads``.

    Raises:
        ValueError: A key is given twice.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r:.100} is given twice")
    return members


def refuse_constant(name: str) -> float:
    """For ``json.loads``: NaN and the infinities are not JSON.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not a JSON number")
