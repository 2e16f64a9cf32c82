"""Who may sign in: names, passwords and roles."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.judges import JUDGE
from alpaca_rlhf.preferences.queue import clean
from alpaca_rlhf.preferences.schema import Annotator

Role = Literal["annotator", "admin"]
MOST_NAME = 80
"""Characters of a name."""
FEWEST_PASSWORD = 8
"""Characters of a password."""


_MAY_SIGN_IN = (Annotator.active, Annotator.password_hash != "")


@dataclass(frozen=True)
class Account:
    """Somebody who may sign in."""

    id: int
    """Number, which the other calls take."""
    name: str
    """Name."""
    role: Role
    """What they may do."""
    lang: str
    """Language of the app, `en` or `zh-CN`."""


def add(
    session: Session,
    name: str,
    password_hash: str,
    role: Role,
    lang: str,
    *,
    actor: str,
    now_ms: int,
) -> int:
    """Add somebody; returns the number.

    Raises:
        UserError: The name is taken, empty, too long, or a judge's.
    """
    name = clean(name).strip()
    if not 0 < len(name) <= MOST_NAME or name.startswith(JUDGE):
        raise UserError(
            f"{name[:MOST_NAME]!r}: a name has 1 to {MOST_NAME} characters and does not begin "
            f"with {JUDGE!r}"
        )
    if session.scalar(select(Annotator.id).where(Annotator.name == name)) is not None:
        raise UserError(f"{name!r}: there is an annotator of this name; choose another")
    row = {"name": name, "password_hash": password_hash, "role": role, "lang": lang}
    row |= {"active": True, "created_ms": now_ms}  # type: ignore[dict-item]
    number = session.execute(insert(Annotator).values(row).returning(Annotator.id)).scalar_one()
    entity = f"annotator:{number}"
    note(session, now_ms, actor, "add", entity, after={"name": name, "role": role})
    return number


def change(
    session: Session, annotator_id: int, changes: dict[str, Any], *, actor: str, now_ms: int
) -> None:
    """Change columns of somebody; the audit has them, without the password.

    Raises:
        UserError: There is no such annotator, or no admin would be left.
    """
    who = session.get(Annotator, annotator_id, with_for_update=True)
    if who is None:
        raise UserError(f"annotator {annotator_id}: there is none")
    before = {key: getattr(who, key) for key in changes if key != "password_hash"}
    for key, value in changes.items():
        setattr(who, key, value)
    session.flush()
    admins = select(Annotator.id).where(Annotator.role == "admin", *_MAY_SIGN_IN).limit(1)
    if before.get("role") == "admin" or ("active" in before and who.role == "admin"):
        if session.scalar(admins) is None:
            raise UserError(f"{who.name!r}: is the last admin; make another one first")
    after = {key: value if key != "password_hash" else "changed" for key, value in changes.items()}
    note(session, now_ms, actor, "change", f"annotator:{who.id}", before=before, after=after)


def any_accounts(session: Session) -> bool:
    """Whether anybody may sign in."""
    return session.scalar(select(Annotator.id).where(*_MAY_SIGN_IN).limit(1)) is not None


def local(session: Session, name: str, *, now_ms: int) -> Account:
    """Who works on an app without accounts: an admin who has no password, made if absent.

    Raises:
        UserError: Somebody who signs in has this name.
    """
    who = session.scalar(select(Annotator).where(Annotator.name == name))
    if who is None:
        number = add(session, name, "", "admin", "en", actor="system", now_ms=now_ms)
        return Account(number, name, "admin", "en")
    if who.password_hash:
        raise UserError(f"{name!r}: is somebody who signs in")
    return account(who)


def stamp(who: Annotator) -> str:
    """What is another one once the password was changed, and tells nothing of it."""
    return hashlib.sha256(f"{who.id} {who.password_hash}".encode()).hexdigest()


def password_hash(password: str) -> str:
    """The hash of a new password.

    Raises:
        UserError: It is too short.
    """
    if len(password) < FEWEST_PASSWORD:
        raise UserError(f"the password is too short: give {FEWEST_PASSWORD} characters or more")
    return passwords.hashed(password)


def found(session: Session, name: str) -> tuple[Account | None, str]:
    """Somebody who may sign in, and the hash of the password, empty if there is no such name."""
    who = session.scalar(select(Annotator).where(Annotator.name == clean(name).strip()))
    if who is None or not who.active:
        return None, ""
    return account(who), who.password_hash


def account(who: Annotator) -> Account:
    """A row as an account."""
    return Account(who.id, who.name, "admin" if who.role == "admin" else "annotator", who.lang)
