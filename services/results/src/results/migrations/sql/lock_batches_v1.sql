-- Locks the rows of batches until the end of the transaction, in the order of their keys; those that are missing are
-- made. Every transaction that writes facts of a batch begins here. sizes holds one object per batch: job_id, lane,
-- question_index, question_id, expected, planned. Only a planned size replaces another one.
CREATE OR REPLACE FUNCTION results.lock_batches_v1(sizes jsonb) RETURNS void LANGUAGE plpgsql AS $$
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
