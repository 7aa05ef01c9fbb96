-- Those of some locked batches that are full. Of each that became so just now, the moment and an event are kept, after
-- the events that happened before in the same transaction (see append_events_v1).
CREATE OR REPLACE FUNCTION results.fill_batches_v1(sizes jsonb, moment timestamptz, happened jsonb)
RETURNS TABLE (
    job_id text, lane text, question_index integer, question_id text, expected integer, completed integer,
    failed integer, timed_out integer, cancelled integer, opened_at timestamptz, completed_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    filled jsonb;
BEGIN
    WITH fresh AS (
        UPDATE results.batches b SET completed_at = moment
        FROM jsonb_to_recordset(sizes) AS s (job_id text, lane text, question_index integer)
        WHERE (b.job_id, b.lane, b.question_index) = (s.job_id, s.lane, s.question_index)
            AND b.completed_at IS NULL AND b.recorded >= b.expected
        RETURNING b.job_id, b.lane, b.question_index, b.completed, b.failed, b.timed_out, b.cancelled
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'job_id', job_id, 'kind', 'batch.completed', 'at', moment, 'data', jsonb_build_object(
                   'kind', 'batch_completed', 'version', 1,
                   'batch', jsonb_build_object('job_id', job_id, 'lane', lane, 'question_index', question_index),
                   'counts', jsonb_build_object('completed', completed, 'failed', failed, 'timed_out', timed_out,
                                                'cancelled', cancelled)
           ))), '[]')
    INTO filled FROM fresh;

    happened := happened || filled;
    IF happened <> '[]' THEN
        PERFORM results.append_events_v1(happened);
    END IF;

    RETURN QUERY
        SELECT b.job_id, b.lane, b.question_index, b.question_id, b.expected, b.completed,
               b.failed, b.timed_out, b.cancelled, b.opened_at, b.completed_at
        FROM results.batches b
        JOIN jsonb_to_recordset(sizes) AS s (job_id text, lane text, question_index integer)
            ON (b.job_id, b.lane, b.question_index) = (s.job_id, s.lane, s.question_index)
        WHERE b.recorded >= b.expected;
END $$
