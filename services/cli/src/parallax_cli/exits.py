"""How a command ends: one table of exit codes, and the one place where errors become messages."""

import functools
import json
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

from parallax.contracts.outcomes import JobOutcome
from parallax.errors import InvalidInputError, InvalidJobError, UnavailableError
from parallax_cli.jobfile import InvalidJobFileError
from parallax_cli.text import printable

P = ParamSpec("P")
R = TypeVar("R")


class ExitCode(IntEnum):
    """What the shell gets to know."""

    DONE = 0
    INTERNAL_ERROR = 1
    INVALID_INPUT = 2
    BELOW_MIN_SUCCESS_RATE = 3
    UNREACHABLE = 4
    CANCELLED = 5
    DIFFERENCE = 6
    """Something differs, and ``--fail-on-difference`` asked to be told so."""
    INTERRUPTED = 130


def exit_code_of(outcome: JobOutcome) -> ExitCode:
    """The exit code of a command that waited for a job."""
    match outcome:
        case JobOutcome.COMPLETED:
            return ExitCode.DONE
        case JobOutcome.FAILED:
            return ExitCode.BELOW_MIN_SUCCESS_RATE
        case JobOutcome.CANCELLED:
            return ExitCode.CANCELLED


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn every error of a command into its message on stderr and its exit code.

    With ``--json`` the message is one JSON object on stdout, ``{"error": {"code": …, "problems": […]}}``.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json"))
        try:
            return command(*args, **kwargs)
        except InvalidInputError as error:
            _leave(ExitCode.INVALID_INPUT, error, as_json=as_json)
        except UnavailableError as error:
            _leave(ExitCode.UNREACHABLE, error, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of a pipe left: not worth a word
            raise typer.Exit(ExitCode.DONE) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it is a bug of ours
            traceback.print_exc()
            _leave(ExitCode.INTERNAL_ERROR, error, as_json=as_json)

    return run


def _leave(code: ExitCode, error: Exception, *, as_json: bool) -> NoReturn:
    if as_json:
        document = {"error": {"code": code.name.lower(), "message": str(error), "problems": _problems(error)}}
        typer.echo(json.dumps(document))
    else:
        for line in _lines(error, code):
            typer.echo(printable(line), err=True)
    raise typer.Exit(code)


def _lines(error: Exception, code: ExitCode) -> list[str]:
    lines = str(error).split("\n") or [type(error).__name__]
    if isinstance(error, InvalidJobFileError):
        count = len(error.problems)
        return [*lines, f"{count} problem{'' if count == 1 else 's'}; nothing was started"]
    if isinstance(error, InvalidJobError):
        return [f"{p.pointer or '/'}: {p.message}" + (f" (allowed: {p.allowed})" if p.allowed else "")
                for p in error.problems]  # fmt: skip
    if code is ExitCode.INTERNAL_ERROR:
        return [f"internal error: {type(error).__name__}: {lines[0]}"]
    return [f"error: {lines[0]}", *lines[1:]]


def _problems(error: Exception) -> list[dict[str, Any]]:
    if isinstance(error, InvalidJobFileError):
        return [{"file": p.file, "line": p.line or None, "column": p.column or None, "pointer": p.pointer,
                 "message": p.message, "allowed": p.allowed} for p in error.problems]  # fmt: skip
    if isinstance(error, InvalidJobError):
        return [p.model_dump() for p in error.problems]
    return []
