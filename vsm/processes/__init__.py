"""The processes that fork others, and the supervisor's side of each."""
