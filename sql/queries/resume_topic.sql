-- Let a paused topic go on.
--   $1 topic
select outbox.resume_topic($1::text) as was_paused
