"""How fast recalcd is, measured beside what it could at best be: `python -m benchmarks`."""
