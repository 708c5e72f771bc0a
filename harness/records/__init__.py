"""Everything about what lies on disk: a run's folder, its record and steps, and how they are read again. No torch."""
