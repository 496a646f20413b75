-- Verify goes on finding drift, but names the keys only.
update outbox.topic as t set describe = null where t.topic = 'reports.student' and t.describe = 'reports.describe_student';
