"""What runs on the emulated device: each a process of its own that prints its findings as JSON."""
