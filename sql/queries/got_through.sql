-- Did the topic recalculate any key since this one failed last? If so, what this one lacks is its own lack.
--   $1 topic, $2 key
select exists (
    select from outbox.failure as f
    join outbox.batch as b on b.topic = f.topic and b.finished_at > f.last_failed_at
    where f.topic = $1::text and f.key = $2::text and b.started_at > f.last_failed_at - interval '1 day'
) as got_through
