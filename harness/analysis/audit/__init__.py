"""Audit of published training speeds: possible, consistent, and evidence for a claim or not."""
