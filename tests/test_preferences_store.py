"""The store under load and kills, on SQLite and on a PostgreSQL of the tests' own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select, text

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.assignment import Refused, Rules, Verdict
from alpaca_rlhf.preferences.schema import Annotator, Assignment, Audit, CandidateSet, Ranking
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates

PLAIN = Rules(gold_rate=0, repeat_rate=0)


def people(store, n):
    return [store.add_annotator(f"person {i}", "long enough") for i in range(n)]


def as_shown(task):
    return Verdict(tuple((one.id,) for one in task.completions))


def rows(store, table):
    with store.database.reading() as session:
        found = list(session.scalars(select(table).order_by(table.id)))
        session.expunge_all()
        return found


def audit_of(store):
    return [(one.actor, one.action, one.entity) for one in rows(store, Audit)]


def alone(store):
    """Waits till PostgreSQL has carried out what a killed client had sent."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(1500 if store.database.dialect == "postgresql" else 0):
        with store.database.reading() as session:
            if not session.scalar(others):
                return
        time.sleep(0.02)
    assert store.database.dialect == "sqlite", "a killed client is still connected after 30 s"


def places_add_up(store):
    """Places taken are those of tasks that are open or done; none beyond the target.

    What people who are left out have done takes no place and is no verdict.
    """
    out = {annotator.id for annotator in rows(store, Annotator) if annotator.left_out}
    held, done = Counter(), Counter()
    for task in rows(store, Assignment):
        counts = task.state == "done" and task.annotator_id not in out
        if task.kind == "task" and (counts or task.state == "open"):
            held[task.candidate_set_id] += 1
            done[task.candidate_set_id] += counts
    for row in rows(store, CandidateSet):
        assert row.claimed == held[row.id] <= row.target
        assert row.verdicts == done[row.id]


def test_fifty_annotators_at_once(where):
    with Store(where, rules=PLAIN, seed=0) as store:
        sets = candidates(60)
        assert store.add_sets(sets, origin="test") == 60
        who = people(store, 50)
        targets = [one.target for one in rows(store, CandidateSet)]
        assert 0 < targets.count(2) < 30 and set(targets) == {1, 2}
        saved, errors = [], []

        def work(one):
            try:
                while (task := store.claim(one)) is not None:
                    answer = store.submit(one, task.id, as_shown(task), revision=task.revision)
                    again = store.submit(one, task.id, as_shown(task), revision=task.revision)
                    assert again.already and again.ranking_id == answer.ranking_id
                    saved.append((answer.ranking_id, task.id, answer.already))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(one,)) for one in who]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not errors
        kept = rows(store, Ranking)
        assert sorted(one.id for one in kept) == sorted(number for number, _, _ in saved)
        assert not any(already for _, _, already in saved)
        assert len({task for _, task, _ in saved}) == len(saved) == sum(targets)
        twice = Counter((a.candidate_set_id, a.annotator_id) for a in rows(store, Assignment))
        assert max(twice.values()) == 1
        places_add_up(store)
        assert sum(action == "submit" for _, action, _ in audit_of(store)) == len(saved)


def test_killed_while_writing(where, tmp_path):
    """Five times: what was acknowledged is there, and a retry says that it was saved already."""
    with Store(where, rules=PLAIN, seed=0) as store:
        store.add_sets(candidates(1500), origin="test")
        people(store, 50)
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    program = [sys.executable, "-m", "tests.databases", where, str(acknowledged)]
    seen = 0
    for kill in range(5):
        process = subprocess.Popen(program, cwd=Path(__file__).parent.parent)
        wanted = seen + 5 + 9 * kill
        while len(acknowledged.read_bytes().splitlines()) < wanted and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines = acknowledged.read_text().splitlines()
        seen = len(lines)
        assert seen >= wanted
        with Store(where, rules=PLAIN) as store:
            alone(store)
            kept = {one.id: one for one in rows(store, Ranking)}
            given = {one.id: one for one in rows(store, Assignment)}
            for line in lines:
                task, revision, who, best, ranking = line.split()
                found = kept[int(ranking)]
                assert found.assignment_id == int(task) and found.tiers[0] == [best]
                order = Verdict(tuple((one,) for one in given[int(task)].shown_order))
                again = store.submit(int(who), int(task), order, revision=int(revision))
                assert again.already and again.ranking_id == int(ranking)
            assert len(rows(store, Ranking)) == len(kept)
            places_add_up(store)


