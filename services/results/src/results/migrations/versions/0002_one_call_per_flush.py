"""What the writer does under the locks of its batches, as functions: one call, and one round trip, per flush.

Each statement of a function sees what was committed before that statement, not before the function: facts are
written on what the lock waited for.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Numbers the events of each job and stores them; data is kept as given. The rows of event_heads stay locked until
# the commit, in the order of job ids, so that numbers become visible in their order. Nobody who holds them may go
# on to lock a batch or a job.
_APPEND_EVENTS = """
CREATE FUNCTION results.append_events(happened results.events[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH incoming AS (
        SELECT e.job_id, e.kind, e.data, e.at, e.place
        FROM unnest(happened) WITH ORDINALITY AS e (job_id, number, kind, data, at, place)
    ), heads AS (
        INSERT INTO results.event_heads AS h (job_id, last)
        SELECT i.job_id, count(*) FROM incoming i GROUP BY i.job_id ORDER BY i.job_id COLLATE "C"
        ON CONFLICT (job_id) DO UPDATE SET last = h.last + excluded.last
        RETURNING h.job_id, h.last
    )
    INSERT INTO results.events (job_id, number, kind, data, at)
    SELECT i.job_id,
           h.last - count(*) OVER (PARTITION BY i.job_id)
               + row_number() OVER (PARTITION BY i.job_id ORDER BY i.place),
           i.kind, i.data, i.at
    FROM incoming i JOIN heads h USING (job_id);
END $$
"""

# Locks the rows of batches until the end of the transaction, in the order of their keys; those that are missing are
# made. Every transaction that writes facts of a batch begins here. sizes holds one object per batch: job_id, lane,
# question_index, question_id, expected, planned. Only a planned size replaces another one.
_LOCK_BATCHES = """
CREATE FUNCTION results.lock_batches(sizes jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO results.batches (job_id, lane, question_index, question_id, expected)
    SELECT s.job_id, s.lane, s.question_index, s.question_id, s.expected
    FROM jsonb_to_recordset(sizes) AS s (
        job_id text, lane text, question_index integer, question_id text, expected integer)
    ORDER BY s.job_id COLLATE "C", s.lane COLLATE "C", s.question_index
    ON CONFLICT (job_id, lane, question_index) DO UPDATE SET expected = excluded.expected
    WHERE false;  -- locks the row that is there, and leaves it as it is

    UPDATE results.batches b SET expected = s.expected
    FROM jsonb_to_recordset(sizes) AS s (
        job_id text, lane text, question_index integer, expected integer, planned boolean)
    WHERE (b.job_id, b.lane, b.question_index) = (s.job_id, s.lane, s.question_index)
        AND s.planned AND b.expected <> s.expected;
END $$
"""

# Those of some locked batches that are full. Of each that became so just now, the moment and an event are kept, after
# the events that happened before in the same transaction.
_FILL_BATCHES = """
CREATE FUNCTION results.fill_batches(sizes jsonb, moment timestamptz, happened results.events[])
RETURNS SETOF results.batches LANGUAGE plpgsql AS $$
DECLARE
    filled results.events[];
BEGIN
    WITH fresh AS (
        UPDATE results.batches b SET completed_at = moment
        FROM jsonb_to_recordset(sizes) AS s (job_id text, lane text, question_index integer)
        WHERE (b.job_id, b.lane, b.question_index) = (s.job_id, s.lane, s.question_index)
            AND b.completed_at IS NULL AND b.recorded >= b.expected
        RETURNING b.*
    )
    SELECT array_agg(ROW(job_id, 0, 'batch.completed', jsonb_build_object(
               'kind', 'batch_completed', 'version', 1,
               'batch', jsonb_build_object('job_id', job_id, 'lane', lane, 'question_index', question_index),
               'counts', jsonb_build_object('completed', completed, 'failed', failed, 'timed_out', timed_out,
                                            'cancelled', cancelled)
           ), moment)::results.events)
    INTO filled FROM fresh;

    happened := happened || filled;
    IF cardinality(happened) > 0 THEN
        PERFORM results.append_events(happened);
    END IF;

    RETURN QUERY
        SELECT b.* FROM results.batches b
        JOIN jsonb_to_recordset(sizes) AS s (job_id text, lane text, question_index integer)
            USING (job_id, lane, question_index)
        WHERE b.recorded >= b.expected;
END $$
"""

# Writes facts and openings of batches; returns every full batch among those that sizes names. The first fact of an
# execution wins, save that an observed one replaces a synthetic one; counters move by what was really written.
_RECORD = """
CREATE FUNCTION results.record(sizes jsonb, facts jsonb, openings jsonb, moment timestamptz)
RETURNS SETOF results.batches LANGUAGE plpgsql AS $$
DECLARE
    opened results.events[];
BEGIN
    PERFORM results.lock_batches(sizes);

    WITH written AS (
        INSERT INTO results.executions AS e (
            execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status,
            observed, provider_id, messages, output, finish_reason, usage, receipt, error, attempts, started_at,
            completed_at)
        SELECT f.execution_id, f.batch ->> 'job_id', f.batch ->> 'lane', (f.batch ->> 'question_index')::integer,
               f.question_id, f.model_id, f.model, f.region, f.sample, f.status, f.observed, f.provider_id,
               f.messages, f.output, f.finish_reason, f.usage, f.receipt, f.error, f.attempts, f.started_at,
               f.completed_at
        FROM jsonb_to_recordset(facts) AS f (
            execution_id uuid, batch jsonb, question_id text, model_id text, model text, region text,
            sample integer, status text, observed boolean, provider_id text, messages jsonb, output jsonb,
            finish_reason text, usage jsonb, receipt jsonb, error jsonb, attempts jsonb, started_at timestamptz,
            completed_at timestamptz)
        ON CONFLICT (execution_id) DO UPDATE SET
            replaced_status = e.status, observed = true, status = excluded.status, model = excluded.model,
            provider_id = excluded.provider_id, messages = excluded.messages, output = excluded.output,
            finish_reason = excluded.finish_reason, usage = excluded.usage, receipt = excluded.receipt,
            error = excluded.error, attempts = excluded.attempts, started_at = excluded.started_at,
            completed_at = excluded.completed_at, recorded_at = clock_timestamp()
        WHERE NOT e.observed AND excluded.observed
            AND (e.lane, e.question_index) = (excluded.lane, excluded.question_index)
        RETURNING e.job_id, e.lane, e.question_index, e.status, e.replaced_status
    ), moved AS (
        SELECT job_id, lane, question_index,
               sum((status = 'completed')::int - coalesce(replaced_status = 'completed', false)::int) AS completed,
               sum((status = 'failed')::int - coalesce(replaced_status = 'failed', false)::int) AS failed,
               sum((status = 'timed_out')::int - coalesce(replaced_status = 'timed_out', false)::int) AS timed_out,
               sum((status = 'cancelled')::int - coalesce(replaced_status = 'cancelled', false)::int) AS cancelled
        FROM written GROUP BY job_id, lane, question_index
    )
    UPDATE results.batches b SET
        completed = b.completed + m.completed, failed = b.failed + m.failed,
        timed_out = b.timed_out + m.timed_out, cancelled = b.cancelled + m.cancelled
    FROM moved m
    WHERE (b.job_id, b.lane, b.question_index) = (m.job_id, m.lane, m.question_index);

    WITH news AS (
        UPDATE results.batches b
        SET opened_at = (o.opening ->> 'opened_at')::timestamptz,
            deadline_at = (o.opening ->> 'deadline_at')::timestamptz,
            question = nullif(o.opening -> 'question', 'null')
        FROM jsonb_array_elements(openings) AS o (opening)
        WHERE b.job_id = o.opening -> 'batch' ->> 'job_id' AND b.lane = o.opening -> 'batch' ->> 'lane'
            AND b.question_index = (o.opening -> 'batch' ->> 'question_index')::integer
            AND b.opened_at IS NULL
        RETURNING b.job_id, b.opened_at, o.opening
    )
    SELECT array_agg(ROW(job_id, 0, 'batch.opened', opening - 'question', opened_at)::results.events)
    INTO opened FROM news;

    RETURN QUERY SELECT * FROM results.fill_batches(sizes, moment, opened);
END $$
"""

# Planned once for a connection, which more than halves the time of a small flush; and so that it does not matter how
# full the tables were then: every row is found by its key.
_PLANNED_ONCE = """
ALTER FUNCTION results.record SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
"""


def upgrade() -> None:
    """Create the functions."""
    for statement in (_APPEND_EVENTS, _LOCK_BATCHES, _FILL_BATCHES, _RECORD, _PLANNED_ONCE):
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    for function in ("record", "fill_batches", "lock_batches", "append_events"):
        op.execute(f"DROP FUNCTION results.{function}")
