"""The job that Parallax is given, and how large its messages are: the other contenders send as many bytes."""

from datetime import UTC, datetime
from typing import Final

from executor.endpoints.port import ModelAnswer
from parallax.catalog import Catalog, parse_catalog
from parallax.contracts.ids import execution_id
from parallax.contracts.job import JobSpec, ModelSelection, Parameters, Question
from parallax.contracts.messages import ExecutionFinished, ExecutionTask, encode
from parallax.contracts.outcomes import (
    Attempt,
    AttemptOutcome,
    ChatMessage,
    ExecutionStatus,
    Output,
    Receipt,
    Timings,
    Usage,
)
from parallax.contracts.plan import ALL_REGIONS_LANE, BatchRef
from tests.benchmarks.compare.figures import BATCH_SIZE, MODELS, REGIONS

QUESTION: Final = (
    "What is the most important invention in history, who made it, and what would the world be like without it? "
    "Answer in at most three sentences and name one source that a reader could look up."
)
SYSTEM_PROMPT: Final = "You are a helpful assistant based in {region_name}."
ANSWER: Final = ModelAnswer(
    text="The printing press, built by Johannes Gutenberg around 1450, made books cheap and knowledge durable. " * 3,
    finish_reason="stop",
    usage=Usage(prompt_tokens=58, completion_tokens=63),
    model_reported="instant",
)


def catalog(endpoint: str) -> Catalog:
    """Three regions and two models; every region calls the same endpoint."""
    regions = {name: {"name": f"region {name}", "endpoint": endpoint, "simulated": True} for name in REGIONS}
    models = {name: {"upstream": name, "regions": list(REGIONS)} for name in MODELS}
    return parse_catalog({"regions": regions, "models": models}, source="benchmark")


def job(questions: int) -> JobSpec:
    """Questions x 2 models x 3 regions."""
    return JobSpec(
        name="benchmark",
        questions=tuple(Question(id=f"q{index}", text=QUESTION) for index in range(questions)),
        models=tuple(ModelSelection(id=name) for name in MODELS),
        regions=REGIONS,
        system_prompt=SYSTEM_PROMPT,
        parameters=Parameters(temperature=0.0, max_tokens=64, seed=7),
    )


def message_sizes() -> tuple[int, int]:
    """Bytes of a task and of the fact that answers it."""
    now = datetime.now(UTC)
    task = ExecutionTask(
        execution_id=execution_id("benchmark-0", "q0", MODELS[0], "us", 0),
        batch=BatchRef(job_id="benchmark-0", lane=ALL_REGIONS_LANE, question_index=0),
        batch_size=BATCH_SIZE,
        question_id="q0",
        model_id=MODELS[0],
        model=MODELS[0],
        region="us",
        sample=0,
        messages=(
            ChatMessage(role="system", content=SYSTEM_PROMPT.format(region_name="region us")),
            ChatMessage(role="user", content=QUESTION),
        ),
        parameters=job(1).parameters,
        limits=job(1).limits,
        published_at=now,
        deadline_at=now,
    )
    fact = ExecutionFinished(
        **{name: getattr(task, name) for name in _SHARED},
        status=ExecutionStatus.COMPLETED,
        observed=True,
        output=Output(text=ANSWER.text),
        finish_reason=ANSWER.finish_reason,
        usage=ANSWER.usage,
        receipt=Receipt(
            prompt_sha256="0" * 64,
            output_sha256="0" * 64,
            model=task.model,
            model_requested=task.model,
            model_reported=ANSWER.model_reported,
            region_claimed=task.region,
            provider="instant",
            executor_id="us-benchmark-000000",
            parameters=task.parameters,
            timings=Timings(queue_s=0.001, first_byte_s=0.001, total_s=0.001),
            versions={"parallax": "0.1.0"},
        ),
        attempts=(Attempt(number=1, started_at=now, duration_s=0.001, outcome=AttemptOutcome.OK),),
        started_at=now,
        completed_at=now,
    )
    return len(encode(task)), len(encode(fact))


_SHARED: Final = (
    "execution_id", "batch", "batch_size", "question_id", "model_id", "model", "region", "sample", "messages",
)  # fmt: skip
