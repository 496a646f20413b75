-- $1 seed, $2 groups. Group i belongs to year i % 5, so to one cohort, and is taught one subject.
insert into school.class_group (group_id, name)
select md5(format('%s group %s', $1::integer, g.i))::uuid, format('%s%s', 7 + g.i % 5, chr(65 + g.i / 5 % 26))
from generate_series(0, $2::integer - 1) as g (i)
