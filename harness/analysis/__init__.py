"""What sets of records allow to be said. Reads records only: no torch, no device."""
