"""Jobs with answers of known difference in the ledger, to be compared."""

import random
from collections.abc import Callable
from typing import Any

from parallax.contracts.messages import ExecutionFinished
from parallax.contracts.outcomes import ExecutionStatus, Output
from parallax.contracts.plan import Cell
from tests.fakes import facts
from tests.integration.api_stage import Stage, job_document

WORDS = ("tea", "coffee", "milk", "bread", "rice", "eggs", "beans", "fruit", "toast", "soup", "cheese", "honey")
Says = Callable[[random.Random, int, Cell], str | None]
"""What a cell says to a question; ``None`` fails."""


def ordinary(draw: random.Random, *extra: str) -> str:
    """An answer like any other, with more words where they are given."""
    return " ".join([*draw.choices(WORDS, k=8), *extra])


def cricket_in_apac(draw: random.Random, index: int, cell: Cell) -> str | None:
    """On the first question of each four, apac speaks of something else."""
    return ordinary(draw, *(["cricket", "curry", "chutney"] if cell.region == "apac" and index % 4 == 0 else []))


def document(questions: int = 4, samples: int = 8, **changes: Any) -> dict[str, Any]:
    """A job of one model in three regions."""
    fields: dict[str, Any] = {"models": [{"id": "model-0", "model": "smollm2-135m"}], "samples": samples, **changes}
    return job_document(questions, **fields)


async def answered(  # noqa: PLR0917 - what a job is made of
    stage: Stage, job_id: str, wanted: dict[str, Any], says: Says = cricket_in_apac, opened: int | None = None,
    prompt: str = "00",
) -> None:  # fmt: skip
    """A job whose first ``opened`` questions (or all) are answered; with all of them it has ended."""
    spec = await stage.accept(job_id, wanted)
    count = len(spec.questions) if opened is None else opened
    for index in range(count):
        batch = await stage.open(job_id, spec, index)
        draw = random.Random(f"{job_id} {index}")
        made = []
        for cell in batch.cells:
            text = says(draw, index, cell)
            if text is None:
                made.append(facts.ended(batch, cell, ExecutionStatus.FAILED, seen=True))
            else:
                made.append(with_prompt(facts.observed(batch, cell, text=text), prompt))
        await stage.store(made)
    if opened is None:
        await stage.finish(job_id)


def with_prompt(fact: ExecutionFinished, prompt: str) -> ExecutionFinished:
    """The fact, with a hash of its prompt."""
    assert fact.receipt is not None
    return fact.model_copy(update={"receipt": fact.receipt.model_copy(update={"prompt_sha256": prompt * 32})})


def with_output(fact: ExecutionFinished, text: str, refusal: str | None, reason: str | None) -> ExecutionFinished:
    """The fact, ended so."""
    return fact.model_copy(update={"output": Output(text=text, refusal=refusal), "finish_reason": reason})
