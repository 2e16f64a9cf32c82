"""Signing in, sessions that end with a password, and flags that are looked at."""

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import Refused
from tests.databases import candidates


def test_a_store_without_accounts_has_a_local_admin_who_cannot_sign_in(store):
    local = store.local()
    assert local.role == "admin" and store.local() == local
    assert not store.any_accounts()
    assert store.sign_in("local", "") is None
    assert store.stamped(local.id) is None
    assert store.account(local.id) == local
    store.add_annotator("Ann", "long enough")
    assert store.any_accounts()
    with pytest.raises(UserError, match="signs in"):
        store.local("Ann")


def test_the_last_admin_who_can_sign_in_stays(store):
    """The local one does not count: nobody could sign in as it."""
    store.local()
    ann = store.add_annotator("Ann", "long enough", role="admin")
    for change in ({"active": False}, {"role": "annotator"}):
        with pytest.raises(UserError, match="last admin"):
            store.change_annotator(ann, actor="test", **change)
    assert store.account(ann).role == "admin"


def test_a_stamp_changes_with_the_password_and_with_nothing_else(store):
    first, second = (store.add_annotator(name, "the same word") for name in ("one", "other"))
    account, stamp = store.stamped(first)
    assert account.name == "one" and stamp != store.stamped(second)[1]
    store.change_annotator(first, role="admin", lang="zh-CN", actor="test")
    assert store.stamped(first)[1] == stamp
    store.change_annotator(first, password="another word", actor="test")
    assert store.stamped(first)[1] != stamp
    store.change_annotator(second, active=False, actor="test")
    assert store.stamped(second) is None and store.stamped(99) is None


def test_a_resolved_flag_waits_no_more(store):
    store.add_sets(candidates(3), origin="test")
    annotator = store.add_annotator("Ann", "long enough")
    for _ in range(3):
        store.flag(annotator, store.claim(annotator).id, "spam", "words")
    newest, middle, oldest = store.flagged()
    assert store.figures().counts["flags"] == 3
    store.resolve(middle.id, actor="annotator:1")
    store.resolve(middle.id, actor="annotator:1")
    assert [flag.id for flag in store.flagged()] == [newest.id, oldest.id]
    assert [flag.id for flag in store.flagged(before=newest.id)] == [oldest.id]
    assert store.figures().counts["flags"] == 2
    with pytest.raises(Refused):
        store.resolve(99, actor="annotator:1")
