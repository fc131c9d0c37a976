"""Counts and heartbeats in sealed shared memory: one writer each, readers that never block it."""
