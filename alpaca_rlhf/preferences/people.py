"""Queries on the rows of accounts: names, password hashes, roles and ended logins."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.judges import JUDGE
from alpaca_rlhf.preferences.schema import Annotator, EndedSession
from alpaca_rlhf.preferences.stored_text import clean

Role = Literal["annotator", "admin"]
MAX_NAME_CHARS = 80
MIN_PASSWORD_CHARS, MAX_PASSWORD_CHARS = 8, 1000
"""Limits of a password's length; the forms accept no more characters than the maximum."""

_OF_ACCOUNT = ("name", "password_hash", "role", "lang", "active")
"""Columns that an account takes with it to another database."""
_MAY_SIGN_IN = (Annotator.active, Annotator.password_hash != "")


@dataclass(frozen=True)
class Account:
    """An annotator's account."""

    id: int
    """Id, by which other calls refer to the account."""
    name: str
    """Name that its annotator signs in with."""
    role: Role
    """Role, which decides the rights of the account."""
    lang: str
    """Language of the app, `en` or `zh-CN`."""


@dataclass(frozen=True)
class NewAccount:
    """An account to add."""

    name: str
    """Name as it was typed."""
    password_hash: str
    """Of `password_hash`."""
    role: Role
    """Role, which decides the rights of the account."""
    lang: str
    """Language of the app, `en` or `zh-CN`."""


def add(session: Session, account: NewAccount, *, actor: str, now_ms: int) -> int:
    """Add an account and return its id.

    Raises:
        UserError: The name is taken, empty, too long, or a judge's.
    """
    name = clean(account.name).strip()
    if not 0 < len(name) <= MAX_NAME_CHARS or name.startswith(JUDGE):
        raise UserError(
            f"{name[:MAX_NAME_CHARS]!r}: a name must have 1 to {MAX_NAME_CHARS} characters and "
            f"must not begin with {JUDGE!r}"
        )
    if session.scalar(select(Annotator.id).where(Annotator.name == name)) is not None:
        raise UserError(f"{name!r}: there is an annotator of this name; choose another")
    columns = {**asdict(account), "name": name, "active": True, "created_ms": now_ms}
    annotator_id = session.execute(
        insert(Annotator).values(columns).returning(Annotator.id)
    ).scalar_one()
    entity = f"annotator:{annotator_id}"
    note(session, now_ms, actor, "add", entity, after={"name": name, "role": account.role})
    return annotator_id


def change(
    session: Session, annotator_id: int, changes: dict[str, Any], *, actor: str, now_ms: int
) -> None:
    """Change columns of an account; the audit log records the changes, without the password.

    Raises:
        UserError: There is no such annotator, or no admin would be left.
    """
    annotator = session.get(Annotator, annotator_id, with_for_update=True)
    if annotator is None:
        raise UserError(f"there is no annotator {annotator_id}")
    before = {key: getattr(annotator, key) for key in changes if key != "password_hash"}
    for key, value in changes.items():
        setattr(annotator, key, value)
    session.flush()
    any_admin = select(Annotator.id).where(Annotator.role == "admin", *_MAY_SIGN_IN).limit(1)
    # An admin who can sign in must remain, or nobody could add one again.
    if before.get("role") == "admin" or ("active" in before and annotator.role == "admin"):
        if session.scalar(any_admin) is None:
            raise UserError(
                f"{annotator.name!r} is the last admin; make someone else an admin first"
            )
    after = {key: value if key != "password_hash" else "changed" for key, value in changes.items()}
    note(session, now_ms, actor, "change", f"annotator:{annotator.id}", before=before, after=after)


def any_accounts(session: Session) -> bool:
    """True if any account can sign in."""
    return session.scalar(select(Annotator.id).where(*_MAY_SIGN_IN).limit(1)) is not None


