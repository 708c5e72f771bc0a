"""The work that every device does identically: model, data, optimizer, schedule, and the digests that prove it."""
