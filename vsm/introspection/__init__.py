"""What a running vsm answers: status, measures, and words about its own past."""
