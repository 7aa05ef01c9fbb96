"""Keeps ``docs/openapi.json`` beside the code: ``python -m results.api.openapi docs/openapi.json`` writes it, and
``--check`` fails when the file is not current.
"""

import json
import sys

from parallax.generated import keep
from results.api.app import routed


def text() -> str:
    """The document as it stands in the repository."""
    return json.dumps(routed().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:], text(), source="the API says"))
