"""What gateway and a remote server's worker say to each other beyond MCP.

Pure. On the pipe between them a request may begin with the name of the client whose credentials
it needs, and an error with one of two codes is the worker's own word that the server did not
answer; a server that sends such a code says no more than that.
"""

from typing import Final

from vsm.protocol import jsonrpc

NOT_REACHED: Final = -32097
"""The request never reached the server."""
BROKEN: Final = -32098
"""The server may have got the request, and no answer came of it."""

_TAG: Final = b'{"client":'


def tagged(frame: bytes, client: str) -> bytes:
    """A frame that needs a client's credentials."""
    return b"%b%b,%b" % (_TAG, jsonrpc.encode(client), frame[1:])


def untagged(frame: bytes) -> tuple[bytes, str]:
    """A frame as it goes to the server, and the client that it is tagged with, or ""."""
    if not frame.startswith(_TAG):
        return frame, ""
    end = frame.index(b'"', len(_TAG) + 1) + 1
    return b"{" + frame[end + 1 :], frame[len(_TAG) + 1 : end - 1].decode()
