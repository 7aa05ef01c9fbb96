"""Which duplicate calls are explained, and by what."""

from uuid import UUID, uuid4

from tests.harness.duplicates import ACKED_S, TAKEN_S, Disturbance, Duplicate, ModelCall, duplicates, runs

ONE = uuid4()
A, B = "executor-us-0.1", "executor-us-1.1"


def call(executor: str, at: float, *, attempt: int = 1, failed: bool = False, aborted: bool = False) -> ModelCall:
    """A call that takes a second."""
    return ModelCall(
        region="us",
        execution_id=ONE,
        executor=executor,
        attempt=attempt,
        received_at=at,
        finished_at=None if aborted else at + 1,
        aborted_at=at + 1 if aborted else None,
        failed=failed,
    )


def loss(began_at: float, *replicas: str, seconds: float = 0.0, disconnects: bool = True) -> Disturbance:
    """A loss that strikes the named replicas, or all."""
    victims = frozenset(replicas) if replicas else None
    return Disturbance("cut", began_at, began_at + seconds, victims, disconnects)


def unexplained(
    calls: list[ModelCall], *disturbances: Disturbance, recorded: dict[UUID, tuple[str, float]] | None = None
) -> list[Duplicate]:
    return [each for each in duplicates(calls, disturbances, recorded or {}) if each.cause is None]


def test_one_call_is_no_duplicate() -> None:
    assert duplicates([call(A, 100)], [], {}) == []


def test_a_second_call_without_a_loss_is_unexplained() -> None:
    (found,) = unexplained([call(A, 100), call(B, 101)])
    assert (found.first.executor, found.again.executor) == (A, B)


def test_a_loss_between_the_calls_explains_the_second() -> None:
    (found,) = duplicates([call(A, 100), call(B, 110)], [loss(105, "executor-us-0")], {})
    assert found.cause is not None
    assert unexplained([call(A, 100), call(B, 110)], loss(105)) == [], "a cut of all strikes this one too"


def test_the_loss_of_somebody_else_explains_nothing() -> None:
    assert unexplained([call(A, 100), call(B, 110)], loss(105, "executor-eu-0", "dispatcher-0"))
    assert unexplained([call(A, 100), call(B, 110)], loss(105, "executor-us-1")), "it made the second call"


def test_what_breaks_no_connection_explains_nothing() -> None:
    assert unexplained([call(A, 100), call(B, 110)], loss(105, disconnects=False))


def test_a_loss_before_the_task_was_taken_or_after_the_second_call_explains_nothing() -> None:
    calls = [call(A, 100), call(B, 110)]
    assert unexplained(calls, loss(100 - TAKEN_S - 1, "executor-us-0"))
    assert unexplained(calls, loss(111, "executor-us-0"))


def test_a_loss_that_lasts_counts_while_it_lasts() -> None:
    calls = [call(A, 100), call(B, 110)]
    assert unexplained(calls, loss(60, "executor-us-0", seconds=39)) == []
    assert unexplained(calls, loss(60, "executor-us-0", seconds=30))


def test_a_loss_long_after_the_fact_was_recorded_explains_nothing() -> None:
    calls, late = [call(A, 100), call(B, 200)], loss(150, "executor-us-0")
    assert unexplained(calls, late) == [], "nobody knows when the first was done"
    assert unexplained(calls, late, recorded={ONE: (A, 102.0)})
    assert unexplained(calls, late, recorded={ONE: (A, 150.0 - ACKED_S + 1)}) == []
    assert unexplained(calls, late, recorded={ONE: (B, 201.0)}) == [], "the recorded fact is the second one's"


def test_a_loss_explains_one_duplicate_of_each_holder() -> None:
    calls = [call(A, 100), call(B, 110), call("executor-us-2.1", 120)]
    (found,) = unexplained(calls, loss(105, "executor-us-0"))
    assert found.again.executor == "executor-us-2.1"
    assert unexplained(calls, loss(105, "executor-us-0"), loss(115, "executor-us-1")) == []
    assert unexplained(calls, loss(105, "executor-us-0"), loss(106, "executor-us-0")) == [], "it was struck twice"


def test_an_executor_that_wakes_up_with_a_task_that_was_given_to_another() -> None:
    """The loss strikes who calls second: the task waited there, and its call came after the other's."""
    calls = [call(B, 130), call(A, 161)]
    assert unexplained(calls, loss(100, "executor-us-0", seconds=60)) == []
    assert unexplained([call(B, 90), call(A, 161)], loss(100, "executor-us-0", seconds=60)), "first called before it"


def test_retries_of_failed_calls_are_one_run() -> None:
    calls = [call(A, 100, failed=True), call(A, 102, attempt=2, aborted=True), call(A, 104, attempt=3)]
    assert len(runs(calls)) == 1
    assert duplicates(calls, [], {}) == []


def test_a_retry_of_a_call_that_was_answered_is_a_duplicate() -> None:
    assert len(unexplained([call(A, 100), call(A, 102, attempt=2)])) == 1


def test_the_same_attempt_twice_is_a_duplicate_even_if_it_failed() -> None:
    assert len(unexplained([call(A, 100, failed=True), call(A, 102)])) == 1


def test_a_retry_before_the_failed_call_ended_is_a_duplicate() -> None:
    assert len(unexplained([call(A, 100, failed=True), call(A, 100.5, attempt=2)])) == 1


def test_a_task_that_was_handed_back_goes_on_elsewhere() -> None:
    assert duplicates([call(A, 100, aborted=True), call(B, 102, attempt=2)], [], {}) == []


def test_each_retry_belongs_to_its_own_process() -> None:
    calls = [
        call(A, 100, failed=True),
        call(B, 100.5, failed=True),
        call(B, 102, attempt=2),
        call(A, 103, attempt=2),
    ]
    first, second = runs(calls)
    assert [each.executor for each in first.calls] == [A, A]
    assert [each.executor for each in second.calls] == [B, B]


def test_a_process_started_again_is_somebody_else() -> None:
    calls = [call(A, 100, failed=True), call("executor-us-0.2", 110)]
    assert len(runs(calls)) == 2
    assert unexplained(calls, loss(105, "executor-us-0")) == []
