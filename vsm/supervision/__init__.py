"""The parent of all: its groups of workers, their starts, restarts and ends."""
