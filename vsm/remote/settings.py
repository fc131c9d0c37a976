"""What a remote server's worker is told at its start: one variable, and one for each secret.

Pure. The supervisor writes it (`to_environment`), the worker reads it (`from_environment`). The
values of secrets are in variables of their own, so that they are hidden in what is logged.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

VARIABLE: Final = "VSM_REMOTE"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a request somebody's.

    Args:
        headers: name → value.
        secret_headers: name → (variable that holds the value, what goes before it).
        tokens: the file that holds OAuth tokens; "" for none.
    """

    headers: dict[str, str] = {}
    secret_headers: dict[str, tuple[str, str]] = {}
    tokens: str = ""

    def resolved(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Every header with its value."""
        secret = {
            name: before + environment[variable]
            for name, (variable, before) in self.secret_headers.items()
        }
        return {**self.headers, **secret}


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it.

    Args:
        name: the integration's.
        target: path and query.
        clients: credentials by client.
    """

    name: str
    scheme: str
    host: str
    port: int
    target: str
    most_frame_bytes: int
    ca_file: str = ""
    own: Credentials = Credentials()
    clients: dict[str, Credentials] = {}

    def to_environment(self) -> dict[str, str]:
        """The variable."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "WorkerSettings":
        """What `to_environment` wrote."""
        return msgspec.json.decode(environment[VARIABLE], type=cls)
