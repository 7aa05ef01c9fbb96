"""Hostile text becomes safe before it is shown."""

import pytest

from parallax_cli.text import one_line, printable, spreadsheet_safe


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("a\rb", "a\\x0db"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("nul\x00", "nul\\x00"),
        ("kept\n\tas is: ä漢😀", "kept\n\tas is: ä漢😀"),
    ],
)
def test_control_characters_are_shown_not_sent(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


def test_one_line_is_one_line_and_cut() -> None:
    assert one_line("a\nb\u2028c \t d") == "a b\\u2028c d"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "|cmd", "%0a"])
def test_formulas_are_defused(text: str) -> None:
    assert spreadsheet_safe(text) == "'" + text


@pytest.mark.parametrize("text", ["", "plain", "a=1", "3 - 2", "été"])
def test_plain_cells_stay(text: str) -> None:
    assert spreadsheet_safe(text) == text
