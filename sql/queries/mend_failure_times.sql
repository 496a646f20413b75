-- Begin the waits anew that were counted from a time that has not come yet: the database's clock was set back, and a
-- key that should wait seconds would wait until that time is reached again.
update outbox.failure as f
set last_failed_at = clock_timestamp(),
    next_attempt_at = clock_timestamp() + greatest(f.next_attempt_at - f.last_failed_at, interval '0')
where (f.topic, f.key) in (
    select s.topic, s.key from outbox.failure as s
    where s.last_failed_at > clock_timestamp()
    for update skip locked
)
