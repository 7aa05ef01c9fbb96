"""A job file comes back as a job, or as everything that is wrong with it and where."""

import json
from pathlib import Path

import pytest

from parallax.catalog import load_catalog, offer_of
from parallax.contracts.intake import Offer
from parallax.contracts.job import MAX_JOB_BYTES, Barrier
from parallax.contracts.plan import batch_count, execution_count
from parallax_cli import examples
from parallax_cli.jobfile import InvalidJobFileError, load_job

OFFER = Offer(
    regions=frozenset({"us", "eu", "apac"}),
    models={"smollm2-135m": frozenset({"us", "eu", "apac"}), "us-only": frozenset({"us"})},
)
JOBFILES = Path(__file__).parent / "jobfiles"
SMALL = {
    "name": "small",
    "questions": [{"id": "q1", "text": "Why?"}],
    "models": [{"id": "smollm2-135m"}],
    "regions": ["us", "eu"],
}


def problems_of(path: Path) -> list[str]:
    with pytest.raises(InvalidJobFileError) as caught:
        load_job(path, OFFER)
    return [problem.text().replace(f"{path.parent}/", "") for problem in caught.value.problems]


def written(folder: Path, document: object, name: str = "job.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_every_problem_is_told_at_once() -> None:
    golden = (JOBFILES / "wrong.txt").read_text(encoding="utf-8")
    assert "\n".join(problems_of(JOBFILES / "wrong.yaml")) + "\n" == golden


def test_yaml_and_json_are_the_same_job(tmp_path: Path) -> None:
    as_yaml = """
name: small
questions: [{id: q1, text: "Why?"}]
models: [{id: smollm2-135m}]
regions: [us, eu]
"""
    assert load_job(written(tmp_path, as_yaml, "job.yaml"), OFFER) == load_job(written(tmp_path, SMALL), OFFER)


def test_questions_come_from_csv_beside_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "q.csv").write_bytes(
        b'\xef\xbb\xbfid,text,country\r\nq1,"Why, oh\r\nwhy?",de\r\n\r\nq2,"He said ""hi""",fr\r\n'
    )
    spec = load_job(written(tmp_path, {**SMALL, "questions": {"file": "sub/q.csv"}}), OFFER)
    assert [(q.id, q.text, q.metadata) for q in spec.questions] == [
        ("q1", "Why, oh\nwhy?", {"country": "de"}),
        ("q2", 'He said "hi"', {"country": "fr"}),
    ]


def test_questions_come_from_jsonl(tmp_path: Path) -> None:
    rows = '{"id": "q1", "text": "Why?", "difficulty": 3}\n\n{"id": "q2", "text": "line \\u2028 separator"}\n'
    (tmp_path / "q.jsonl").write_text(rows, encoding="utf-8")
    spec = load_job(written(tmp_path, {**SMALL, "questions": {"file": "q.jsonl"}}), OFFER)
    assert [(q.id, q.metadata) for q in spec.questions] == [("q1", {"difficulty": 3}), ("q2", {})]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("q.csv", "id,question\nq1,Why?\n", "q.csv:1: has no column text; its columns are 'id', 'question'"),
        ("q.csv", "id,text,id\nq1,Why?,q\n", "q.csv:1: names column 'id' twice"),
        ("q.csv", "id,text,\nq1,Why?,q\n", "q.csv:1: has a column without a name"),
        ("q.csv", 'id,text\nq1,"Why?\n', "q.csv:2: is not CSV: unexpected end of data"),
        ("q.csv", "", "q.csv:1: is empty; the first line must name the columns id,text"),
        ("q.csv", "id,text\n", "q.csv:1: holds no question"),
        ("q.csv", b"id,text\nq1,\xff\n", "q.csv:2: is not UTF-8 text"),
        ("q.txt", "id,text\n", "q.txt: is not a questions file; allowed: .csv, .jsonl"),
        ("q.jsonl", "{}\n", "q.jsonl:1: /id: is missing"),
        ("q.jsonl", "[]\n", "q.jsonl:1: is not a JSON object"),
        ("q.jsonl", '{"id": "a", "id": "b"}\n', "q.jsonl:1: is not JSON: key 'id' is given twice"),
        ("q.jsonl", '{"id": NaN}\n', "q.jsonl:1: is not JSON: NaN is not a JSON number"),
        ("q.jsonl", '{"id": \n', "q.jsonl:1: is not JSON: Expecting value at column 8"),
        ("q.jsonl", "[" * 100_000 + "\n", "q.jsonl:1: is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_a_bad_questions_file_is_told_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = problems_of(written(tmp_path, {**SMALL, "questions": {"file": name}}))
    assert problems[0].startswith(expected)
    assert not any("at least 1 item" in problem for problem in problems)


def test_one_bad_row_does_not_hide_the_next(tmp_path: Path) -> None:
    rows = "id,text\n" + "".join(f"q{n},Why?{',x' if n in (3, 5) else ''}\n" for n in range(8))
    (tmp_path / "q.csv").write_text(rows, encoding="utf-8")
    problems = problems_of(written(tmp_path, {**SMALL, "questions": {"file": "q.csv"}}))
    assert problems == [f"q.csv:{line}: has 3 fields; the header names 2" for line in (5, 7)]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("[", "job.json:1:2: is not JSON: Expecting value"),
        ("[]", "job.json:1: is not a job\n    allowed: a mapping with name, questions, models and regions"),
        ('{"name": "a", "name": "b"}', "job.json: is not JSON: key 'name' is given twice"),
        ("[" * 100_000, "job.json: is nested too deeply\n    allowed: at most 64 levels"),
        ({**SMALL, "questions": {"path": "x"}}, "job.json: /questions/path: unknown key\n    allowed: file"),
        ({**SMALL, "questions": {"file": "absent.csv"}}, "absent.csv: cannot be read: No such file or directory"),
        ({**SMALL, "questions": []}, "job.json: /questions: should hold at least 1 item"),
        ({**SMALL, "models": [{"id": "us-only"}]}, "job.json: /models/0: model 'us-only' does not run in eu"),
        ({**SMALL, "samples": 101}, "job.json: /samples: Input should be less than or equal to 100"),
    ],
)
def test_a_bad_document_is_told_with_its_path(tmp_path: Path, document: object, expected: str) -> None:
    assert problems_of(written(tmp_path, document))[0].startswith(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absent.yaml", "absent.yaml: cannot be read: No such file or directory"),
        ("job.toml", "job.toml: is not a job file\n    allowed: .yaml, .yml, .json"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, name: str, expected: str) -> None:
    assert problems_of(tmp_path / name) == [expected]


def test_the_packaged_examples_are_valid() -> None:
    offer = offer_of(load_catalog(examples.local_catalog_path()))
    demo = load_job(examples.path("demo.yaml"), offer)
    assert (len(demo.questions), batch_count(demo), execution_count(demo)) == (8, 8, 48)
    assert demo.barrier is Barrier.QUESTION
    assert execution_count(load_job(examples.path("starter.yaml"), offer)) == 12


def test_a_job_that_only_as_a_message_is_too_large_is_refused_here_already(tmp_path: Path) -> None:
    rows = [json.dumps({"id": f"q{index:05}", "text": "?" * 755}, separators=(",", ":")) for index in range(20_000)]
    questions = "\n".join(rows)
    assert len(questions) < MAX_JOB_BYTES, "as a file"
    (tmp_path / "questions.jsonl").write_text(questions)
    (problem,) = problems_of(written(tmp_path, {**SMALL, "questions": {"file": "questions.jsonl"}}))
    assert problem.startswith("job.json: the job as a message is ")
