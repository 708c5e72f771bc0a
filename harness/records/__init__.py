"""Files of a run: its folder, its record and its steps, and how they are read again. No torch."""
