-- $1 seed, $2 units. Unit i is of subject i % 8; a subject with more than five units starts a second part.
insert into school.unit (unit_id, subject, title)
select md5(format('%s unit %s', $1::integer, u.i))::uuid, s.subject,
       s.titles[1 + u.i / 8 % 5] || case when u.i < 40 then '' else format(', part %s', 1 + u.i / 40) end
from generate_series(0, $2::integer - 1) as u (i)
join (values
    (0, 'Mathematics', array['Fractions', 'Equations', 'Geometry', 'Probability', 'Functions']),
    (1, 'English', array['Narrative', 'Poetry', 'Argument', 'Drama', 'Grammar']),
    (2, 'Biology', array['Cells', 'Plants', 'Heredity', 'Ecology', 'The senses']),
    (3, 'History', array['Antiquity', 'Middle Ages', 'Reformation', 'Revolutions', 'The 20th century']),
    (4, 'Physics', array['Motion', 'Energy', 'Light', 'Electricity', 'Heat']),
    (5, 'Geography', array['Maps', 'Climate', 'Cities', 'Rivers', 'Trade']),
    (6, 'Music', array['Rhythm', 'Harmony', 'Listening', 'Notation', 'Composition']),
    (7, 'Computing', array['Algorithms', 'Data', 'Networks', 'Programs', 'Privacy'])
) as s (i, subject, titles) on s.i = u.i % 8
