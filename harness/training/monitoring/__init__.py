"""Monitoring of a run: heartbeat, progress, metrics, telemetry, and the standard error stream."""
