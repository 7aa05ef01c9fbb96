"""The job file: YAML or JSON on disk, checked as a whole, with the place of every problem.

Nothing is started and nothing raised at the first mistake: a file comes back either as a job or as the list of
everything that is wrong with it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from parallax.contracts.bounds import excess
from parallax.contracts.intake import MAX_PROBLEMS, Offer, check_job
from parallax.contracts.job import MAX_JOB_BYTES, JobSpec
from parallax.contracts.messages import Problem
from parallax.errors import InvalidInputError
from parallax_cli.questions import QuestionRows, read_questions, refuse_constant, unique_keys
from parallax_cli.yamldoc import Mark, read_yaml

FORMATS: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One thing that is wrong: file, line (0 when the whole file is meant), path in the document, what is allowed."""

    file: str
    line: int
    column: int
    pointer: str
    message: str
    allowed: str | None = None

    def text(self) -> str:
        """The problem on one line, as compilers write it, and what is allowed on the next."""
        place = self.file
        if self.line:
            place += f":{self.line}" + (f":{self.column}" if self.column else "")
        where = f"{self.pointer}: " if self.pointer else ""
        allowed = f"\n    allowed: {self.allowed}" if self.allowed else ""
        return f"{place}: {where}{self.message}{allowed}"


class InvalidJobFileError(InvalidInputError):
    """A job file that breaks rules; ``problems`` lists every one."""

    def __init__(self, problems: Iterable[FileProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.text() for problem in self.problems))


@dataclass(slots=True)
class _Source:
    """A document as it was read, and how to find the place of a pointer in it."""

    document: Any
    place: Callable[[list[str]], Mark | None]


def load_job(path: Path, offer: Offer) -> JobSpec:
    """The job in a file.

    Raises:
        InvalidJobFileError: With every problem of the job file and of the questions file it names.
    """
    name = str(path)
    source, problems = _read(path)
    if source is None:
        raise InvalidJobFileError(problems)
    rows, questions_name = _include_questions(source, path, name, problems)
    if rows is not None and rows.problems:
        problems.extend(FileProblem(questions_name, line, 0, "", message) for line, message in rows.problems)

    spec, found = check_job(source.document, offer)
    unread = rows is not None and not rows.questions
    for problem in found:
        if unread and problem.pointer == "/questions":
            continue  # the file it should have come from was already reported
        problems.append(_located(problem, source, name, rows, questions_name))
    if spec is not None and not problems:
        problems.extend(_too_large(spec, name))
    if spec is None or problems:
        problems.sort(key=lambda p: (p.file != name, p.line, p.column))
        raise InvalidJobFileError(problems[:MAX_PROBLEMS])
    return spec


def _read(path: Path) -> tuple[_Source | None, list[FileProblem]]:
    name = str(path)
    if path.suffix.lower() not in FORMATS:
        return None, [FileProblem(name, 0, 0, "", "is not a job file", ", ".join(FORMATS))]
    try:
        if path.stat().st_size > MAX_JOB_BYTES:
            return None, [FileProblem(name, 0, 0, "", f"is larger than {MAX_JOB_BYTES} bytes")]
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return None, [FileProblem(name, line, 0, "", "is not UTF-8 text")]
    except OSError as error:
        return None, [FileProblem(name, 0, 0, "", f"cannot be read: {error.strerror}")]
    source, problems = _parse_json(text, name) if path.suffix.lower() == ".json" else _parse_yaml(text, name)
    if source is not None and not isinstance(source.document, dict):
        return None, [FileProblem(name, 1, 0, "", "is not a job", "a mapping with name, questions, models and regions")]
    return source, problems


def _parse_yaml(text: str, name: str) -> tuple[_Source | None, list[FileProblem]]:
    node, found = read_yaml(text)
    problems = [FileProblem(name, p.mark.line, p.mark.column, "", p.message) for p in found]
    if node is None:
        return None, problems
    return _Source(node.data(), node.place), problems


def _parse_json(text: str, name: str) -> tuple[_Source | None, list[FileProblem]]:
    problem = excess(text.encode())
    if problem is not None:
        return None, [FileProblem(name, 0, 0, "", problem.message, problem.allowed)]
    try:
        document = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        return None, [FileProblem(name, error.lineno, error.colno, "", f"is not JSON: {error.msg}")]
    except (ValueError, RecursionError) as error:
        return None, [FileProblem(name, 0, 0, "", f"is not JSON: {error}")]
    return _Source(document, lambda _steps: None), []


def _include_questions(
    source: _Source, path: Path, name: str, problems: list[FileProblem]
) -> tuple[QuestionRows | None, str]:
    """Put the questions of ``questions: {file: …}`` into the document, in place of the reference."""
    reference = source.document.get("questions")
    if not isinstance(reference, dict):
        return None, name
    file = reference.get("file")
    for key in reference:
        if key != "file":
            mark = source.place(["questions", key]) or Mark(0, 0)
            problems.append(FileProblem(name, *mark, f"/questions/{key}", "unknown key", "file"))
    if not isinstance(file, str) or not file:
        mark = source.place(["questions"]) or Mark(0, 0)
        problems.append(
            FileProblem(name, *mark, "/questions", "names no file", "a list of questions, or {file: questions.csv}")
        )
        source.document["questions"] = []
        return QuestionRows(), name
    questions_path = path.parent / file
    rows = read_questions(questions_path)
    source.document["questions"] = rows.questions
    return rows, str(questions_path)


def _located(
    problem: Problem, source: _Source, name: str, rows: QuestionRows | None, questions_name: str
) -> FileProblem:
    steps = [step.replace("~1", "/").replace("~0", "~") for step in problem.pointer.split("/")[1:]]
    if rows is not None and len(steps) > 1 and steps[0] == "questions" and steps[1].isdigit():
        pointer = "".join("/" + step for step in steps[2:])
        message = _earlier_row(problem.message, rows)
        return FileProblem(questions_name, rows.lines[int(steps[1])], 0, pointer, message, problem.allowed)
    mark = source.place(steps) or Mark(0, 0)
    return FileProblem(name, *mark, problem.pointer, problem.message, problem.allowed)


def _earlier_row(message: str, rows: QuestionRows) -> str:
    """A message that points at another question, said in lines of the file instead of places in the document."""
    head, separator, tail = message.partition(" at /questions/")
    index = tail.split("/", 1)[0]
    if separator and index.isdigit() and int(index) < len(rows.lines):
        return f"{head} on line {rows.lines[int(index)]}"
    return message


def _too_large(spec: JobSpec, name: str) -> Iterable[FileProblem]:
    problem = excess(spec.model_dump_json().encode())
    if problem is not None:
        yield FileProblem(name, 0, 0, "", f"the job as a message {problem.message}", problem.allowed)
