"""Keeps ``docs/openapi.json`` beside the code: ``python -m results.api.openapi docs/openapi.json`` writes it, and
``--check`` fails when the file is not current.
"""

import json
import sys
from pathlib import Path

from results.api.app import routed


def text() -> str:
    """The document as it stands in the repository."""
    return json.dumps(routed().openapi(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or check that it is current; 1 when it is not."""
    check = "--check" in arguments
    path = Path(next(argument for argument in arguments if not argument.startswith("--")))
    current = text()
    if not check:
        path.write_text(current, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == current:
        return 0
    sys.stderr.write(f"{path} is not what the API says; run: make docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
