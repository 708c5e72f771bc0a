"""Verdicts on recorded runs and on published claims. Reads records only: no torch, no device."""
