"""Programs for the emulated device. Each runs in a process of its own and prints its results as JSON."""
