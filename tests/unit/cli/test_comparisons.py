"""A comparison on a terminal, and what a plan of a job promises."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from parallax.contracts.comparison import Comparison, Verdict
from parallax.contracts.job import JobSpec
from parallax_cli.comparisons import comparison_lines
from parallax_cli.planning import planned_power, power_lines
from tests.unit.comparison.test_engine import compare, drawn


def told(found: Comparison) -> str:
    return "\n".join(comparison_lines(found))


def spec(samples: int, **fields: object) -> JobSpec:
    questions = [{"id": f"q{n}", "text": "?"} for n in range(8)]
    document = {"name": "j", "questions": questions, "models": [{"id": "m"}], "regions": ["us", "eu"], **fields}
    return JobSpec.model_validate({**document, "samples": samples}, strict=False)


def test_headlines_come_first_and_every_pair_has_its_verdict() -> None:
    text = told(compare(*(drawn(i, 10, *(["cricket", "curry"] if i == 0 else [])) for i in range(4))))
    assert text.splitlines()[0] == "1 of 1 pairs differ."
    assert "model: a - b: differs" in text
    assert "    q0: wording " in text
    assert "b says: cricket, curry" in text
    assert "refused 0 of 40 (0 to 9 %)" in text


def test_no_control_character_reaches_the_terminal() -> None:
    found = compare(*(drawn(i, 10, "\x1b[31mcricket\u202e") for i in range(4)))
    assert found.pairs[0].verdict is Verdict.DIFFERS
    hostile = found.model_copy(update={"headlines": ("\x1b[2J\nnow",)})
    assert not {"\x1b", "\u202e"} & set(told(hostile))
    assert told(hostile).splitlines()[0] == "\\x1b[2J now"


def test_ids_are_not_broken_on_a_narrow_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False, highlight=False)
    found = compare(*(drawn(i, 10, "cricket") for i in range(4)))
    name = "a-model-with-a-very-long-name-" * 4
    pair = found.pairs[0].model_copy(update={"label": f"{name}: a - b"})
    for line in comparison_lines(found.model_copy(update={"pairs": (pair,)})):
        console.print(line, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    assert name in console.file.getvalue()


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (1, "1 sample a cell cannot tell a difference between regions from the model's own randomness; 2 would tell"),
        (3, "whether regions differ, but not on which question; 6 would"),
        (10, "10 samples a cell find, four times of five, a separation of 1.3 %, or 9.4 % refusals against none"),
        (10, "one more sample a cell: a separation of 1.2 %, or 8.5 % refusals against none, for 16 more calls"),
    ],
)
def test_a_plan_says_what_it_can_find(samples: int, said: str) -> None:
    assert said in "\n".join(power_lines(spec(samples), None))


def test_a_job_that_compares_nothing_promises_nothing() -> None:
    assert planned_power(spec(10, regions=["us"])) is None
    assert list(power_lines(spec(10, regions=["us"]), None)) == []


def test_nothing_loads_numpy_before_the_first_comparison() -> None:
    code = "import sys, results.api.app, parallax_cli.main; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
