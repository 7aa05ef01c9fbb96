"""One full sample of every message: every optional field is set, so that the golden files show every field."""

from datetime import UTC, datetime, timedelta

from parallax.contracts import messages as m
from parallax.contracts import outcomes as o
from parallax.contracts.heartbeat import ExecutorHeartbeat, FenceReading, RunningExecution
from parallax.contracts.ids import execution_id
from parallax.contracts.job import (
    Barrier,
    ExecutionRef,
    JobSpec,
    Limits,
    ModelSelection,
    Parameters,
    Question,
    StopRule,
)
from parallax.contracts.plan import BatchPlan, BatchRef, Cell, JobPlan

NOW = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)
JOB = JobSpec(
    name="bias-detection",
    questions=(
        Question(
            id="greatest-invention",
            text="What is the most important invention in history?",
            tags=("cultural",),
            metadata={"source": "survey", "weight": 2, "nested": {"list": [1, None, True]}},
        ),
    ),
    models=(
        ModelSelection(
            id="smollm2-greedy",
            model="smollm2-135m",
            parameters=Parameters(temperature=0.0, stop=("\n\n",)),
            regions=("us", "eu"),
        ),
    ),
    regions=("us", "eu", "apac"),
    system_prompt="You are a helpful assistant based in {region_name}.",
    parameters=Parameters(
        temperature=0.7, top_p=0.9, max_tokens=64, seed=7, presence_penalty=0.5, frequency_penalty=-0.5
    ),
    samples=2,
    barrier=Barrier.REGION,
    limits=Limits(first_byte_timeout_s=30.0),
    min_success_rate=0.67,
    stop_when=StopRule(failure_rate=0.5, after_batches=2),
    only=(ExecutionRef(question_id="greatest-invention", model_id="smollm2-greedy", region="eu", sample=1),),
    retry_of="bias-0",
    metadata={"team": "tokyo · 東京"},
)
BATCH = BatchRef(job_id="bias-1", lane="eu", question_index=3)
PLAN = BatchPlan(ref=BATCH, question_id="greatest-invention", cells=(Cell("smollm2-greedy", "eu", 1),))
EXECUTION = execution_id("bias-1", "greatest-invention", "smollm2-greedy", "eu", 1)
PROMPT = (
    o.ChatMessage(role="system", content="You are a helpful assistant based in the European Union."),
    o.ChatMessage(role="user", content="What is the most important invention in history?"),
)
ERROR = o.ErrorInfo(error_class="timeout", code="attempt_timeout", message="no answer after 120 s", retryable=True)
ATTEMPT = o.Attempt(
    number=1,
    started_at=NOW,
    duration_s=120.0,
    outcome=o.AttemptOutcome.TIMED_OUT,
    http_status=200,
    error=ERROR,
    provider_call_id="fc-1",
)
RECEIPT = o.Receipt(
    prompt_sha256="00" * 32,
    output_sha256="11" * 32,
    model="smollm2-135m",
    model_requested="smollm2-135m",
    model_reported="SmolLM2-135M-Instruct",
    model_revision="main",
    region_claimed="eu",
    region_observed="eu",
    provider="modal",
    executor_id="eu-1",
    parameters=Parameters(temperature=0.0),
    timings=o.Timings(queue_s=0.5, first_byte_s=0.1, total_s=1.5, provider={"predicted_ms": 900.5}),
    versions={"parallax": "0.1.0"},
    replaced_characters=1,
)
REASON = o.Reason(code="cancelled", message="cancelled by user")

SAMPLES: tuple[m.ReceivedMessage, ...] = (
    m.SubmitJob(job_id="bias-1", job=JOB, submitted_at=NOW),
    m.CancelJob(job_id="bias-1", reason="too expensive", requested_at=NOW),
    m.ExecutionTask(
        execution_id=EXECUTION,
        batch=BATCH,
        batch_size=1,
        question_id="greatest-invention",
        model_id="smollm2-greedy",
        model="smollm2-135m",
        region="eu",
        sample=1,
        messages=PROMPT,
        parameters=Parameters(temperature=0.0, seed=8),
        limits=Limits(),
        published_at=NOW,
        deadline_at=NOW + timedelta(hours=1),
        prior_attempts=(ATTEMPT,),
    ),
    m.CloseBatch(batch=PLAN, status=o.ExecutionStatus.TIMED_OUT, error=ERROR, closed_at=NOW),
    m.InspectBatch(batch=PLAN, token="round-7"),
    m.ExecutionFinished(
        execution_id=EXECUTION,
        batch=BATCH,
        batch_size=1,
        question_id="greatest-invention",
        model_id="smollm2-greedy",
        model="smollm2-135m",
        region="eu",
        sample=1,
        status=o.ExecutionStatus.COMPLETED,
        observed=True,
        provider_id="fc-2",
        messages=PROMPT,
        output=o.Output(text="The wheel.", refusal="none"),
        finish_reason="stop",
        usage=o.Usage(prompt_tokens=30, completion_tokens=4),
        receipt=RECEIPT,
        error=ERROR,
        attempts=(ATTEMPT,),
        started_at=NOW,
        completed_at=NOW + timedelta(seconds=2),
    ),
    m.BatchCompleted(batch=BATCH, counts=o.Counts(completed=1, failed=2, timed_out=3, cancelled=4)),
    m.BatchIncomplete(
        batch=BATCH, recorded=4, running=1, missing=(Cell("smollm2-greedy", "eu", 1),), token="round-7", undecided=2
    ),
    m.JobAccepted(
        job_id="bias-1",
        name="bias-detection",
        job={"name": "bias-detection"},
        plan=JobPlan.of(JOB),
        questions=1,
        batches=1,
        executions=1,
        accepted_at=NOW,
        retry_of="bias-0",
    ),
    m.JobRejected(
        job_id="bias-1",
        reason=o.Reason(code="invalid", message="1 problem"),
        problems=(m.Problem(pointer="/regions/0", message="unknown region 'mars'", allowed="apac, eu, us"),),
        rejected_at=NOW,
    ),
    m.JobStarted(job_id="bias-1", started_at=NOW),
    m.BatchOpened(
        batch=BATCH,
        question_id="greatest-invention",
        question=JOB.questions[0],
        executions=1,
        opened_at=NOW,
        deadline_at=NOW + timedelta(hours=1),
    ),
    m.JobCancelled(job_id="bias-1", reason=REASON, cancelled_at=NOW),
    m.JobFinished(
        job_id="bias-1",
        outcome=o.JobOutcome.CANCELLED,
        reason=REASON,
        counts=o.Counts(completed=1),
        not_started=5,
        finished_at=NOW,
    ),
    ExecutorHeartbeat(
        executor_id="eu-1",
        region="eu",
        budget=10,
        running=(
            RunningExecution(
                execution_id=EXECUTION,
                job_id="bias-1",
                question_id="greatest-invention",
                model_id="smollm2-greedy",
                since=NOW,
            ),
        ),
        models=("smollm2-135m",),
        endpoint_state="ready",
        last_error="connection refused",
        started_at=NOW,
        sent_at=NOW,
        stopping=True,
        fences=(FenceReading(token="round-7", executions=(EXECUTION,)),),
    ),
    m.InspectionFence(token="round-7", regions=("eu",), batches=(BATCH,)),
    m.FenceMarker(token="t-1"),
)
