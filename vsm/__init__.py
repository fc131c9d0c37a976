"""vsm runs untrusted MCP servers, each confined by the kernel, behind one endpoint.

Importing this package costs nothing: the launcher and the command line both do it first.
"""

__version__ = "0.1.0"
