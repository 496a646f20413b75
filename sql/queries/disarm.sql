-- Tell writers that they need not ring. On the LISTEN session.
select outbox.disarm() as was_armed
