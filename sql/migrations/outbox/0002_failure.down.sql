-- Forgets which keys are owed a recalculation: mend or drop the failures first.
drop table outbox.suspect;
drop table outbox.failure;
