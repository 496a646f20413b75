-- What the server logs of our statements: names of settings, and their values in their own units.
select s.name, s.setting
from pg_settings as s
where s.name = any (array[
    'log_statement', 'log_min_duration_statement', 'log_min_duration_sample', 'log_parameter_max_length',
    'log_parameter_max_length_on_error', 'log_min_messages'
])