def test_adding_twice_adds_nothing(store):
    sets = candidates(5)
    assert store.add_sets(sets, origin="a") == 5
    assert store.add_sets([(p, list(reversed(own))) for p, own in sets], origin="b") == 0
    later = [(p, own[:3]) for p, own in sets]
    assert store.add_sets(later, origin="c") == 5
    assert [one.completions for one in rows(store, CandidateSet)][:5] == [
        [c.id for c in own]
        for _, own in sorted(
            sets,
            key=lambda row: [one.completions for one in rows(store, CandidateSet)][:5].index(
                [c.id for c in row[1]]
            ),
        )
    ]
    with pytest.raises(ValueError, match="2 to 9 different"):
        store.add_sets([(sets[0][0], sets[0][1][:1])], origin="d")


def test_text_that_no_database_holds(store):
    (prompt, own), *_ = candidates(1)
    from dataclasses import replace

    hostile = [replace(own[0], text="a\0b \ud800 ${x}<img src=x onerror=1>"), own[1]]
    store.add_sets([(prompt, hostile)], origin="test")
    (who,) = people(store, 1)
    texts = {one.id: one.text for one in store.claim(who).completions}
    assert texts[hostile[0].id] == "a\ufffdb ? ${x}<img src=x onerror=1>"


def test_a_lease_that_ends_gives_the_place_back(store, clock):
    store.add_sets(candidates(1), origin="test")
    first, second = people(store, 2)
    with store.database.writing() as session:
        session.get(CandidateSet, 1).target = 1
    task = store.claim(first)
    assert store.claim(second) is None
    clock.now += 800
    store.renew(first, task.id)
    clock.now += 800
    assert store.claim(second) is None, "it was renewed"
    clock.now += 200
    other = store.claim(second)
    assert other is not None and other.id != task.id
    places_add_up(store)
    # the first one worked all the while: what was done is kept, with a place of its own
    late = store.submit(first, task.id, as_shown(task))
    assert not late.already and late.duration_s == pytest.approx(1800)
    store.submit(second, other.id, as_shown(other))
    places_add_up(store)
    assert [one.target for one in rows(store, CandidateSet)] == [2]


def test_who_let_a_task_lie_gets_it_again(store, clock):
    store.add_sets(candidates(1), origin="test")
    (who,) = people(store, 1)
    task = store.claim(who)
    clock.now += 1000
    again = store.claim(who)
    assert again.id == task.id
    assert [one.id for one in again.completions] == [one.id for one in task.completions]
    places_add_up(store)


def test_a_second_tab_shows_the_same_task_and_a_prefetch_another(store):
    store.add_sets(candidates(3), origin="test")
    (who,) = people(store, 1)
    task = store.claim(who)
    assert store.claim(who).id == task.id
    beyond = store.claim(who, holding=[task.id])
    assert beyond.id != task.id
    assert store.claim(who).id == task.id


