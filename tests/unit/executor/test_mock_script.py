"""The script of ``parallax mock-endpoint``."""

from pathlib import Path

import pytest

from parallax.errors import InvalidInputError
from parallax_cli.mock_script import Script, Step, load_script


def test_a_script_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text("""
default: {text: "Hello.", delay_s: 1}
rules:
  - {contains: Paris, steps: [{status: 429, retry_after: "1"}, {text: "In France."}]}
""")
    script = load_script(path)
    assert script.default == Step(text="Hello.", delay_s=1.0)
    assert [step.status for step in script.rules[0].steps] == [429, 200]


def test_an_empty_file_is_the_default_script(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text("")
    assert load_script(path) == Script()


@pytest.mark.parametrize(
    "text", ["rules: 3", "unknown: 1", "default: {status: 99}", "rules: [{steps: []}]", "a: [", ":"]
)
def test_a_wrong_script_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=r"script\.yaml"):
        load_script(path)
