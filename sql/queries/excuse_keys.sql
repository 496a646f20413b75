-- Take back one suspicion of keys that were written down before they were called: it was another backend that crashed.
--   $1 topic, $2 keys
with excused as (
    update outbox.suspect as s set crash_count = s.crash_count - 1, was_alone = false
    where s.topic = $1::text and s.key = any ($2::text[]) and s.crash_count > 1
)
delete from outbox.suspect as s
where s.topic = $1::text and s.key = any ($2::text[]) and s.crash_count = 1
