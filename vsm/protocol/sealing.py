"""State that a client carries for us: sealed with a key of this run, expiring, bound to its use.

Sans-io. A token proves that this gateway made it and when it ends; it hides nothing, so nothing
secret goes in. That a token is used once is the business of whoever keeps what it names.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from typing import Final

PREFIX: Final = "vsm1."
KEY_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 512
_EXPIRY: Final = struct.Struct(">d")
_MAC_BYTES: Final = hashlib.sha256().digest_size


class SealError(Exception):
    """A token is not to be believed; the text says why."""


class Seal:
    """Seals and opens tokens.

    Args:
        key: of this run; another run's tokens are refused.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key

    def close(self, payload: bytes, expires_at: float) -> str:
        """A token for `payload` that is good until `expires_at`, by the caller's clock."""
        body = _EXPIRY.pack(expires_at) + payload
        return PREFIX + base64.urlsafe_b64encode(body + self._mac(body)).decode()

    def open(self, token: str, now: float) -> bytes:
        """The payload of a token.

        Raises:
            SealError: it is malformed, not ours or expired.
        """
        if not token.startswith(PREFIX) or len(token) > MAX_TOKEN_CHARS:
            raise SealError("is not of this gateway")
        try:
            whole = base64.b64decode(token[len(PREFIX) :], altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise SealError("is malformed") from None
        if token != PREFIX + base64.urlsafe_b64encode(whole).decode():
            raise SealError("is malformed")  # one spelling: base64 has bits that say nothing
        body, mac = whole[:-_MAC_BYTES], whole[-_MAC_BYTES:]
        if len(body) < _EXPIRY.size or not hmac.compare_digest(mac, self._mac(body)):
            raise SealError("was changed, or made before the gateway was started again")
        if _EXPIRY.unpack_from(body)[0] <= now:
            raise SealError("has expired")
        return body[_EXPIRY.size :]

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")
