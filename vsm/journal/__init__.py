"""The record: one process that writes it, what it is fed by, and how it is read."""
