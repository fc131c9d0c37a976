"""Proof on this very host: the battery of attempts around one profile, and learning a profile."""
