"""Checks and readings of an Ascend host, without torch."""
