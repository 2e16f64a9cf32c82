"""Who is signed in: a cookie that the server has signed, and nothing in the server's memory.

So a restart signs nobody out. The signature covers the stamp of the account, which changes with the
password: a session ends with the password it was opened with, and with the account.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

IDLE_S = 12 * 3600
"""Seconds after which a session that nobody used has ended."""
LONGEST_S = 7 * 24 * 3600
"""Seconds after which one must sign in again in any case."""
RENEW_S = 600
"""Age at which a cookie in use is replaced by a fresh one."""
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Session:
    """A signed-in account."""

    account: Account
    """Who."""
    began: int
    """When they signed in, in seconds since 1970."""
    renewed: int
    """When the cookie was made."""


class Sessions:
    """Makes cookies and reads them.

    Args:
        store: Knows the accounts.
        secret: What cookies are signed with; see `read_secret`.
        clock: Seconds since 1970.
    """

    def __init__(self, store: Store, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._secret = secret
        self._clock = clock
        self._ended: dict[str, int] = {}
        self._guard = threading.Lock()
        # Cookies are shared by all ports of a host: two apps must not sign each other out.
        self.name = "alpaca_rlhf_" + sha256(b"name" + secret).hexdigest()[:8]

    def cookie(self, account: int, began: int | None = None) -> str | None:
        """The value of a cookie for an account; None if it may not sign in (any more)."""
        found = self._store.stamped(account)
        if found is None:
            return None
        now = int(self._clock())
        words = f"{account}.{now if began is None else began}.{now}"
        return f"{words}.{self._signature(words, found[1])}"

    def read(self, cookie: str) -> Session | None:
        """Whose cookie it is; None if it is forged, too old, or ended."""
        try:
            account, began, renewed = (int(one) for one in cookie.split(".")[:3])
            words, _, signature = cookie.rpartition(".")
        except ValueError:
            return None
        now = self._clock()
        if words != f"{account}.{began}.{renewed}" or cookie in self._ended:
            return None
        if not (now - IDLE_S <= renewed <= now + 60 and now - LONGEST_S <= began <= renewed):
            return None
        if not 0 < account < 2**31:
            return None
        found = self._store.stamped(account)
        stamp = found[1] if found else ""
        right = hmac.compare_digest(self._signature(words, stamp).encode(), signature.encode())
        return Session(found[0], began, renewed) if found and right else None

    def renewal(self, session: Session) -> str | None:
        """A fresh cookie for a session in use, if it is time for one."""
        if self._clock() - session.renewed < RENEW_S:
            return None
        return self.cookie(session.account.id, session.began)

    def end(self, cookie: str) -> None:
        """Take a cookie no more, though it was not too old yet."""
        now = int(self._clock())
        with self._guard:
            self._ended = {one: at for one, at in self._ended.items() if at > now - IDLE_S}
            self._ended[cookie] = now

    def _signature(self, words: str, stamp: str) -> str:
        return hmac.new(self._secret, f"{words}.{stamp}".encode(), sha256).hexdigest()


def read_secret(path: Path) -> bytes:
    """What cookies are signed with, from a file that only its owner may read; made if absent.

    Raises:
        UserError: It cannot be read or written, holds something else, or others may read it.
    """
    if not path.exists():
        atomic_write(path, secrets.token_hex(_SECRET_BYTES) + "\n", private=True)
    try:
        shared = path.stat().st_mode & 0o077
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        shared, secret = 0, b""
    if shared:
        raise UserError(f"{path}: others may read it; chmod 600 it, or delete it for a new one")
    if len(secret) < _SECRET_BYTES:
        raise UserError(f"{path}: holds no secret of the app; delete it for a new one")
    return secret
