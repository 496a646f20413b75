-- Loses the history: explain and replay by time have nothing to go by afterwards.
drop table outbox.daemon;
drop table outbox.batch;
