-- $1 seed, $2 pupils. Ids, names and cohorts follow from the seed and the number of the pupil alone.
insert into school.student (student_id, cohort_id, name)
select md5(format('%s student %s', $1::integer, s.i))::uuid,
       md5(format('%s cohort %s', $1::integer, s.i % 5))::uuid,
       n.first[1 + (s.draw & 65535) % cardinality(n.first)] || ' ' || n.last[1 + (s.draw >> 16 & 65535) % cardinality(n.last)]
from (
    select g.i, hashtextextended(format('name %s', g.i), $1::integer) as draw
    from generate_series(0, $2::integer - 1) as g (i)
) as s
cross join (select
    array['Ada', 'Amir', 'Anna', 'Ben', 'Carla', 'Daniel', 'Elif', 'Emil', 'Fatima', 'Felix', 'Grace', 'Hannah', 'Ibrahim',
          'Ida', 'Jonas', 'Kofi', 'Lea', 'Leon', 'Maya', 'Mina', 'Noah', 'Olga', 'Paul', 'Priya', 'Rosa', 'Sami', 'Tom', 'Yuki'] as first,
    array['Adams', 'Bauer', 'Chen', 'Diallo', 'Evans', 'Fischer', 'Garcia', 'Haddad', 'Ivanova', 'Jones', 'Khan', 'Lopez',
          'Meyer', 'Nguyen', 'Okafor', 'Patel', 'Quinn', 'Rossi', 'Schmidt', 'Tanaka', 'Usman', 'Vogel', 'Weber', 'Yilmaz'] as last
) as n
