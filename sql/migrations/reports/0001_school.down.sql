-- Loses the school: every pupil, assignment and piece of feedback. No cascade, so a forgotten dependant stops us.
drop table school.feedback;
drop table school.assignment;
drop table school.unit;
drop table school.timeframe;
drop table school.group_membership;
drop table school.class_group;
drop table school.student;
drop table school.cohort;
drop schema school;
