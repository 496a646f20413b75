"""`recalcd demo`: the whole pipeline on a database of its own, with live writes, and what happened."""
