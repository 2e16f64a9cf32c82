"""Login sessions: a cookie that the server has signed; the database holds the ended ones.

So a restart signs nobody out, and lets nobody back in. Logging out ends the login: every cookie of
the account with the same begin is refused, renewed ones and their predecessors alike. The signature
covers the stamp of the account, which changes with the password: a session ends with the password
it was opened with, and with the account.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

logger = logging.getLogger(__name__)

IDLE_S = 12 * 3600
"""Seconds without a request after which a session ends."""
MAX_AGE_S = 7 * 24 * 3600
"""Seconds after which a session ends even if it is in use."""
RENEW_S = 600
"""Age in seconds at which a cookie in use is replaced by a fresh one."""
_CLOCK_SKEW_S = 60
_SECRET_BYTES = 32


@dataclass(frozen=True)
class LoginSession:
    """A signed-in account."""

    account: Account
    """The account."""
    began: int
    """Time of the login, in seconds since 1970."""
    renewed: int
    """Time when the cookie was made, in seconds since 1970."""


class LoginSessions:
    """Makes session cookies and reads them.

    Args:
        store: The accounts.
        secret: The key of the signature; see `read_secret`.
        clock: Returns seconds since 1970.
    """

    def __init__(self, store: Store, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._secret = secret
        self._clock = clock
        # Logins that a full disk kept out of the database: ended for as long as the app runs.
        self._ended: set[tuple[int, int]] = set()
        # Cookies are shared by all ports of a host: two apps must not sign each other out.
        self.cookie_name = "alpaca_rlhf_" + sha256(b"name" + secret).hexdigest()[:8]

    def cookie(self, account: int, began: int | None = None) -> str | None:
        """The value of a cookie for an account; None if it may not sign in (any more).

        Args:
            account: Number of the account.
            began: When the login began, for a renewal; None is a new login.
        """
        if (account, began) in self._ended:
            return None
        stamped = self._store.stamped(account, began)
        if stamped is None:
            return None
        now_s = int(self._clock())
        payload = f"{account}.{now_s if began is None else began}.{now_s}"
        return f"{payload}.{self._signature(payload, stamped[1])}"

    def read(self, cookie: str, *, idle: bool = False) -> LoginSession | None:
        """The session of a cookie; None if it is forged, too old, or ended.

        Args:
            cookie: The cookie.
            idle: True to read one, too, that has not been used for `IDLE_S`.
        """
        # 1. The form, which is the only one that `cookie` writes.
        try:
            account, began, renewed = (int(number) for number in cookie.split(".")[:3])
            payload, _, signature = cookie.rpartition(".")
        except ValueError:
            return None
        if payload != f"{account}.{began}.{renewed}" or (account, began) in self._ended:
            return None
        # 2. The age.
        now_s = self._clock()
        in_use = (idle or now_s - IDLE_S <= renewed) and renewed <= now_s + _CLOCK_SKEW_S
        if not (in_use and now_s - MAX_AGE_S <= began <= renewed):
            return None
        if not 0 < account < 2**31:
            return None
        # 3. The signature, over the account as it is now; computed for unknown accounts too.
        stamped = self._store.stamped(account, began)
        stamp = stamped[1] if stamped else ""
        genuine = hmac.compare_digest(self._signature(payload, stamp).encode(), signature.encode())
        return LoginSession(stamped[0], began, renewed) if stamped and genuine else None

    def renewal(self, session: LoginSession) -> str | None:
        """A fresh cookie for a session in use, once it is time for one."""
        if self._clock() - session.renewed < RENEW_S:
            return None
        return self.cookie(session.account.id, session.began)

    def end(self, cookie: str) -> None:
        """End the login of a cookie: all its cookies are refused from now on, restarts included."""
        session = self.read(cookie, idle=True)  # a copy of it may have been renewed since
        if session is None:
            return
        account, oldest_s = session.account.id, int(self._clock() - MAX_AGE_S)
        try:
            self._store.end_session(account, session.began, forget_before_s=oldest_s)
        except DiskFull as error:
            self._ended = {*self._ended, (account, session.began)}
            logger.warning("a login was ended until the app restarts only: %s", error)

    def _signature(self, payload: str, stamp: str) -> str:
        return hmac.new(self._secret, f"{payload}.{stamp}".encode(), sha256).hexdigest()


def read_secret(path: Path) -> bytes:
    """The key of the cookies' signatures, from a file that only its owner may read.

    The file is created if it is absent.

    Raises:
        UserError: It cannot be read or written, holds no key, or others may read it.
    """
    if not path.exists():
        atomic_write(path, secrets.token_hex(_SECRET_BYTES) + "\n", mode=0o600)
    try:
        shared = path.stat().st_mode & 0o077
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror})") from None
    except ValueError:
        shared, secret = 0, b""
    if shared:
        raise UserError(f"{path}: others may read it; chmod 600 it, or delete it for a new one")
    if len(secret) < _SECRET_BYTES:
        raise UserError(f"{path}: holds no secret of the app; delete it for a new one")
    return secret
