-- Numbers the events of each job and stores them. happened holds one object per event: job_id, kind, data, at. The rows
-- of event_heads stay locked until the commit, in the order of job ids, so that numbers become visible in their order.
-- Nobody who holds them may go on to lock a batch or a job.
CREATE OR REPLACE FUNCTION results.append_events_v1(happened jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH incoming AS (
        SELECT e.job_id, e.kind, e.data, e.at, e.place
        FROM ROWS FROM (
            jsonb_to_recordset(happened) AS (job_id text, kind text, data jsonb, at timestamptz)
        ) WITH ORDINALITY AS e (job_id, kind, data, at, place)
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