def local(session: Session, name: str, *, now_ms: int) -> Account:
    """The admin of an app without accounts, who has no password; it is added if absent.

    Raises:
        UserError: An account with a password has this name.
    """
    row = session.scalar(select(Annotator).where(Annotator.name == name))
    if row is None:
        added = NewAccount(name, "", "admin", "en")
        annotator_id = add(session, added, actor="system", now_ms=now_ms)
        return Account(annotator_id, name, "admin", "en")
    if row.password_hash:
        raise UserError(f"{name!r} is an account that signs in with a password")
    return account(row)


def session_ended(session: Session, annotator_id: int, began_s: int) -> bool:
    """True if the account's login that began at `began_s` has been ended."""
    return session.get(EndedSession, (annotator_id, began_s)) is not None


def end_session(session: Session, annotator_id: int, began_s: int, *, forget_before_s: int) -> None:
    """Record that a login has ended, and delete the records from before `forget_before_s`."""
    session.execute(delete(EndedSession).where(EndedSession.began_s < forget_before_s))
    if not session_ended(session, annotator_id, began_s):
        session.add(EndedSession(annotator_id=annotator_id, began_s=began_s))


def with_passwords(session: Session) -> list[dict[str, Any]]:
    """The columns of every account with a password, deactivated ones included."""
    rows = session.scalars(select(Annotator).where(Annotator.password_hash != ""))
    return [{name: getattr(row, name) for name in ("id", *_OF_ACCOUNT)} for row in rows]


def ended_sessions(session: Session) -> list[tuple[int, int]]:
    """Account and begin of every login that was ended and may not have expired."""
    return [(row.annotator_id, row.began_s) for row in session.scalars(select(EndedSession))]


def adopt(
    session: Session,
    accounts: Sequence[Mapping[str, Any]],
    ended: Collection[tuple[int, int]],
    *,
    now_ms: int,
) -> None:
    """Add or update accounts of another database, by their names, and the logins ended there.

    Args:
        session: The transaction.
        accounts: Columns, as `with_passwords` returns them.
        ended: As `ended_sessions` returns them; the ids are those of `accounts`.
        now_ms: The time, for the audit.
    """
    for columns in accounts:
        # 1. The account, under its id if that is free.
        row = session.scalar(select(Annotator).where(Annotator.name == columns["name"]))
        changes = {name: columns[name] for name in _OF_ACCOUNT}
        if row is None:
            is_free = session.get(Annotator, columns["id"]) is None
            number = {"id": columns["id"]} if is_free else {}
            row = Annotator(**number, **changes, left_out=False, created_ms=now_ms)
            session.add(row)
            session.flush()
            action = "add"
        elif all(getattr(row, name) == value for name, value in changes.items()):
            action = ""
        else:
            for name, value in changes.items():
                setattr(row, name, value)
            action = "change"
        if action:
            after = {"name": row.name, "role": row.role, "active": row.active}
            note(session, now_ms, "system", action, f"annotator:{row.id}", after=after)
        # 2. Its ended logins: cookies name the id.
        for annotator_id, began_s in ended:
            is_same = annotator_id == columns["id"] == row.id
            if is_same and not session_ended(session, row.id, began_s):
                session.add(EndedSession(annotator_id=row.id, began_s=began_s))


def stamp(row: Annotator) -> str:
    """A digest that changes with the password and does not reveal it."""
    return hashlib.sha256(f"{row.id} {row.password_hash}".encode()).hexdigest()


def password_hash(password: str) -> str:
    """Hash a new password.

    Raises:
        UserError: The password is too short.
    """
    if len(password) < MIN_PASSWORD_CHARS:
        raise UserError(f"the password is too short: give {MIN_PASSWORD_CHARS} characters or more")
    return passwords.hashed(password)


def find_with_hash(session: Session, name: str) -> tuple[Account | None, str]:
    """An active account and its password hash; None and an empty hash if there is none."""
    row = session.scalar(select(Annotator).where(Annotator.name == clean(name).strip()))
    if row is None or not row.active:
        return None, ""
    return account(row), row.password_hash


def account(row: Annotator) -> Account:
    """Convert a database row to an account."""
    return Account(row.id, row.name, "admin" if row.role == "admin" else "annotator", row.lang)
