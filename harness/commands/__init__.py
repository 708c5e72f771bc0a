"""One file for each verb of the command line, and what several of them share."""

VERBS = ("audit", "claim", "compare", "doctor", "health", "peak", "project", "torchrun")
"""Each is a module here with a function `main`; a command line that begins with none of them is a run's (train.py)."""
