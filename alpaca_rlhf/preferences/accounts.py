"""Accounts: annotators, their passwords and roles, as the store offers them."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords, people
from alpaca_rlhf.preferences.access import Access
from alpaca_rlhf.preferences.people import Account, Role
from alpaca_rlhf.preferences.schema import Annotator


class Accounts(Access):
    """The part of a `Store` that holds the accounts."""

    def add_annotator(
        self,
        name: str,
        password: str,
        *,
        role: Role = "annotator",
        lang: str = "en",
        actor: str = "system",
    ) -> int:
        """Add an account; returns its number.

        Raises:
            UserError: The name is taken or not allowed, or the password is too short.
        """
        hashed = people.password_hash(password)  # slow, so outside the transaction
        try:
            return self._write(
                lambda session: people.add(
                    session, name, hashed, role, lang, actor=actor, now_ms=self._now()
                )
            )
        except IntegrityError:
            raise UserError(
                f"{name!r}: there is an annotator of this name; choose another"
            ) from None

    def change_annotator(
        self,
        annotator: int,
        *,
        password: str | None = None,
        role: Role | None = None,
        lang: str | None = None,
        active: bool | None = None,
        actor: str,
    ) -> None:
        """Change the columns that are given.

        Raises:
            UserError: The password is too short, there is no such annotator, or no admin would be
                left.
        """
        hashed = None if password is None else people.password_hash(password)
        columns = {"password_hash": hashed, "role": role, "lang": lang, "active": active}
        changes = {key: value for key, value in columns.items() if value is not None}
        self._write(
            lambda session: people.change(
                session, annotator, changes, actor=actor, now_ms=self._now()
            )
        )

    def sign_in(self, name: str, password: str) -> Account | None:
        """The account with this name and password; None if there is none."""
        with self.database.reading() as session:
            account, hashed = people.find_with_hash(session, name)
        return account if passwords.matches(password, hashed) else None

    def any_accounts(self) -> bool:
        """True if anybody may sign in."""
        with self.database.reading() as session:
            return people.any_accounts(session)

    def local(self, name: str = "local") -> Account:
        """The admin of an app without accounts, who has no password; added if absent.

        Raises:
            UserError: An account with a password has this name.
        """
        return self._write(lambda session: people.local(session, name, now_ms=self._now()))

    def stamped(self, annotator: int, began_s: int | None = None) -> tuple[Account, str] | None:
        """An account and its stamp, which changes with the password.

        None if it may not sign in (any more), or if its login of `began_s` was ended.
        """
        with self.database.reading() as session:
            row = session.get(Annotator, annotator)
            if row is None or not row.active or not row.password_hash:
                return None
            if began_s is not None and people.session_ended(session, annotator, began_s):
                return None
            return people.account(row), people.stamp(row)

    def end_session(self, annotator: int, began_s: int, *, forget_before_s: int) -> None:
        """End the login of an account that began at a time, for good.

        Args:
            annotator: Number of the account.
            began_s: When the login began, in seconds since 1970.
            forget_before_s: Logins that began earlier are too old to be used: they are dropped
                from the list.
        """
        self._write(
            lambda session: people.end_session(
                session, annotator, began_s, forget_before_s=forget_before_s
            )
        )

    def account(self, annotator: int) -> Account | None:
        """The account of a number; None if it may not sign in (any more)."""
        with self.database.reading() as session:
            row = session.get(Annotator, annotator)
            return people.account(row) if row is not None and row.active else None
