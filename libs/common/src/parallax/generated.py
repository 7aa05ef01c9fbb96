"""Documents that are made from the code and kept beside it in the repository."""

import sys
from pathlib import Path


def keep(arguments: list[str], text: str, *, source: str) -> int:
    """Write ``text`` to the file that the arguments name, or with ``--check`` see that it is there; the exit code."""
    path = Path(next(argument for argument in arguments if not argument.startswith("--")))
    if "--check" not in arguments:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{path} is not what {source}; run: make docs\n")
    return 1
