"""Every command that documents, compose file and Makefile tell people to type exists, with its options."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from parallax_cli.main import app

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for pattern in (
        "README.md", "docs/**/*.md", "docker-compose.yml", "Makefile", "deploy/**/*", ".ci/*", "modal_deployment/*.py",
        "services/cli/src/parallax_cli/examples/*.yaml",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)  # fmt: skip
TYPED = re.compile(
    r"(?:^\s*(?:\d+\s+)?(?:\$ |# *|@?\$\(BIN\)/)?(?:[A-Z_]+=\S+ )*|`(?:[A-Z_]+=\S+\s)*|results |\[)"
    r"(parallax|make|python -m|python, -m,)[ ,]+([a-z][^`\]#|)\n]*)",
    re.MULTILINE,
)
"""At the start of a line of code, behind a prompt, or between backticks."""


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Page, program and words of everything typed."""
    for path in PAGES:
        for program, rest in TYPED.findall(path.read_text(encoding="utf-8")):
            words = shlex.split(rest.replace(", ", " ").replace("[", ""))
            yield str(path.relative_to(ROOT)), program.replace(",", ""), words


def typed(program: str) -> list[tuple[str, list[str]]]:
    return [(page, words) for page, name, words in commands() if name == program and words]


def problem(words: list[str]) -> str | None:
    """What is wrong with the words behind ``parallax``."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while (below := getattr(command, "commands", None)) is not None and rest:
        name = rest.pop(0)
        if name not in below:
            return f"no command {name!r}"
        command = below[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word.split("=")[0] for word in rest if word.startswith("-") and word.split("=")[0] not in known]
    return f"{command.name}: no option {unknown[0]}" if unknown else None


def test_the_pages_are_found() -> None:
    assert len(typed("parallax")) > 25
    assert len(typed("make")) > 10
    assert len(typed("python -m")) > 8


@pytest.mark.parametrize(("page", "words"), typed("parallax"), ids=str)
def test_every_command_exists(page: str, words: list[str]) -> None:
    assert problem(words) is None, page


@pytest.mark.parametrize(("page", "words"), typed("make"), ids=str)
def test_every_target_exists(page: str, words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words[0] in targets, page


@pytest.mark.parametrize(("page", "words"), typed("python -m"), ids=str)
def test_every_module_exists(page: str, words: list[str]) -> None:
    assert importlib.util.find_spec(words[0]) is not None, page


@pytest.mark.parametrize("words", [["no-such-command"], ["run", "--no-such-option"], ["keys", "forge"]])
def test_what_does_not_exist_is_noticed(words: list[str]) -> None:
    assert problem(words) is not None
