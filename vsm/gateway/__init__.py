"""The MCP gateway that S1 runs: downstream clients to upstream workers."""
