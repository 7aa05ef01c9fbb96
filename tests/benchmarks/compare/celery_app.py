"""The same work as a Celery application: for each question a chord, whose body records it and starts the next.

Set up for the same durability as the others: quorum queues, persistent messages, publisher confirms, late
acknowledgement, rows committed before the next question starts. Tasks of a region go to that region's queue and
worker; the chord's body inserts the whole question with one statement. Runs in an environment of its own, which
holds nothing of Parallax.
"""

# mypy: disable-error-code=untyped-decorator
# Celery publishes no types, so its decorators have none.

import os
import threading
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
from celery import Celery, chord, signature
from kombu import Queue

from tests.benchmarks.compare.figures import BATCH_SIZE, REGIONS

QUORUM = {"x-queue-type": "quorum"}
RECORD_QUEUE = "bench-celery.record"
INSERT = (
    "INSERT INTO executions (job_id, question_index, cell, region, started_at, completed_at, fact)"
    " SELECT %s, %s, * FROM unnest(%s::int[], %s::text[], %s::timestamptz[], %s::timestamptz[], %s::text[])"
    " ON CONFLICT DO NOTHING"
)

TASK_BODY = "x" * int(os.environ.get("BENCH_TASK_BYTES", "0"))
FACT_BODY = "x" * int(os.environ.get("BENCH_FACT_BYTES", "0"))

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"], backend=os.environ["BENCH_REDIS_URL"])
app.conf.update(
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    result_expires=3600,
    task_acks_late=True,
    task_create_missing_queues=False,
    task_default_delivery_mode="persistent",
    task_default_queue=RECORD_QUEUE,
    task_queues=[
        Queue(name, routing_key=name, queue_arguments=QUORUM)
        for name in (RECORD_QUEUE, *(f"bench-celery.tasks.{region}" for region in REGIONS))
    ],
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)

_local = threading.local()


def _database() -> Any:
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["BENCH_DATABASE_URL"], autocommit=True)
    return _local.connection


@app.task(name="bench.execute")
def execute(cell: int, region: str, _body: str) -> list[Any]:
    """One execution against a model that answers at once."""
    started, completed = time.time(), time.time()
    return [cell, region, started, completed, FACT_BODY]


@app.task(name="bench.record", ignore_result=True)
def record(facts: list[list[Any]], job: str, question: int, questions: int) -> None:
    """Commit the facts of a question, then start the next one."""
    cells, regions, started, completed, bodies = map(list, zip(*facts, strict=True))
    moments = [[datetime.fromtimestamp(second, UTC) for second in column] for column in (started, completed)]
    _database().execute(INSERT, (job, question, cells, regions, *moments, bodies))
    if question + 1 < questions:
        ask(job, question + 1, questions)


@app.task(name="bench.start", ignore_result=True)
def start(job: str, questions: int) -> None:
    """Begin a job with its first question."""
    ask(job, 0, questions)


def ask(job: str, question: int, questions: int) -> None:
    """Send one question to every cell, with a chord around them."""
    header = [
        execute.s(cell, region, TASK_BODY).set(queue=f"bench-celery.tasks.{region}")
        for cell in range(BATCH_SIZE)
        for region in (REGIONS[cell % 3],)
    ]
    body = signature("bench.record", kwargs={"job": job, "question": question, "questions": questions})
    chord(header)(body.set(queue=RECORD_QUEUE))
