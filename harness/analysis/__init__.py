"""Verdicts on recorded runs and on published claims, and what is computed from settings alone. No torch, no device."""
