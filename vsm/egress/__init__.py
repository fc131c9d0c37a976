"""The one way out of workers whose network mode is `proxy`: the process, and its parent's side."""
