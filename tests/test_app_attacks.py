"""The quick part of the attacker's table; `python -m tests.prove attacks` tries all of it."""

import time
from contextlib import closing

from alpaca_rlhf.app.chat_messages import Turn
from alpaca_rlhf.preferences import passwords
from tests import apps, attacks


def test_nothing_that_requests_can_try_gets_through(tmp_path):
    tried = attacks.quick(tmp_path)
    through = [attack for attack in tried if attack.through]
    assert not through, through[:5]
    counts = {group: row["tried"] for group, row in attacks.summary(tried).items()}
    assert counts["without login"] > 400
    assert counts["from annotator to admin"] >= 60
    assert counts["forged origins"] >= 160 and counts["cookies"] >= 14
    assert counts["another's talk"] >= 25 and counts["crafted forms"] >= 150
    assert counts["uploads"] >= 35 and counts["half-sent requests"] >= 16
    assert len(counts) == 12


def test_who_may_do_these_things_can(tmp_path, monkeypatch):
    """Or nothing could get through in the table: the same calls, by those whose right it is."""
    monkeypatch.setattr(passwords, "LOG_N", 4)
    victim = attacks.Victim(tmp_path / "runs" / "mine", all_tabs=True)
    with closing(victim):
        turns = [Turn("Where?", "Under the stone.").to_json()]
        number = victim.store.save_chat(victim.ann, None, "Where?", turns)
        with victim.visitor("ann") as ann:
            listed = ann.get("/config").json()["dependencies"]
            ids = {row["api_name"]: row["id"] for row in listed}
            assert attacks.OF_EVERYBODY - {attacks._name(row) for row in listed} == {"answer"}
            clicked = {"chat": number}
            said = attacks.called(
                ann, "queue", "open_place", ids["open_place"], [[], None], clicked
            )
            assert "Under the stone." in said
        with victim.visitor("boss") as boss:
            for path in attacks.ADMIN_GETS:
                assert boss.get(path).status_code in ((200, 404) if path == "/report" else (200,))
            before = victim.changes()
            attacks.called(boss, "queue", "act", ids["act"], [None], {"do": "train"})
            added = boss.post("/prompts?do=add&suffix=.jsonl", json={"instruction": "Hum a tune."})
            sent = {"instruction": "a", "output": "b"}
            kept = boss.post("/training/upload?kind=rows&suffix=.jsonl", json=sent)
            assert added.status_code == kept.status_code == 200
            ends = time.monotonic() + 60
            while not (victim.folder / apps.STARTED).exists() and time.monotonic() < ends:
                time.sleep(0.02)
            after = victim.changes()
        changed = {name for name, value in before.items() if value != after[name]}
        assert changed == {"trainings", "prompts", "uploads"}
