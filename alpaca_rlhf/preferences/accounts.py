"""Annotators, their passwords and roles, as the store shows them."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords, people
from alpaca_rlhf.preferences.access import Access
from alpaca_rlhf.preferences.people import Account, Role
from alpaca_rlhf.preferences.schema import Annotator


class Accounts(Access):
    """The part of a `Store` that knows who may sign in."""

    def add_annotator(
        self,
        name: str,
        password: str,
        *,
        role: Role = "annotator",
        lang: str = "en",
        actor: str = "system",
    ) -> int:
        """Add somebody who may sign in; returns the number.

        Raises:
            UserError: The name is taken or cannot be one, or the password is too short.
        """
        hashed = people.password_hash(password)  # takes long: not within the transaction
        try:
            return self._write(
                lambda session: people.add(
                    session, name, hashed, role, lang, actor=actor, now_ms=self._now()
                )
            )
        except IntegrityError:
            raise UserError(f"{name!r}: there is an annotator of this name already") from None

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
        """Change what is given.

        Raises:
            UserError: The password is too short, nobody has this number, or no admin would be left.
        """
        hashed = None if password is None else people.password_hash(password)
        given = {"password_hash": hashed, "role": role, "lang": lang, "active": active}
        changes = {key: value for key, value in given.items() if value is not None}
        self._write(
            lambda session: people.change(
                session, annotator, changes, actor=actor, now_ms=self._now()
            )
        )

    def sign_in(self, name: str, password: str) -> Account | None:
        """Whose name and password these are; None if they are nobody's."""
        with self.database.reading() as session:
            found, hashed = people.found(session, name)
        return found if passwords.matches(password, hashed) else None

    def any_accounts(self) -> bool:
        """Whether anybody may sign in."""
        with self.database.reading() as session:
            return people.any_accounts(session)

    def local(self, name: str = "local") -> Account:
        """Who works on an app without accounts: an admin without a password, made if absent.

        Raises:
            UserError: Somebody who signs in has this name.
        """
        return self._write(lambda session: people.local(session, name, now_ms=self._now()))

    def stamped(self, annotator: int) -> tuple[Account, str] | None:
        """An account, and what is another one once its password was changed.

        None if they may not sign in (any more).
        """
        with self.database.reading() as session:
            who = session.get(Annotator, annotator)
            if who is None or not who.active or not who.password_hash:
                return None
            return people.account(who), people.stamp(who)

    def account(self, annotator: int) -> Account | None:
        """Somebody by number; None if they may not sign in (any more)."""
        with self.database.reading() as session:
            who = session.get(Annotator, annotator)
            return people.account(who) if who is not None and who.active else None
