"""The commands, click only: parse, call an operation, print, exit code."""