def test_skip_and_flag_give_the_place_to_others(store):
    store.add_sets(candidates(2), origin="test")
    first, second = people(store, 2)
    with store.database.writing() as session:
        for number in (1, 2):
            session.get(CandidateSet, number).target = 1
    skipped = store.claim(first)
    store.skip(first, skipped.id, "too long")
    store.skip(first, skipped.id)
    flagged = store.claim(first)
    assert flagged.prompt != skipped.prompt
    words = "<script>alert(1)</script>"
    for _ in range(2):
        store.flag(first, flagged.id, "spam", words, completion=flagged.completions[0].id)
    assert store.claim(first) is None, "neither comes back"
    found = store.flagged()
    assert [(one.reason, one.text, one.annotator) for one in found] == [("spam", words, "person 0")]
    places_add_up(store)
    prompts = {store.claim(second).prompt.id}
    prompts.add(store.claim(second, holding=[one.id for one in rows(store, Assignment)]).prompt.id)
    assert prompts == {skipped.prompt.id, flagged.prompt.id}
    store.retire(found[0].candidate_set, actor="annotator:1")
    with pytest.raises(Refused, match="not one of the task"):
        store.flag(first, flagged.id, "spam", completion="nonsense")


def test_a_retired_set_is_not_handed_out(store):
    store.add_sets(candidates(1), origin="test")
    store.retire(1, actor="annotator:9")
    (who,) = people(store, 1)
    assert store.claim(who) is None
    assert ("annotator:9", "retire", "candidate_set:1") in audit_of(store)


def test_what_a_browser_sends_is_checked(store):
    store.add_sets(candidates(1, k=3), origin="test")
    first, second = people(store, 2)
    task = store.claim(first)
    a, b, c = (one.id for one in task.completions)
    wrong = {
        "no place": ((a,), (b,)),
        "two places": ((a, b), (c, a)),
        "not one of the answers": ((a,), (b,), ("x" * 100,)),
        "a tier is empty": ((a, b, c), ()),
    }
    for message, tiers in wrong.items():
        with pytest.raises(Refused, match=message) as refused:
            store.submit(first, task.id, Verdict(tiers))
        assert refused.value.problem == "incomplete"
    good = ((b,), (a, c))
    for stars in ({a: {"relevance": 6}}, {a: {"relevance": True}}, {"x": {"relevance": 1}}):
        with pytest.raises(Refused) as refused:
            store.submit(first, task.id, Verdict(good, stars))
        assert refused.value.problem == "bad_value"
    with pytest.raises(Refused) as refused:
        store.submit(second, task.id, Verdict(good))
    assert refused.value.problem == "not_yours"
    with pytest.raises(Refused) as refused:
        store.submit(first, 999, Verdict(good))
    assert refused.value.problem == "unknown"
    with pytest.raises(Refused):
        store.submit(first, task.id, Verdict(good), revision=3)
    assert rows(store, Ranking) == []
    assert not store.submit(first, task.id, Verdict(good, {a: {"relevance": 5}}, True)).already
    (kept,) = rows(store, Ranking)
    assert (kept.tiers, kept.criteria, kept.all_bad) == (
        [[b], [a, c]],
        {a: {"relevance": 5}},
        True,
    )


def test_undo_is_a_revision_and_a_lost_retry_changes_nothing(store, clock):
    store.add_sets(candidates(1), origin="test")
    (who,) = people(store, 1)
    task = store.claim(who)
    clock.now += 12
    store.submit(who, task.id, as_shown(task))
    assert store.figures().counts["rankings"] == 1
    back = store.undo(who)
    assert (back.id, back.revision, back.tiers) == (task.id, 2, as_shown(task).tiers)
    assert store.undo(who, task.id).revision == 2, "pressed twice"
    assert store.figures().counts["rankings"] == 0
    assert store.submit(who, task.id, as_shown(task)).already, "the old submit, sent again"
    turned = Verdict(tuple(reversed(as_shown(task).tiers)))
    clock.now += 5
    assert store.submit(who, task.id, turned, revision=2).duration_s == pytest.approx(5)
    kept = rows(store, Ranking)
    assert [(one.revision, one.withdrawn) for one in kept] == [(0, False), (1, True), (2, False)]
    assert kept[0].tiers == kept[1].tiers == list(map(list, as_shown(task).tiers))
    figures = store.figures()
    assert figures.counts["rankings"] == 1 and figures.counts["pairs"] == 6
    assert figures.median_s == 5
    places_add_up(store)


