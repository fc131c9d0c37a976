"""vsm as a library: work that runs confined, for programs that import vsm."""
