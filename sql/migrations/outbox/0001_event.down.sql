-- Loses unprocessed events: drain first. No cascade, so a forgotten dependant stops us.
drop table outbox.event;
drop table outbox.topic;
