-- Closes the books, in the transaction of the last migration taken back. No cascade: what somebody else put into the
-- schema stops us.

drop table outbox.routine;
drop table outbox.migration;
drop schema outbox;
