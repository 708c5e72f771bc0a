"""Training of one run: set-up, loop, timing, checkpoints, and the record."""
