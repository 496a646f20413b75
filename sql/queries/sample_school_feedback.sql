-- $1 seed, $2 pieces of feedback. Pupils differ, high levels are harder, and some work is not done at all: score 0.
with work as (
    select m.student_id, a.assignment_id, a.group_id, a.level, a.assigned_on,
           hashtextextended(m.student_id::text || a.assignment_id, $1::integer) as draw,
           (hashtextextended(m.student_id::text, $1::integer) & 1023) / 1023.0 as ability
    from school.group_membership as m
    join school.assignment as a on a.group_id = m.group_id
), marked as (
    select w.student_id, w.assignment_id, w.group_id, w.assigned_on, w.draw,
           case when (w.draw & 15) < 3 * (1.2 - w.ability) then 0
                else round(greatest(0.05, least(1, 0.55 + 0.4 * w.ability - 0.06 * w.level + ((w.draw >> 8 & 255) - 128) / 800.0)), 2)
           end as score
    from work as w
    order by w.draw >> 16, w.student_id, w.assignment_id
    limit $2::integer
)
insert into school.feedback (student_id, assignment_id, score, comment, given_by, given_at)
select k.student_id, k.assignment_id, k.score,
       case when k.draw >> 4 & 3 = 0 then (case
           when k.score = 0 then array['Not handed in.', 'Please hand this in by Friday.', 'Let us talk about what got in the way.']
           when k.score < 0.6 then array['A start. Read the task once more.', 'Show your steps.', 'Come to the study hour on Tuesday.']
           when k.score < 0.85 then array['Good work.', 'Clear, and nearly complete.', 'Well argued; mind the units.']
           else array['Excellent.', 'Try the next level.', 'Explain this to the others, please.']
       end)[1 + (k.draw >> 32 & 65535) % 3] end,
       md5(format('%s teacher of %s', $1::integer, k.group_id))::uuid,
       (k.assigned_on + 3 + (k.draw >> 24 & 7)::integer) at time zone 'UTC' + make_interval(mins => 480 + (k.draw >> 40 & 511)::integer)
from marked as k
