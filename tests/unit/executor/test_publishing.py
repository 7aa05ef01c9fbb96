"""What an executor publishes again after a publish that failed."""

import pytest

from executor.publishing import left_to_publish
from parallax.contracts.messages import ExecutionFinished, ExecutionTask, WaitingTask
from parallax.contracts.outcomes import ErrorInfo
from parallax.errors import PoisonError, UnavailableError, UnconfirmedError, UnroutableError
from tests.fakes.executor_stage import task

HANDED_BACK: ExecutionTask = task("q1")
MOVED = WaitingTask.model_validate(dict(task("q2")))
FACT = ExecutionFinished.failed(
    task("q3"),
    ErrorInfo(error_class="server", code="http_500", message="broken", retryable=False),
    observed=True,
    completed_at=task().published_at,
)


@pytest.mark.parametrize("error", [UnavailableError("away"), PoisonError("too large")], ids=repr)
def test_everything_when_nothing_was_sent(error: Exception) -> None:
    assert left_to_publish([FACT, HANDED_BACK, MOVED], error) == ([FACT, HANDED_BACK, MOVED], [])


@pytest.mark.parametrize("error", [UnconfirmedError("confirm lost"), RuntimeError("a bug")], ids=repr)
def test_no_task_when_it_may_have_been_delivered(error: Exception) -> None:
    """A fact may be recorded twice, because the ledger takes the first one; a second task would be a second call."""
    assert left_to_publish([FACT, HANDED_BACK, MOVED], error) == ([FACT], [HANDED_BACK, MOVED])


def test_only_what_no_queue_took() -> None:
    assert left_to_publish([FACT, HANDED_BACK, MOVED], UnroutableError("no queue", [MOVED])) == ([MOVED], [])
