"""Remote MCP servers: what runs in a confined worker between the gateway and one of them."""
