"""The quick part of the attacker's table; `python -m tests.prove attacks` tries all of it."""

from tests import attacks


def test_nothing_that_requests_can_try_gets_through(tmp_path):
    tried = attacks.quick(tmp_path)
    through = [attack for attack in tried if attack.through]
    assert not through, through[:5]
    counts = {group: row["tried"] for group, row in attacks.summary(tried).items()}
    assert counts["without login"] > 300
    assert counts["from annotator to admin"] >= 35
    assert counts["forged origins"] >= 30 and counts["cookies"] >= 14
    assert len(counts) == 7
