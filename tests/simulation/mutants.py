"""``python -m tests.simulation.mutants``: plant realistic mistakes, one at a time, and see each one caught.

A mutant is a small patch to a copy of the source. Most are given to the simulation, which has 200 seeds to catch
them; a few that only show when statements interleave, or inside one function, are given to the tests made for that.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
COMMON: Final = "libs/common/src/parallax"
DISPATCHER: Final = "services/dispatcher/src/dispatcher"
EXECUTOR: Final = "services/executor/src/executor"
RESULTS: Final = "services/results/src/results"
RECORD: Final = f"{RESULTS}/migrations/sql/record_v1.sql"
LOCK: Final = f"{RESULTS}/migrations/sql/lock_batches_v1.sql"
FILL: Final = f"{RESULTS}/migrations/sql/fill_batches_v1.sql"
SEEDS: Final = 200
TIMEOUT_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: replacements in one file, and the tests that must notice (the simulation when none are named)."""

    name: str
    file: str
    patch: tuple[tuple[str, str], ...]
    tests: tuple[str, ...] = ()


MUTANTS: Final = (
    Mutant(
        "submission: read before it is counted",
        f"{COMMON}/contracts/bounds.py",
        (("    size = measure(body)\n", "    size = Size(0, 0, 0)\n"),),
        ("tests/unit/contracts/test_bounds.py", "tests/unit/dispatcher/test_submission.py"),
    ),
    Mutant(
        "submission: a large one checked on the dispatcher's event loop",
        f"{DISPATCHER}/intake.py",
        (("        if not LARGE_BYTES < len(body) <= MAX_JOB_BYTES:\n", "        if body:\n"),),
        ("tests/integration/test_large_submissions.py::test_a_large_submission_stalls_no_other_job",),
    ),
    Mutant(
        "submission: a large one checked on the API's event loop",
        f"{RESULTS}/api/submitting.py",
        (("    if len(document) <= LARGE_BYTES:\n", "    if document:\n"),),
        ("tests/integration/test_large_submissions.py::test_a_large_request_stalls_no_other_request",),
    ),
    Mutant(
        "submission: what killed its worker is tried again",
        f"{DISPATCHER}/intake.py",
        (
            (
                '            return refused(job_id_in(body), [Problem(pointer="", message=str(error))])\n',
                "            raise RuntimeError from error\n",
            ),
        ),
        ("tests/integration/test_large_submissions.py::test_what_ends_a_worker_is_refused_and_never_given_to_another",),
    ),
    Mutant(
        "submission: all its questions in one statement",
        f"{DISPATCHER}/rows.py",
        (("PIECE_CHARS: Final = 256 * 1024\n", "PIECE_CHARS: Final = 256 * 1024 * 1024\n"),),
        ("tests/unit/dispatcher/test_submission.py",),
    ),
    Mutant(
        "submission: metadata of any size",
        f"{COMMON}/contracts/intake.py",
        (("    if size > MAX_METADATA_BYTES:\n", "    if size > MAX_METADATA_BYTES * 1_000:\n"),),
        ("tests/unit/contracts/test_checked_job.py",),
    ),
    Mutant(
        "submission: a problem for each of a million keys",
        f"{COMMON}/contracts/intake.py",
        (("    if len(item) > MAX_FIELDS or (", "    if ("),),
        ("tests/unit/contracts/test_checked_job.py",),
    ),
    Mutant(
        "submission: the last of two equal keys wins",
        f"{COMMON}/contracts/intake.py",
        (("        if len(members) != len(pairs) and ", "        if len(members) > len(pairs) and "),),
        ("tests/unit/contracts/test_checked_job.py",),
    ),
    Mutant(
        "submission: lists of jobs with all their metadata",
        f"{RESULTS}/api/queries/jobs.py",
        (("CASE WHEN {_LISTED} THEN metadata ELSE", "CASE WHEN true THEN metadata ELSE"),),
        ("tests/integration/test_large_submissions.py::test_lists_leave_out_large_metadata",),
    ),
    Mutant(
        "worker: as much memory as there is",
        f"{COMMON}/worker/__main__.py",
        (("    _limit_memory(memory_bytes)\n", ""),),
        ("tests/integration/test_worker.py",),
    ),
    Mutant(
        "worker: left alone when its document is given up",
        f"{COMMON}/worker/process.py",
        (("                process.kill()  # nothing", "                pass  # nothing"),),
        ("tests/integration/test_worker.py",),
    ),
    Mutant(
        "worker: outlives a killed parent",
        f"{COMMON}/worker/__main__.py",
        (("    faulthandler.dump_traceback_later(seconds + PATIENCE_S, exit=True)\n", ""),),
        ("tests/integration/test_worker.py",),
    ),
    Mutant(
        "worker: ended by the signal that stops the service",
        f"{COMMON}/worker/__main__.py",
        (("        signal.signal(number, signal.SIG_IGN)\n", "        pass\n"),),
        ("tests/integration/test_worker.py",),
    ),
    Mutant(
        "worker: any number of large documents at once",
        f"{COMMON}/worker/process.py",
        (("asyncio.Semaphore(1)", "asyncio.Semaphore(100)"),),
        ("tests/integration/test_worker.py",),
    ),
    Mutant(
        "worker: prints among its frames",
        f"{COMMON}/worker/__main__.py",
        (("    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())\n", ""),),
        ("tests/integration/test_worker.py",),
    ),
    Mutant(
        "a statement timeout counted as the message's fault",
        f"{COMMON}/db/engine.py",
        (('_REFUSES_DATA: Final = ("22", "23")', '_REFUSES_DATA: Final = ("22", "23", "57014")'),),
        ("tests/unit/runtime/test_db_errors.py",),
    ),
    Mutant(
        "a connection that got no answer given back to the pool",
        f"{COMMON}/db/engine.py",
        (("        context.is_disconnect = True\n", "        context.is_disconnect = context.is_disconnect\n"),),
        ("tests/integration/test_db_silence.py",),
    ),
    Mutant(
        "a silent probe waited for",
        f"{COMMON}/health.py",
        (("asyncio.wait(tasks.values(), timeout=self.limit_s)", "asyncio.wait(tasks.values())"),),
        ("tests/unit/runtime/test_health.py",),
    ),
    Mutant(
        "a process judged by the time that it was stopped",
        f"{COMMON}/watchdog.py",
        (("min(round_s, self._longest_round_s)", "round_s"),),
        ("tests/unit/runtime/test_watchdog.py",),
    ),
    Mutant(
        "facts taken again before they can be written",
        f"{RESULTS}/recorder.py",
        (("                await self._try(news)\n", ""),),
        ("tests/integration/test_results_refusals.py",),
    ),
    Mutant(
        "a submission published with its transaction open",
        f"{RESULTS}/api/submitting.py",
        (
            (
                "        known = None if fresh else await submissions.known(connection, job_id)\n",
                "        known = None if fresh else await submissions.known(connection, job_id)\n"
                "        await _publish(api, message)\n",
            ),
        ),
        ("tests/integration/test_api_actions.py",),
    ),
    Mutant(
        "facts acked before they are recorded",
        f"{RESULTS}/recorder.py",
        (
            (
                "        news = [each.news for each in held]\n",
                "        news = [each.news for each in held]\n"
                "        await _unless_stale(held[-1].delivery.ack(multiple=True))\n",
            ),
            (
                "        await _unless_stale(held[-1].delivery.ack(multiple=True))\n        self._moved",
                "        self._moved",
            ),
        ),
        ("tests/integration/test_results_recorder.py",),
    ),
    Mutant(
        "batch counter moved by every fact, not by every insert",
        RECORD,
        (
            ("        WHERE NOT e.observed AND excluded.observed\n            AND (e.lane", "        WHERE (e.lane"),
            (
                "sum((status = 'completed')::int - coalesce(replaced_status = 'completed', false)::int)",
                "sum((status = 'completed')::int)",
            ),
        ),
    ),
    Mutant(
        "replacement counted on top of what it replaces",
        RECORD,
        (
            (
                "sum((status = 'completed')::int - coalesce(replaced_status = 'completed', false)::int)",
                "sum((status = 'completed')::int)",
            ),
            (
                "sum((status = 'cancelled')::int - coalesce(replaced_status = 'cancelled', false)::int)",
                "sum((status = 'cancelled')::int)",
            ),
            (
                "sum((status = 'timed_out')::int - coalesce(replaced_status = 'timed_out', false)::int)",
                "sum((status = 'timed_out')::int)",
            ),
        ),
    ),
    Mutant(
        "batch rows locked in any order",
        LOCK,
        (('    ORDER BY s.job_id COLLATE "C", s.lane COLLATE "C", s.question_index\n', ""),),
        ("tests/integration/test_results_ledger.py",),
    ),
    Mutant(
        "batch rows not locked at all",
        LOCK,
        (("DO UPDATE SET expected = excluded.expected\n    WHERE false;", "DO NOTHING;"),),
        ("tests/integration/test_results_ledger.py", "tests/integration/test_results_closings.py"),
    ),
    Mutant(
        "completion signalled only when something was new",
        FILL,
        (
            (
                "        WHERE b.recorded >= b.expected;\n",
                "        WHERE b.recorded >= b.expected AND b.completed_at = moment;\n",
            ),
        ),
    ),
    Mutant(
        "batch called full one execution early",
        FILL,
        (("        WHERE b.recorded >= b.expected;\n", "        WHERE b.recorded >= b.expected - 1;\n"),),
    ),
    Mutant(
        "paid answers lost to synthetic facts",
        RECORD,
        (("        WHERE NOT e.observed AND excluded.observed\n", "        WHERE false\n"),),
        ("tests/integration/test_results_ledger.py",),
    ),
    Mutant(
        "the plan does not correct the size of a batch",
        LOCK,
        (("        AND s.planned AND b.expected <> s.expected;", "        AND false;"),),
        ("tests/integration/test_results_closings.py",),
    ),
    Mutant(
        "closing a batch forgets its counter",
        f"{RESULTS}/closings.py",
        (
            (
                "cancelled = cancelled + CASE WHEN :status = 'cancelled' THEN executions ELSE 0 END",
                "cancelled = cancelled",
            ),
        ),
    ),
    Mutant(
        "recorder dies of a stale delivery",
        f"{RESULTS}/recorder.py",
        (
            (
                '    except StaleDeliveryError:\n        log.info("delivery_went_stale", queue=FACTS.name)\n',
                "    except ZeroDivisionError:\n        pass\n",
            ),
        ),
    ),
    Mutant(
        "a job moves backwards in what users see",
        f"{RESULTS}/projection.py",
        (
            (
                "        not_started = excluded.not_started, finished_at = excluded.finished_at\n    WHERE j.outcome IS NULL\n",
                "        not_started = excluded.not_started, finished_at = NULL\n",
            ),
        ),
        ("tests/integration/test_results_projection.py",),
    ),
    Mutant(
        "fence not waited for",
        f"{COMMON}/bus/memory/bus.py",
        (("        await following.fenced.wait()\n", ""),),
    ),
    Mutant(
        "calls made while the cancellation stream is not read",
        f"{EXECUTOR}/execution.py",
        (
            ("                    while not self._around.fenced():\n", "                    while False:\n"),
            ("            if not self._around.fenced():  # lost", "            if False:  # lost"),
        ),
        ("tests/unit/executor", "tests/integration/test_executor_failures.py"),
    ),
    Mutant(
        "cancel forgets queued work",
        f"{EXECUTOR}/runner.py",
        (
            (
                "        elif task.batch.job_id in self.cancellations:\n            self._publisher.put(Parcel([delivery]))\n",
                "",
            ),
        ),
    ),
    Mutant(
        "cancel forgets running work",
        f"{EXECUTOR}/runner.py",
        (
            (
                "            if held.task.batch.job_id == job_id:\n                held.end(JobStopped(reason))\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "retries fall over to another region",
        f"{COMMON}/contracts/routing.py",
        (("key.format(region=message.region,", 'key.format(region="us" if message.sample else message.region,'),),
        ("tests/unit/contracts", "tests/simulation/test_simulation.py"),
    ),
    Mutant(
        "tasks of another region are run",
        f"{EXECUTOR}/runner.py",
        (("        if task.region != self._settings.region:\n", '        if task.region == "mars":\n'),),
        ("tests/unit/executor/test_execution_flow.py",),
    ),
    Mutant(
        "swap of the ack handle forgotten",
        f"{EXECUTOR}/runner.py",
        (("            held.deliveries.append(delivery)\n", "            pass\n"),),
    ),
    Mutant(
        "a redelivered task is run again beside the running one",
        f"{EXECUTOR}/runner.py",
        (
            (
                "        elif (held := self._held.get(task.execution_id)) is not None:\n            self._accept_again(held, delivery, from_waiting_queue=from_waiting_queue)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "task acked before its fact is published",
        f"{EXECUTOR}/publishing.py",
        (
            (
                "            await self._publish([message for _, message in made if message is not None])\n            for parcel, message in made:\n                await self._settle(parcel, message)\n",
                "            for parcel, message in made:\n                await self._settle(parcel, message)\n            await self._publish([message for _, message in made if message is not None])\n",
            ),
        ),
    ),
    Mutant(
        "more calls at once than the budget",
        f"{EXECUTOR}/runner.py",
        (
            ("Slots(settings.budget)", "Slots(settings.budget + 2)"),
            ("executions(region), prefetch=budget,", "executions(region), prefetch=budget + 2,"),
        ),
    ),
    Mutant(
        "tasks of a throttled model keep their place in the region's queue",
        f"{EXECUTOR}/runner.py",
        (("makes_room=len(self._models) > 1", "makes_room=False"),),
    ),
    Mutant(
        "tasks that wait for their model hold slots",
        f"{EXECUTOR}/admission.py",
        (
            (
                "        if not self.slots.free or (permit := self.breaker.admit(self.clock.monotonic())) is None:\n            return None\n        self.slots.free -= 1\n        return permit\n",
                "        if not self.slots.free:\n            return None\n        self.slots.free -= 1\n        return self.breaker.admit(self.clock.monotonic())\n",
            ),
        ),
        ("tests/unit/executor/test_admission.py",),
    ),
    Mutant(
        "a task of unknown outcome is published again",
        f"{EXECUTOR}/publishing.py",
        (
            (
                "    return [message for message in messages if not isinstance(message, ExecutionTask)], tasks\n",
                "    return list(messages), tasks\n",
            ),
        ),
        ("tests/unit/executor/test_publishing.py", "tests/unit/executor/test_fairness.py"),
    ),
    Mutant(
        "one attempt more than allowed",
        f"{EXECUTOR}/retry.py",
        (("    if burned >= max_attempts:\n", "    if burned > max_attempts:\n"),),
        ("tests/unit/executor/test_retry.py",),
    ),
    Mutant(
        "the wait for the next attempt may cross the deadline",
        f"{EXECUTOR}/retry.py",
        (("    if delay_s >= remaining_s:\n", "    if delay_s < 0:\n"),),
        ("tests/unit/executor/test_retry.py",),
    ),
    Mutant(
        "published before the commit",
        f"{DISPATCHER}/advancing.py",
        (
            (
                "            return {moved.job.job_id: moved for moved in await self._steps.take_all(work, taken)}\n",
                "            moves = await self._steps.take_all(work, taken)\n"
                "            for moved in moves:\n"
                "                await self._publisher.publish(moved.outgoing)\n"
                "            return {moved.job.job_id: moved for moved in moves}\n",
            ),
            (
                "        await self._publisher.publish(moved.outgoing)\n        return moved.ended\n",
                "        return moved.ended\n",
            ),
        ),
        ("tests/integration/test_dispatcher_openings.py",),
    ),
    Mutant(
        "a batch of unknown outcome published again",
        f"{DISPATCHER}/batches.py",
        (
            (
                '                self._leave(held, "unconfirmed", in_doubt=len(chunk), error=str(error))\n                return False\n',
                "                await self._clock.sleep(pause_s)\n",
            ),
        ),
    ),
    Mutant(
        "a lease that is not renewed",
        f"{DISPATCHER}/batches.py",
        (("        while self._clock.monotonic() - held.since_s > RENEW_AFTER_S:\n", "        while False:\n"),),
    ),
    Mutant(
        "a lease judged by the wall clock",
        f"{DISPATCHER}/leases.py",
        ((">= LEASE.total_seconds()", ">= 0"),),
        ("tests/unit/dispatcher/test_leases.py",),
    ),
    Mutant(
        "a batch renewed while it is inspected",
        f"{DISPATCHER}/progress/openings.py",
        (("    if batch.closing is not None or batch.fence is not None:\n", "    if batch.closing is not None:\n"),),
        ("tests/unit/dispatcher/test_progress_openings.py",),
    ),
    Mutant(
        "inspected without a fence",
        f"{RESULTS}/witnesses.py",
        (("    if not heard or any(each.answer is None for each in heard):\n", "    if not heard:\n"),),
    ),
    Mutant(
        "an answer to a fence forgets what has just left",
        f"{EXECUTOR}/holdings.py",
        (
            (
                "        found |= dict.fromkeys(left.execution_id for left in self._left if left.batch in batches)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "a late answer to an inspection is taken",
        f"{DISPATCHER}/progress/openings.py",
        (
            (
                "    if batch.fence is None or batch.fence.token != event.token:\n",
                "    if batch.fence is None and not event.missing:\n",
            ),
        ),
    ),
    Mutant(
        "a leaving executor answers fences",
        f"{EXECUTOR}/runner.py",
        (("        if self.stopping:\n            return ()\n", ""),),
        ("tests/unit/executor/test_fences.py",),
    ),
    Mutant(
        "a task handed back with an unknown outcome is handed back again",
        f"{EXECUTOR}/publishing.py",
        (("[message for message in messages if not isinstance(message, ExecutionTask)]", "messages"),),
    ),
    Mutant(
        "a large batch published at once",
        f"{DISPATCHER}/batches.py",
        (("default=0) > self._pace.direct\n", "default=0) > 1_000_000\n"),),
        ("tests/integration/test_dispatcher_openings.py",),
    ),
    Mutant(
        "the next completion of a job written together with the one before",
        f"{DISPATCHER}/advancing.py",
        (
            (
                "            of_job.setdefault(each.message.batch.job_id, each)\n",
                "            of_job[str(id(each))] = each\n",
            ),
            ("        of_job = {mine.message.batch.job_id: mine}\n", "        of_job = {str(id(mine)): mine}\n"),
        ),
        ("tests/integration/test_dispatcher_together.py",),
    ),
    Mutant(
        "a batch that never left keeps its numbers",
        f"{COMMON}/bus/amqp/confirm_batch.py",
        (("            channel.delivery_tag = before\n", ""),),
        ("tests/unit/bus/test_amqp_sending.py",),
    ),
    Mutant(
        "a consumer that was stopped while it was lost attaches again",
        f"{COMMON}/bus/amqp/states/queue_consumer.py",
        (
            (
                "        case Phase.LOST:\n            return replace(state, phase=Phase.STOPPED), (CancelPause(),)\n        case Phase.STOPPING | Phase.DRAINING | Phase.STOPPED | Phase.CLOSED:\n",
                "        case Phase.LOST | Phase.STOPPING | Phase.DRAINING | Phase.STOPPED | Phase.CLOSED:\n",
            ),
        ),
        ("tests/unit/bus/test_queue_consumer_states.py",),
    ),
    Mutant(
        "deliveries given back for ever after a cancellation that failed",
        f"{COMMON}/bus/amqp/states/queue_consumer.py",
        (
            (
                "(replace(state, phase=Phase.STOPPED), (Discard(),)) if state.phase is Phase.STOPPING",
                "(state, ()) if state.phase is Phase.STOPPING",
            ),
        ),
        ("tests/unit/bus/test_queue_consumer_states.py",),
    ),
    Mutant(
        "a publish that was given up stays in the socket",
        f"{COMMON}/bus/amqp/states/publish.py",
        (
            (
                "            return _fail(state, Failure.UNCONFIRMED, Abort())\n",
                "            return _fail(state, Failure.UNCONFIRMED)\n",
            ),
        ),
        ("tests/unit/bus/test_publish_states.py",),
    ),
    Mutant(
        "a group that was half delivered is called unsent",
        f"{COMMON}/bus/amqp/states/publish.py",
        (("Failure.UNCONFIRMED if state.delivered else Failure.UNSENT", "Failure.UNSENT"),),
        ("tests/unit/bus/test_publish_states.py",),
    ),
    Mutant(
        "published on a connection that the broker blocks",
        f"{COMMON}/bus/amqp/states/connection.py",
        (
            (
                "            return replace(state, phase=Phase.BLOCKED, reason=reason), ()\n",
                "            return replace(state, phase=Phase.LIVE, reason=reason), ()\n",
            ),
        ),
        ("tests/unit/bus/test_connection_states.py",),
    ),
    Mutant(
        "a stream that began again is read on from the old position",
        f"{COMMON}/bus/amqp/states/stream_consumer.py",
        (("if entry.offset == position.offset and entry.identity != position.identity:", "if entry.offset < 0:"),),
        ("tests/unit/bus/test_stream_consumer_states.py",),
    ),
    Mutant(
        "messages acked before they are handled",
        f"{COMMON}/bus/serve.py",
        (
            (
                "            await self._handler(delivery)\n",
                "            await delivery.ack()\n            await self._handler(delivery)\n",
            ),
            ("                await delivery.ack()\n                return\n\n", "                return\n\n"),
        ),
    ),
    Mutant(
        "a repeated completion advances the lane again",
        f"{DISPATCHER}/progress/machine.py",
        (
            (
                "    if batch is None or batch.index != event.index:\n        return job, ()\n",
                "    if batch is None:\n        return job, ()\n",
            ),
        ),
        ("tests/unit/dispatcher",),
    ),
    Mutant(
        "batch deadline measured from the start of the job",
        f"{DISPATCHER}/progress/machine.py",
        (
            (
                "deadline = min(now + job.rules.batch_deadline, job.deadline)",
                "deadline = min((job.started_at or now) + job.rules.batch_deadline, job.deadline)",
            ),
        ),
        ("tests/unit/dispatcher",),
    ),
    Mutant(
        "overdue batches are never closed",
        f"{DISPATCHER}/progress/machine.py",
        (
            (
                "        if batch.closing is None and now >= batch.deadline:\n",
                "        if batch.closing is None and now < batch.opened_at:\n",
            ),
        ),
        ("tests/unit/dispatcher",),
    ),
    Mutant(
        "results never asked again about a silent batch",
        f"{DISPATCHER}/progress/openings.py",
        (
            (
                "    silent = batch.asked_at <= event.asked_before and batch.asked_at < now\n",
                "    silent = False\n",
            ),
        ),
    ),
    Mutant(
        "an abandoned batch is never inspected",
        f"{DISPATCHER}/progress/openings.py",
        (("        due = lane in event.abandoned\n", "        due = False\n"),),
        ("tests/unit/dispatcher/test_progress_openings.py",),
    ),
    Mutant(
        "a stopped job is not announced to the executors",
        f"{DISPATCHER}/outgoing.py",
        (("            return [abort(step.job, step.now)]\n", "            return []\n"),),
    ),
    Mutant(
        "counts of completed batches forgotten",
        f"{DISPATCHER}/progress/machine.py",
        (("        tally=job.tally + event.tally,\n", "        tally=event.tally,\n"),),
    ),
    Mutant(
        "what a newer service adds to a message is refused",
        f"{COMMON}/contracts/messages.py",
        (('_ANY.validate_json(body, extra="ignore", context=READING)', "_ANY.validate_json(body, context=READING)"),),
        ("tests/unit/contracts/test_messages.py",),
    ),
    Mutant(
        "commands and facts of a newer version dropped like news",
        f"{COMMON}/bus/ignored.py",
        (("if queue.news and isinstance", "if isinstance"),),
        ("tests/contract/test_bus_serve.py",),
    ),
    Mutant(
        "a service starts on a schema that is behind",
        f"{COMMON}/db/migrations.py",
        (("    if current is None or current < needed:\n", "    if current is None:\n"),),
        ("tests/integration/test_db_migrations.py",),
    ),
    Mutant(
        "what an older version still uses is removed before the roll-out",
        f"{COMMON}/db/migrations.py",
        (
            (
                "    if phase is None or (fresh and phase is Phase.EXPAND):\n",
                "    if phase is None or phase is Phase.EXPAND:\n",
            ),
        ),
        ("tests/integration/test_db_migrations.py",),
    ),
    Mutant(
        "a revision waits for its lock with everybody else behind it",
        f"{COMMON}/db/migrations.py",
        (('f"SET lock_timeout = {LOCK_TIMEOUT_MS}"', '"SET lock_timeout = 0"'),),
        ("tests/integration/test_db_migrations.py",),
    ),
    Mutant(
        "two migrations at once",
        f"{COMMON}/db/migrations.py",
        (
            (
                '    while not (await connection.execute(_TRY_LOCK, {"schema": schema})).scalar_one():\n',
                "    while False:\n",
            ),
        ),
        ("tests/integration/test_db_migrations.py",),
    ),
    Mutant(
        "an index is built while nobody may write",
        f"{COMMON}/db/operations.py",
        (("CREATE INDEX CONCURRENTLY {name}", "CREATE INDEX {name}"),),
        ("tests/integration/test_db_migrations.py",),
    ),
    Mutant(
        "an index that was left unfinished is taken for built",
        f"{COMMON}/db/operations.py",
        (
            ("        if not valid:\n", "        if valid is None:\n"),
            ("        if valid is False:\n", "        if False:\n"),
        ),
        ("tests/integration/test_db_migrations.py",),
    ),
    Mutant(
        "a function returns the rows of a table as they are",
        FILL,
        (
            (
                "    job_id text, lane text, question_index integer, question_id text, expected integer, completed integer,\n    failed integer, timed_out integer, cancelled integer, opened_at timestamptz, completed_at timestamptz)\nLANGUAGE",
                "    b results.batches)\nLANGUAGE",
            ),
            (
                "        SELECT b.job_id, b.lane, b.question_index, b.question_id, b.expected, b.completed,\n               b.failed, b.timed_out, b.cancelled, b.opened_at, b.completed_at\n",
                "        SELECT b\n",
            ),
        ),
        ("tests/integration/test_newer_schema.py",),
    ),
    Mutant(
        "execution ids drawn at random",
        f"{COMMON}/contracts/ids.py",
        (
            (
                "    return uuid5(_EXECUTIONS, coordinates)\n",
                "    import uuid\n    return uuid.uuid4() if coordinates else _EXECUTIONS\n",
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    caught: bool
    by: str
    seconds: float


def try_mutant(mutant: Mutant, workers: int) -> Verdict:
    """Plant one mistake in a copy of the source and let its tests find it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parallax-mutant-") as folder:
        copy = plant(mutant, Path(folder))
        environment = {**os.environ, "PYTHONPATH": path_of(copy), "PYTHONHASHSEED": "0"}
        caught, by = run_tests(mutant, copy, environment) if mutant.tests else simulate(copy, environment, workers)
    return Verdict(mutant, caught, by, time.monotonic() - began)


def plant(mutant: Mutant, folder: Path) -> Path:
    """Copy what the tests need, and make the mistake."""
    for part in ("libs", "services", "tests", "deploy", "modal_deployment", "pyproject.toml"):
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            shutil.copy(source, folder / part)
    target = folder / mutant.file
    code = target.read_text(encoding="utf-8")
    for old, new in mutant.patch:
        if old not in code:
            raise SystemExit(f"mutant {mutant.name!r}: {mutant.file} no longer holds {old!r}")
        code = code.replace(old, new, 1) if old != new else code
    target.write_text(code, encoding="utf-8")
    return folder


def path_of(copy: Path) -> str:
    """The import path on which the copy comes before the installed packages."""
    members = [copy / "libs/common/src", *sorted((copy / "services").glob("*/src"))]
    return os.pathsep.join(map(str, [*members, copy]))


def simulate(copy: Path, environment: Mapping[str, str], workers: int) -> tuple[bool, str]:
    """Run seeds until one shows a violation."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", str(SEEDS), "--workers", str(workers), "--json"]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return True, "the simulation hangs"
    if done.returncode == 0:
        return False, f"survives {SEEDS} seeds"
    try:
        violations = json.loads(done.stdout.splitlines()[-1])["violations"]
    except (IndexError, ValueError, KeyError):
        return True, f"the simulation breaks: {done.stderr.strip().splitlines()[-1][:160] if done.stderr else ''}"
    seed, violation = next(iter(violations.items()))
    return True, f"seed {seed}: {violation}"


def run_tests(mutant: Mutant, copy: Path, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Run the tests that are made for this kind of mistake."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *mutant.tests]
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 1, failed[0].split(" - ")[0] if failed else done.stdout.strip().splitlines()[-1]


def main() -> int:
    """Try every mutant and print the table; fail when one survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--only", help="mutants whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only is None or options.only in mutant.name]
    survivors = 0
    for mutant in chosen:
        verdict = try_mutant(mutant, options.workers)
        survivors += not verdict.caught
        mark = "caught  " if verdict.caught else "SURVIVES"
        print(f"{mark} {verdict.seconds:6.1f} s  {mutant.name}\n                    {verdict.by[:200]}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
