"""`make soak`: daemons, writers and faults for a while, and a watcher who never stops checking the promise."""
