-- Work that feedback can be given on: all that of a few pupils, then as much of the others' as there is room for, at random.
--   $1 how many pupils are to be busy, $2 most pieces of work
with member as (
    select m.student_id, m.group_id,
           dense_rank() over (order by md5(m.student_id::text)) <= $1::integer as is_busy
    from school.group_membership as m
    where exists (select from school.assignment as a where a.group_id = m.group_id)
)
select m.student_id, m.group_id, g.name as group_name, a.assignment_id, m.is_busy
from member as m
join school.class_group as g on g.group_id = m.group_id
join school.assignment as a on a.group_id = m.group_id
order by m.is_busy desc, random()
limit $2::integer