def test_gold_questions_and_repeats_come_at_their_rates(where, clock):
    rules = Rules(gold_rate=0.2, repeat_rate=0.2, repeat_after=5)
    with Store(where, rules=rules, seed=1, clock=clock) as store:
        store.add_sets(candidates(300), origin="test")
        gold = candidates(20, tag="gold ")
        known = {p.id: tuple((c.id,) for c in own) for p, own in gold}
        assert store.add_sets(gold, origin="gold", gold=known) == 20
        (who,) = people(store, 1)
        kinds, seen, order = Counter(), {}, []
        for at in range(100):
            task = store.claim(who)
            kinds[task.kind] += 1
            ids = sorted(one.id for one in task.completions)
            if task.kind == "repeat":
                assert at - seen[task.prompt.id] > 5 - 1
            else:
                assert task.prompt.id not in seen
                seen[task.prompt.id] = at
            if task.kind == "gold":
                verdict = Verdict(known[task.prompt.id])
                if kinds["gold"] == 1:
                    verdict = Verdict((tuple(ids),))
            else:
                verdict = Verdict(tuple((one,) for one in ids))
            order.append([one.id for one in task.completions] == ids)
            store.submit(who, task.id, verdict)
            clock.now += 1
        assert 10 <= kinds["gold"] <= 20 and 8 <= kinds["repeat"] <= 35
        assert sum(order) < 20, "shuffled"
        figures = store.figures()
        assert figures.counts["rankings"] == kinds["task"], "repeats and gold do not count"
        assert figures.gold_asked == kinds["gold"]
        assert figures.gold_rate == pytest.approx((kinds["gold"] - 1) / kinds["gold"])
        assert figures.self_consistency.n == kinds["repeat"]


def test_figures_by_hand(store, clock):
    """Three people, two sets; every number worked out on paper."""
    sets = candidates(2, k=3)
    store.add_sets(sets, origin="test")
    ann, bob, _ = people(store, 3)
    with store.database.writing() as session:
        for number in (1, 2):
            session.get(CandidateSet, number).target = 2
    for who, seconds in ((ann, 10), (bob, 30)):
        for _ in range(2):
            task = store.claim(who)
            clock.now += seconds
            a, b, c = (one.id for one in task.completions)
            # Ann: the first shown wins alone, then all tie. Bob: a tie of two at the top, twice.
            if who == ann:
                mine = ((a,), (b,), (c,)) if task.id == 1 else ((a, b, c),)
            else:
                mine = ((a, b), (c,))
            store.submit(who, task.id, Verdict(mine))
    found = store.figures()
    assert found.counts == {
        "prompts": 2,
        "completions": 6,
        "sets": 2,
        "left_out": 0,
        "demonstrations": 0,
        "thumbs": 0,
        "open_places": 0,
        "rankings": 4,
        "judged": 0,
        "pairs": 3 + 0 + 2 + 2,
        "flags": 0,
        "battles": 0,
    }
    assert found.first_slot_rate == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found.first_slot_expected == pytest.approx(1 / 3)
    assert found.median_s == 10  # of 10, 10, 30, 30 the lower
    assert (found.agreement.n, found.agreement.alpha) == (2, None)
    assert [(one.name, one.rankings, one.pairs, one.median_s) for one in found.people] == [
        ("person 0", 2, 3, 10),
        ("person 1", 2, 4, 30),
        ("person 2", 0, 0, None),
    ]
    assert found.last_hour == 4 and [n for _, n in found.by_day] == [4]
    mine = store.progress(bob)
    assert (mine.mine, mine.mine_today, mine.mine_last_hour) == (2, 2, 2)
    assert (mine.all_rankings, mine.sets, mine.sets_ranked) == (4, 2, 2)


