"""Where output goes: results on stdout, everything said on the way on stderr; plain lines without a terminal."""

import os
import sys

from pydantic import BaseModel
from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 160
"""Tables in files and pipes are not cut to the 80 columns of an assumed terminal."""


def stdout() -> Console:
    """The console of results. Honours ``NO_COLOR``; without a terminal there are no colours and no escapes."""
    return _console(error=False)


def stderr() -> Console:
    """The console of everything said on the way."""
    return _console(error=True)


def is_live(console: Console) -> bool:
    """Whether a view may be redrawn in place."""
    return console.is_terminal and not console.is_dumb_terminal


def print_json(answer: BaseModel) -> None:
    """An answer of the API as one line of JSON on stdout, in ASCII: what is hostile in it stays escaped."""
    sys.stdout.write(answer.model_dump_json(ensure_ascii=True) + "\n")


def _console(*, error: bool) -> Console:
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=error, markup=False, emoji=False, highlight=False, width=width, soft_wrap=False)
