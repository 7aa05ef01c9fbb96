"""Text from models and users is hostile: how it becomes safe to show on a terminal or to open in a spreadsheet."""

import re
from typing import Final

_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1: terminal commands are made of these
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction overrides: what is shown is not what is there
    "\u2028\u2029\ufeff\ud800-\udfff]"  # separators that look like newlines, byte order mark, half characters
)
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
"""First characters that make a spreadsheet calculate, run a command or fetch something."""


def printable(text: str) -> str:
    """The text with every control character shown as an escape, newlines and tabs kept."""
    return _CONTROL.sub(_escape, text)


def one_line(text: str, width: int | None = None) -> str:
    """The text on one line, control characters shown as escapes, cut to ``width`` characters with an ellipsis."""
    flat = " ".join(printable(text).split())
    if width is not None and len(flat) > width:
        return flat[: max(width - 1, 0)] + "…"
    return flat


def spreadsheet_safe(text: str) -> str:
    """The text as a CSV cell that no spreadsheet takes for a formula: a quote in front of what looks like one."""
    return "'" + text if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
