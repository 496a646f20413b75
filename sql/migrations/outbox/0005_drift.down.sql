-- Loses the list of drifted keys (a verification finds them again) and the names of describe functions.
drop table outbox.audit;
drop table outbox.drift;
alter table outbox.topic drop column describe;
