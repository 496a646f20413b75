-- The mean score of feedback, rounded to four decimals, from the sum of its points: ten thousand for the score 1.
-- The rounding is done in integers: a division of numerics would take most of a recalculation's time.
--   Returns  null when there is no feedback.
create or replace function reports.average(p_points integer, p_count integer) returns numeric
language sql immutable parallel safe
as $$ select (2::bigint * p_points + p_count) / nullif(2::bigint * p_count, 0) * 0.0001 $$;
comment on function reports.average is 'The mean score of feedback, from the sum of its points.';
