"""Text as providers and users send it, made fit to be stored. Pure."""

import re
from typing import Final

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
"""PostgreSQL takes no NUL in text, and no lone surrogate is valid UTF-8: no message can carry one either."""


def clean(text: str) -> tuple[str, int]:
    """The text with every character no database stores replaced by U+FFFD, and how many there were."""
    return _UNSTORABLE.subn("\ufffd", text)


def storable(text: str) -> str:
    """The same where nobody counts: reasons, and what a provider says besides its answer."""
    return clean(text)[0]
