"""Every way a command can end has its code and its message."""

import json

import pytest
import typer

from parallax.contracts.messages import Problem
from parallax.contracts.outcomes import JobOutcome
from parallax.errors import InvalidInputError, InvalidJobError, UnavailableError
from parallax_cli.exits import ExitCode, exit_code_of, guarded
from parallax_cli.jobfile import FileProblem, InvalidJobFileError

PROBLEM = FileProblem("job.yaml", 3, 7, "/regions/0", "unknown region '\x1b[2Jmars'", "us, eu")

SHOWN = """job.yaml:3:7: /regions/0: unknown region '\\x1b[2Jmars'
    allowed: us, eu
1 problem; nothing was started
"""


def ended_by(
    error: BaseException, capsys: pytest.CaptureFixture[str], *, as_json: bool = False
) -> tuple[int, str, str]:
    @guarded
    def command(*, as_json: bool) -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command(as_json=as_json)
    captured = capsys.readouterr()
    return caught.value.exit_code, captured.out, captured.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InvalidInputError("no such file"), 2, "error: no such file\n"),
        (InvalidJobError([Problem(pointer="/a", message="bad", allowed="good")]), 2, "/a: bad (allowed: good)\n"),
        (
            InvalidJobFileError([PROBLEM]),
            2,
            SHOWN,
        ),
        (UnavailableError("nobody there"), 4, "error: nobody there\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_have_codes_and_messages(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(error, capsys) == (code, "", said)


def test_a_bug_is_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended_by(ZeroDivisionError("oops"), capsys)
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert err.endswith("internal error: ZeroDivisionError: oops\n")


def test_machines_get_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended_by(InvalidJobFileError([PROBLEM]), capsys, as_json=True)
    assert (code, err) == (2, "")
    assert "\x1b" not in out
    error = json.loads(out)["error"]
    assert error["code"] == "invalid_input"
    assert error["problems"] == [
        {
            "file": "job.yaml",
            "line": 3,
            "column": 7,
            "pointer": "/regions/0",
            "message": "unknown region '\x1b[2Jmars'",
            "allowed": "us, eu",
        }
    ]


def test_outcomes_have_codes() -> None:
    assert [exit_code_of(outcome) for outcome in JobOutcome] == [
        ExitCode.DONE,
        ExitCode.BELOW_MIN_SUCCESS_RATE,
        ExitCode.CANCELLED,
    ]
    assert [code.value for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 130]
