"""Accounts: annotators, their passwords and roles, as the store offers them."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords, people
from alpaca_rlhf.preferences.access import Access
from alpaca_rlhf.preferences.people import Account, Role
from alpaca_rlhf.preferences.schema import Annotator


class Accounts(Access):
    """The methods of a `Store` that manage accounts."""

    def add_annotator(
        self,
        name: str,
        password: str,
        *,
        role: Role = "annotator",
        lang: str = "en",
        actor: str = "system",
    ) -> int:
        """Add an account and return its id.

        Raises:
            UserError: The name is taken or not allowed, or the password is too short.
        """
        # The hash is slow, so it is made outside the transaction.
        account = people.NewAccount(name, people.password_hash(password), role, lang)
        try:
            return self._write(
                lambda session: people.add(session, account, actor=actor, now_ms=self._now())
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
        """Change the given properties of an account; None leaves a property as it is.

        Raises:
            UserError: The password is too short, there is no such annotator, or no admin would be
                left.
        """
        password_hash = None if password is None else people.password_hash(password)
        columns = {"password_hash": password_hash, "role": role, "lang": lang, "active": active}
        changes = {key: value for key, value in columns.items() if value is not None}
        self._write(
            lambda session: people.change(
                session, annotator, changes, actor=actor, now_ms=self._now()
            )
        )

    def sign_in(self, name: str, password: str) -> Account | None:
        """The account with this name and password; None if there is none."""
        with self.database.reading() as session:
            account, password_hash = people.find_with_hash(session, name)
        return account if passwords.matches(password, password_hash) else None

    def any_accounts(self) -> bool:
        """True if any account can sign in."""
        with self.database.reading() as session:
            return people.any_accounts(session)

    def local(self, name: str = "local") -> Account:
        """The admin of an app without accounts, who has no password; it is added if absent.

        Raises:
            UserError: An account with a password has this name.
        """
        return self._write(lambda session: people.local(session, name, now_ms=self._now()))

    def stamped(self, annotator: int, began_s: int | None = None) -> tuple[Account, str] | None:
        """An account and its stamp, which changes with the password.

        None if the account cannot sign in, or if its login that began at `began_s` has been ended.
        """
        with self.database.reading() as session:
            row = session.get(Annotator, annotator)
            if row is None or not row.active or not row.password_hash:
                return None
            if began_s is not None and people.session_ended(session, annotator, began_s):
                return None
            return people.account(row), people.stamp(row)

    def end_session(self, annotator: int, began_s: int, *, forget_before_s: int) -> None:
        """End a login of an account for good.

        Args:
            annotator: Id of the account.
            began_s: When the login began, in seconds since 1970.
            forget_before_s: Logins that began earlier have expired anyway, so their records are
                deleted.
        """
        self._write(
            lambda session: people.end_session(
                session, annotator, began_s, forget_before_s=forget_before_s
            )
        )

    def account(self, annotator: int) -> Account | None:
        """The account with this id; None if it is missing or deactivated."""
        with self.database.reading() as session:
            row = session.get(Annotator, annotator)
            return people.account(row) if row is not None and row.active else None

    def adopt_accounts(self, other: Accounts) -> None:
        """Make the accounts of another database hold here: passwords, roles, and ended logins.

        An account that is new here keeps its id where that is free, so that its sessions go on.
        Accounts that only this database has stay as they are.
        """
        with other.database.reading() as session:
            accounts = people.with_passwords(session)
            ended = people.ended_sessions(session)
        self._write(lambda session: people.adopt(session, accounts, ended, now_ms=self._now()))
