"""One run: set-up, loop, clock, and the record of what happened."""
