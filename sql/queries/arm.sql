-- Ask writers to ring: armed, guarded or busy. On the LISTEN session.
select outbox.arm() as state
