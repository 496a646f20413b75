-- $1 seed, $2 pupils, $3 groups. Every pupil is in two groups of one year, if there are as many.
insert into school.group_membership (student_id, group_id, joined_at)
select distinct md5(format('%s student %s', $1::integer, s.i))::uuid, md5(format('%s group %s', $1::integer, g.i))::uuid,
       timestamptz '2025-08-25 08:00:00+00'
from generate_series(0, $2::integer - 1) as s (i)
cross join lateral (values (s.i % $3::integer), ((s.i + 5 * (1 + s.i / $3::integer % 5)) % $3::integer)) as g (i)
