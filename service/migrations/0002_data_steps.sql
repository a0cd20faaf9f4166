-- What completed jobs did with datasets. A preparation is three steps on two folders, which columns of a job cannot say.
CREATE TABLE data_steps (
    name   TEXT NOT NULL,  -- the dataset: the folder that was written, or what was checked
    step   TEXT NOT NULL,  -- convert, validate or split
    job_id TEXT NOT NULL,
    PRIMARY KEY (name, step, job_id)
) WITHOUT ROWID;
CREATE INDEX data_steps_by_job ON data_steps (job_id);

INSERT INTO data_steps (name, step, job_id)
SELECT coalesce(output_name, input_name), kind, job_id FROM jobs
WHERE status = 'completed' AND kind IN ('convert', 'validate', 'split');

DROP INDEX jobs_by_input;
DROP INDEX jobs_by_output;
ALTER TABLE jobs DROP COLUMN input_name;
ALTER TABLE jobs DROP COLUMN output_name;
