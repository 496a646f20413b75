-- $1 seed. Five years of a secondary school.
insert into school.cohort (cohort_id, name)
select md5(format('%s cohort %s', $1::integer, y.i))::uuid, format('Year %s', 7 + y.i)
from generate_series(0, 4) as y (i)
