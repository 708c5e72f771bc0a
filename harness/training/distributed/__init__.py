"""Distributed training: rendezvous, collectives, parallel layouts, and the watchdog that ends all ranks together."""