def test_progress_before_anybody_ranked(store):
    (ann,) = people(store, 1)
    store.add_sets(candidates(3), origin="test")
    store.claim(ann)
    mine = store.progress(ann)
    assert (mine.mine, mine.mine_today, mine.mine_last_hour) == (0, 0, 0)
    assert (mine.all_rankings, mine.sets, mine.sets_ranked) == (0, 3, 1)


def test_judges_are_held_against_people(store, clock):
    """Of 40 sets a person turns 28 round that the judge ranked, and says the same of 4."""
    from alpaca_rlhf.core.records import Ranking as Record

    sets = candidates(40, k=3)
    store.add_sets(sets, origin="test")
    by_judge = [Record(p.id, tuple((c.id,) for c in own), "judge:llm") for p, own in sets]
    store.add_rankings(by_judge)
    found = store.figures()
    assert found.last_hour == 0, "nobody ranked"
    assert [(name, one.n) for name, one in found.judges] == [("judge:llm", 0)]
    turned = [Record(one.prompt_id, one.tiers[::-1], "ann") for one in by_judge[:28]]
    same = [Record(one.prompt_id, one.tiers, "ann") for one in by_judge[28:32]]
    store.add_rankings(turned)
    ((_, few),) = store.figures().judges
    assert (few.n, few.tau) == (28, None)
    store.add_rankings(same)
    later = [Record(one.prompt_id, one.tiers, "bob") for one in by_judge[:32]]
    store.add_rankings(later)
    found = store.figures()
    ((_, both),) = found.judges
    assert both.n == 32 and both.tau == pytest.approx((4 - 28) / 32), "the first person counts"
    assert both.alpha < 0 and found.last_hour == 64
    store.add_rankings([Record(by_judge[0].prompt_id, by_judge[0].tiers[::-1], "judge:llm")])
    ((_, both),) = store.figures().judges
    assert both.tau == pytest.approx((5 - 27) / 32), "its newest word"


def test_judges_take_no_place(store):
    from alpaca_rlhf.core.records import Ranking as Record

    sets = candidates(2)
    store.add_sets(sets, origin="test")
    verdicts = [Record(p.id, tuple((c.id,) for c in own), "judge:gold") for p, own in sets]
    assert store.add_rankings(verdicts) == 2
    assert store.add_rankings(verdicts) == 0, "the same again is nothing new"
    found = store.figures()
    assert (found.counts["judged"], found.counts["rankings"]) == (2, 0)
    assert all(one.claimed == 0 for one in rows(store, CandidateSet))
    assert store.sign_in("judge:gold", "") is None
    person = [Record(sets[0][0].id, verdicts[0].tiers, "oasst", duration_s=3.0)]
    assert store.add_rankings(person) == 1
    places_add_up(store)
    with pytest.raises(ValueError, match="no candidate set"):
        store.add_rankings([Record("0" * 16, (("a",), ("b",)), "judge:x")])


def test_a_vote_is_final(store):
    (prompt, own), *_ = candidates(1)
    store.add_sets([(prompt, own)], origin="test")
    ann, bob = people(store, 2)
    answers = (("sft", own[0].id), ("ppo", own[1].id))
    left = Counter()
    for _ in range(20):
        round_ = store.battle(ann, prompt.id, answers)
        assert {round_.left, round_.right} == {own[0].text, own[1].text}
        with pytest.raises(Refused):
            store.vote(bob, round_.round, "left")
        told = store.vote(ann, round_.round, "left")
        assert (told.left == "sft") == (round_.left == own[0].text)
        again = store.vote(ann, round_.round, "right")
        assert again.already and again.vote == "left"
        left[told.left] += 1
    assert min(left.values()) > 2, "sides are drawn"
    blown = store.battle(ann, prompt.id, answers)
    store.vote(ann, blown.round, "tie", blind=False)
    tied = store.battle(ann, prompt.id, answers)
    store.vote(ann, tied.round, "both_bad")
    (score,) = store.scores()
    assert (score.first, score.second) == ("ppo", "sft")
    assert (score.wins, score.losses, score.ties) == (left["ppo"], left["sft"], 1)


