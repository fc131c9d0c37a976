"""What an operator writes: vsm.toml and the profiles, validated before anything starts."""
