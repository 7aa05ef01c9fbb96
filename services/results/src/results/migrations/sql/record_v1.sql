-- Writes facts and openings of batches; returns every full batch among those that sizes names. The first fact of an
-- execution wins, save that an observed one replaces a synthetic one; counters move by what was really written.
--
-- Each statement sees what was committed before that statement, not before the function: facts are written on what the
-- lock waited for. Planned once for a connection, which more than halves the time of a small flush; and so that it does
-- not matter how full the tables were then: every row is found by its key.
CREATE OR REPLACE FUNCTION results.record_v1(sizes jsonb, facts jsonb, openings jsonb, moment timestamptz)
RETURNS TABLE (
    job_id text, lane text, question_index integer, question_id text, expected integer, completed integer,
    failed integer, timed_out integer, cancelled integer, opened_at timestamptz, completed_at timestamptz)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    opened jsonb;
BEGIN
    PERFORM results.lock_batches_v1(sizes);

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
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'job_id', job_id, 'kind', 'batch.opened', 'at', opened_at, 'data', opening - 'question'
           )), '[]')
    INTO opened FROM news;

    RETURN QUERY SELECT f.* FROM results.fill_batches_v1(sizes, moment, opened) AS f;
END $$
