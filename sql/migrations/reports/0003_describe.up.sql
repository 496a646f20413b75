-- Lets verify show what differs in a drifted report, column by column. Locks one row of outbox.topic for a moment.
update outbox.topic as t set describe = 'reports.describe_student' where t.topic = 'reports.student' and t.describe is null;
