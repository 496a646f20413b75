-- $1 seed, $2 groups, $3 units, $4 pieces of feedback. Every group works through the units of its subject, then through
-- them again, and every second time a level higher. As much is set as it takes for five pieces of feedback on six pieces of work.
with plan as (
    select ceil($4::integer * 1.2 / greatest(count(*), 1))::integer as assignment_count, least($3::integer, 8) as subject_count
    from school.group_membership
), work as (
    select g.i as group_number, a.i as number, p.assignment_count, p.subject_count,
           g.i / 5 % p.subject_count as subject_number,
           ($3::integer - 1 - g.i / 5 % p.subject_count) / p.subject_count + 1 as unit_count
    from plan as p
    cross join generate_series(0, $2::integer - 1) as g (i)
    cross join generate_series(0, p.assignment_count - 1) as a (i)
)
insert into school.assignment (assignment_id, group_id, unit_id, level, kind, assigned_on)
select md5(format('%s assignment %s %s', $1::integer, w.group_number, w.number))::uuid,
       md5(format('%s group %s', $1::integer, w.group_number))::uuid,
       md5(format('%s unit %s', $1::integer, w.subject_number + w.subject_count * (w.number % w.unit_count)))::uuid,
       1 + w.number / w.unit_count / 2 % 4,
       case when w.number % 4 = 3 then 'assessment' else 'activity' end,
       date '2025-09-01' + 300 * w.number / w.assignment_count
from work as w