def test_passwords_and_roles(store):
    admin = store.add_annotator("Ann", "correct horse", role="admin")
    assert store.sign_in("Ann", "correct horse").role == "admin"
    assert store.sign_in("Ann", "correct horsf") is None
    assert store.sign_in("nobody", "correct horse") is None
    for name, password in (("Ann", "long enough"), ("", "long enough"), ("judge:x", "long enough")):
        with pytest.raises(UserError):
            store.add_annotator(name, password)
    with pytest.raises(UserError, match="too short"):
        store.add_annotator("Bob", "short")
    for change in ({"active": False}, {"role": "annotator"}):
        with pytest.raises(UserError, match="last admin"):
            store.change_annotator(admin, actor="x", **change)
    bob = store.add_annotator("Bob", "long enough")
    store.change_annotator(bob, password="even longer", actor="annotator:1")
    assert store.sign_in("Bob", "even longer").id == bob
    store.change_annotator(bob, active=False, actor="annotator:1")
    assert store.sign_in("Bob", "even longer") is None and store.account(bob) is None
    with pytest.raises(Refused):
        store.claim(bob)
    assert "even longer" not in str([vars(one) for one in rows(store, Audit)])


def test_a_change_and_its_audit_stand_or_fall_together(store, monkeypatch):
    store.add_sets(candidates(1), origin="test")
    (who,) = people(store, 1)
    task = store.claim(who)
    from alpaca_rlhf.preferences import verdicts

    def broken(*args, **kwargs):
        raise RuntimeError("no audit")

    monkeypatch.setattr(verdicts, "note", broken)
    with pytest.raises(RuntimeError):
        store.submit(who, task.id, as_shown(task))
    assert rows(store, Ranking) == []
    assert store.figures().counts["rankings"] == 0
    monkeypatch.undo()
    assert not store.submit(who, task.id, as_shown(task)).already


def test_completions_for_a_battle_are_no_task(store):
    ann = store.add_annotator("ann", "long enough")
    ((prompt, own),) = candidates(1, 2)
    store.add_completions([(prompt, own)])
    store.add_completions([(prompt, own)])
    assert store.claim(ann) is None and store.progress(ann).sets == 0
    pairing = store.battle(ann, prompt.id, (("sft", own[0].id), ("ppo", own[1].id)))
    assert {pairing.left, pairing.right} == {one.text for one in own}
    with pytest.raises(ValueError, match="answers"):
        store.add_completions([(Instruction("Another."), own)])


def test_which_prompts_a_policy_has_answered(store):
    rows = candidates(3, 2)
    store.add_sets(rows[:2], origin="t")
    store.add_completions(rows[2:])  # no set: nobody will rank it
    ids = [prompt.id for prompt, _ in rows]
    assert store.answered(ids, "ab12") == set(ids[:2])
    assert store.answered(ids[1:], "ab12") == {ids[1]}
    assert store.answered(ids, "other") == set() == store.answered([], "ab12")


def test_a_set_that_is_reserved_comes_next(store):
    ann, bob = (store.add_annotator(name, "long enough") for name in ("ann", "bob"))
    rows = candidates(5, 3)
    store.add_sets(rows, origin="t")
    prompt, own = rows[3]
    ids = [one.id for one in own]
    assert store.reserve(ann, prompt.id, ids[::-1])
    assert not store.reserve(ann, prompt.id, ids), "a second press of the button"
    task = store.claim(ann)
    assert task.prompt == prompt and sorted(one.id for one in task.completions) == sorted(ids)
    other = store.claim(bob)
    assert other.prompt != prompt
    assert not store.reserve(ann, prompt.id, ids[:2]), "there is no such set"
