-- Forgets how far the backfills and replays under way have come: finish or cancel them first.
drop table outbox.job_key;
drop table outbox.job;
