"""Password hashes: scrypt from the standard library, with its parameters beside the hash."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

LOG_N, R, P = 15, 8, 1
"""Cost: 32 MiB and about a tenth of a second (OWASP's password storage cheat sheet, scrypt)."""
_SALT_BYTES, _KEY_BYTES = 16, 32
_MAX_MEMORY_BYTES = 128 * 2**20


def hashed(password: str) -> str:
    """A salted hash, as `scrypt$log_n$r$p$salt$hash`."""
    salt = secrets.token_bytes(_SALT_BYTES)
    key = _derive(password, salt, LOG_N, R, P)
    return "$".join(["scrypt", str(LOG_N), str(R), str(P), _text(salt), _text(key)])


def matches(password: str, stored: str) -> bool:
    """True if a hash was made from this password.

    An empty hash matches none, after as long a time, so that the time does not tell whether a
    name is known.
    """
    try:
        kind, log_n, r, p, salt, key = stored.split("$")
    except ValueError:
        kind, log_n, r, p, salt, key = "", str(LOG_N), str(R), str(P), _text(b"none"), ""
    derived = _derive(password, base64.b64decode(salt), int(log_n), int(r), int(p))
    return kind == "scrypt" and hmac.compare_digest(derived, base64.b64decode(key))


def _derive(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(
        data, salt=salt, n=2**log_n, r=r, p=p, maxmem=_MAX_MEMORY_BYTES, dklen=_KEY_BYTES
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
