"""The terminal: progress, ranking by people, chat."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sqlalchemy import select

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli.chat import Conversation
from alpaca_rlhf.cli.ranking import RankingSession, parse_order
from alpaca_rlhf.cli.terminal import Terminal, next_lines, plain, result_lines
from alpaca_rlhf.core.durations import duration
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.preferences import read_snapshot
from alpaca_rlhf.preferences.assignment import Candidates, Rules, Verdict
from alpaca_rlhf.preferences.schema import Assignment, CandidateSet, Prompt
from alpaca_rlhf.preferences.schema import Ranking as Revision
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Loop, Lora, Sampling
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.sources.sampled import Sheet, read_sheets
from tests import forked

# --- text and progress -------------------------------------------------------------------------


def test_text_that_could_steer_the_terminal_is_disarmed():
    text = (
        "red \x1b[31m bell \a back \b return \r tab\t line\r\nnext \u202eright\u2069 \x9b 🙂 中文"
    )
    assert plain(text) == "red [31m bell  back  return  tab\t line\nnext right  🙂 中文"


@settings(deadline=None)
@given(st.text())
def test_plain_is_idempotent_and_keeps_ordinary_text(text):
    assert plain(plain(text)) == plain(text)
    ordinary = "".join(one for one in text if one.isalnum() or one == " ")
    assert plain(ordinary) == ordinary


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (3723, "1:02:03")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


class Clock:
    """Seconds that only go on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(
    clock: Clock, *, terminal: bool = False, width: int = 100
) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False)
    return Terminal(console, clock=clock), out


def test_plain_lines_tell_rate_and_remaining_time_now_and_then():
    clock = Clock()
    terminal, out = shown(clock)
    with terminal:
        terminal.start("ppo", "train the policy")
        clock.now += 40  # loading the base, and the first update
        for update in range(1, 11):
            terminal.step("ppo", update, 20, {"score": 0.5 + update, "kl": 0.1, "lr": 1e-4})
            clock.now += 2
        terminal.finish("ppo", "score up")
    lines = out.getvalue().splitlines()
    assert lines[0] == "ppo: train the policy"
    assert lines[1] == "  ppo 1/20 updates, score 1.5, kl 0.1"
    # two seconds an update since the first one, whatever was before it; a line every five seconds
    assert lines[2] == "  ppo 4/20 updates, 2 s/update, ETA 0:32, score 4.5, kl 0.1"
    assert lines[3].startswith("  ppo 7/20 updates, 2 s/update, ETA 0:26")
    assert lines[-1] == "  done in 1:00: score up"
    assert len(lines) == 6


def test_a_resumed_stage_counts_its_rate_from_where_it_goes_on():
    clock = Clock()
    terminal, out = shown(clock)
    terminal.start("sft", "train")
    for step in (51, 61):
        clock.now += 5
        terminal.step("sft", step, 100, {})
    assert out.getvalue().splitlines()[-1] == "  sft 61/100 steps, 2 steps/s, ETA 0:20"


def test_a_part_of_a_stage_has_its_own_pace():
    clock = Clock()
    terminal, out = shown(clock)
    terminal.start("reward", "train")
    for stage, step in (("reward_shuffled", 1), ("reward_shuffled", 9), ("reward", 1)):
        clock.now += 10
        terminal.step(stage, step, 9, {})
    assert out.getvalue().splitlines()[-1] == "  reward 1/9 steps"


def test_on_a_terminal_a_live_line_is_shown_and_taken_away():
    terminal, out = shown(Clock(), terminal=True)
    with terminal:
        terminal.start("sft", "train")
        terminal.step("sft", 3, 9, {"loss": 1.5})
        assert terminal._live is not None
        terminal._live.refresh()
        assert "sft 3/9 steps, loss 1.5" in out.getvalue()
        with pytest.raises(RuntimeError), terminal:
            raise RuntimeError
        assert terminal._live is None


def test_model_text_is_no_markup_and_is_never_wrapped():
    terminal, out = shown(Clock(), width=20)
    terminal.say("[bold]:smile: [/x] " + "word " * 10)
    assert out.getvalue() == "[bold]:smile: [/x] " + "word " * 10 + "\n"


SEGMENTS = [
    ("<s>Name [red]a[/red] \x1b[31mcolour." + "x" * 2000 + "end", False),
    (" Blue.</s>", True),
    ("\n\nMore?", False),
    (" No.</s>", True),
]


def test_a_preview_shows_what_carries_loss_in_green():
    terminal, out = shown(Clock(), terminal=True)
    terminal.preview("sft", "row 1: 7 of 90 tokens carry loss", SEGMENTS)
    text = out.getvalue()
    assert "7 of 90 tokens carry loss" in text
    assert "\x1b[32m Blue.</s>" in text and "\x1b[32m No.</s>" in text
    assert text.count("\x1b[32m") == 2
    assert "\x1b[2m<s>Name [red]a[/red] [31mcolour." in text  # dim, and disarmed
    assert "[... 8" in text and "end" in text and "x" * 1000 not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_preview_without_colours_marks_it(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    teller, out = shown(Clock(), terminal=terminal)
    teller.preview("sft", "row 1: 7 of 90 tokens carry loss", SEGMENTS)
    assert "end[[ Blue.</s>]]\n\nMore?[[ No.</s>]]\n" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_results_are_one_line_a_policy():
    figures = {"gold_score": 0.5, "ci95": [0.4, 0.6]}
    gain = {"paired_gain_vs_sft": 0.125, "paired_gain_ci95": [0.1, 0.15]}
    report = {"policies": {"sft": figures, "best_of_k": figures | gain}}
    first, *lines = result_lines(report)
    assert "gold" in first and "95%" in first
    assert lines[0] == "  sft        0.500 [0.400, 0.600]"
    assert lines[1] == "  best_of_k  0.500 [0.400, 0.600]  +0.125 [+0.100, +0.150]"


def test_results_of_a_handful_of_prompts_have_no_interval():
    figures = {"gold_score": 0.5, "ci95": [0.4, 0.6]}
    gain = {"paired_gain_vs_sft": 0.125, "paired_gain_ci95": [0.1, 0.15]}
    policies = {"sft": figures, "ppo": figures | gain}
    first, *lines = result_lines({"policies": policies, "prompts": {"eval": 19}})
    assert "19 prompts are too few for an interval" in first
    assert lines == ["  sft  0.500", "  ppo  0.500  +0.125"]
    enough = result_lines({"policies": policies, "prompts": {"eval": 20}})
    assert enough == result_lines({"policies": policies})


def test_results_of_a_handful_of_clusters_have_no_interval():
    """The report shows none either: forty near-duplicates are five prompts."""
    figures = {"gold_score": 0.5, "ci95": [0.4, 0.6]}
    gain = {"paired_gain_vs_sft": 0.125, "paired_gain_ci95": [0.1, 0.15]}
    report = {"policies": {"sft": figures, "ppo": figures | gain}}
    first, *lines = result_lines({**report, "prompts": {"eval": 40, "eval_clusters": 5}})
    assert "40 prompts in 5 clusters of near-duplicates are too few for an interval" in first
    assert lines == ["  sft  0.500", "  ppo  0.500  +0.125"]
    enough = result_lines({**report, "prompts": {"eval": 40, "eval_clusters": 20}})
    assert enough == result_lines(report)


def test_next_commands_stand_in_a_column():
    assert next_lines([("a", "one"), ("long", "two")]) == [
        "next:",
        "  a     # one",
        "  long  # two",
    ]
    assert next_lines([]) == []


def test_the_next_command_can_be_typed_where_the_environment_is_not_active(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    program = tmp_path / ".venv" / "bin" / "alpaca-rlhf"
    monkeypatch.setattr(sys, "argv", [str(program), "quickstart"])
    commands = [("alpaca-rlhf chat --run r", "talk"), ("python recipes/x.py", "real")]
    assert next_lines(commands)[1:] == [
        "  .venv/bin/alpaca-rlhf chat --run r  # talk",
        "  python recipes/x.py                 # real",
    ]
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert next_lines(commands)[1].startswith("  alpaca-rlhf chat --run r ")


# --- ranking: the orders -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "tiers"),
    [
        ("2 1=3 4", ((2,), (1, 3), (4,))),
        (" 2,1 = 3 ,4 ", ((2,), (1, 3), (4,))),
        ("2 > 1 = 3 > 4", ((2,), (1, 3), (4,))),
        ("1=2=3=4", ((1, 2, 3, 4),)),
        ("4 3 2 1", ((4,), (3,), (2,), (1,))),
    ],
)
def test_orders_that_are_understood(typed, tiers):
    assert parse_order(typed, 4) == tiers


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "not a number"),
        ("best", "'best' is not a number; type for example 2 1=3 4"),
        ("2 1=", "`=` joins two numbers"),
        ("= 1 2 3 4", "`=` joins two numbers"),
        ("1 2 3 5", "there is no answer 5; the answers are 1 to 4"),
        ("0 1 2 3", "there is no answer 0"),
        ("1 2 2 3", "answer 2 stands twice"),
        ("2134", "there is no answer 2134"),
        ("2 3", "still without one: 1, 4"),
        ("-1 2 3 4", "not a number"),
        ("1 2 3 ٤", "not a number"),
    ],
)
def test_orders_that_are_not(typed, said):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        parse_order(typed, 4)
    assert said in str(caught.value)


@settings(deadline=None)
@given(st.data())
def test_every_order_can_be_typed(data):
    k = data.draw(st.integers(2, 9))
    order = data.draw(st.permutations(range(1, k + 1)))
    ties = data.draw(st.lists(st.booleans(), min_size=k - 1, max_size=k - 1))
    joints = [" = " if tie else " " for tie in ties]
    typed = "".join(f"{n}{joint}" for n, joint in zip(order, [*joints, ""], strict=True))
    tiers = parse_order(typed, k)
    assert [n for tier in tiers for n in tier] == list(order)
    assert len(tiers) == k - sum(ties)


@settings(deadline=None)
@given(st.text(max_size=12), st.integers(2, 9))
def test_whatever_is_typed_is_an_order_or_told(typed, k):
    try:
        tiers = parse_order(typed, k)
    except ValueError:
        return
    assert sorted(n for tier in tiers for n in tier) == list(range(1, k + 1))


# --- ranking: a sitting ------------------------------------------------------------------------


def candidates(n: int = 3, k: int = 3) -> list[Candidates]:
    prompts = [Instruction(f"Task {i}.", "the input" if i == 0 else "") for i in range(n)]
    return [
        (prompt, [Completion(prompt.id, f"answer {c} of {prompt.instruction}") for c in range(k)])
        for prompt in prompts
    ]


class Person:
    """Types lines, one after the other, and then nothing more; remembers what was shown."""

    def __init__(self, *typed: str) -> None:
        self._typed = iter(typed)
        self.seen: list[str] = []

    def ask(self, question: str) -> str:
        self.seen.append(question)
        try:
            return next(self._typed)
        except StopIteration:
            raise EOFError from None

    def sit(
        self,
        path: Path,
        todo: list[Candidates],
        name: str = "Ann",
        clock: Callable[[], float] = time.monotonic,
    ) -> RankingSession:
        with Store(path) as store:
            store.add_sets(todo, origin="test")
            session = RankingSession(
                todo, store, name, ask=self.ask, say=self.seen.append, clock=clock
            )
            session.run()
        return session

    def tasks(self) -> list[str]:
        return [line.strip() for line in self.seen if line.startswith("  Task")]


def saved(path: Path, todo: Iterable[Candidates]) -> list[Ranking]:
    """The rankings in a database that count, in the order of the prompts."""
    folder = path.with_name(f"snapshot {time.time_ns()}")
    with Store(path) as store:
        store.export(folder)
    place = {prompt.id: n for n, (prompt, _) in enumerate(todo)}
    rankings = [ranking for _, _, ranking in read_snapshot(folder)]
    return sorted(rankings, key=lambda ranking: place[ranking.prompt_id])


def revisions(path: Path) -> list[tuple[str, int, list[list[str]]]]:
    """Prompt, number and tiers of every revision in a database, in the order they were kept."""
    with Store(path) as store, store.database.reading() as session:
        query = (
            select(Prompt.key, Revision.revision, Revision.tiers)
            .join(Assignment, Assignment.id == Revision.assignment_id)
            .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
            .join(Prompt, Prompt.id == CandidateSet.prompt_id)
            .order_by(Revision.id)
        )
        return [(prompt, revision, tiers) for prompt, revision, tiers in session.execute(query)]


def texts(ranking: Ranking, todo: Iterable[Candidates]) -> list[set[str]]:
    by_id = {one.id: one.text for _, completions in todo for one in completions}
    return [{by_id[one] for one in tier} for tier in ranking.tiers]


def test_a_sitting_to_the_end(tmp_path):
    todo, path, person = candidates(), tmp_path / "p.db", Person("2 1=3", "1 2 3", "3=2=1")
    session = person.sit(path, todo)
    assert session.left == 0
    rankings = saved(path, todo)
    assert [ranking.prompt_id for ranking in rankings] == [prompt.id for prompt, _ in todo]
    assert {ranking.annotator for ranking in rankings} == {"Ann"}
    assert [len(ranking.tiers) for ranking in rankings] == [2, 3, 1]
    # what the person saw under a number is what stands in its tier
    first = [line for line in person.seen if line.startswith(("1) ", "2) ", "3) "))][:3]
    label = {line[0]: line[3:] for line in first}
    assert texts(rankings[0], todo) == [{label["2"]}, {label["1"], label["3"]}]
    assert "  Input: the input" in person.seen


def test_the_order_on_the_screen_is_shuffled_but_always_the_same(tmp_path):
    todo = candidates(12, 4)
    first, again = Person(), Person()
    for person in (first, again):
        person._typed = iter(["s"] * 11)
        person.sit(tmp_path / f"{id(person)}.db", todo)
    assert first.seen == again.seen
    shown = [line[3:] for line in first.seen if line.startswith("1) ")]
    assert len({text.partition(" of ")[0] for text in shown}) > 1


def test_errors_are_told_and_asked_again(tmp_path):
    todo, path, person = candidates(1), tmp_path / "p.db", Person("1 2", "x", "1 2 3")
    person.sit(path, todo)
    assert [line for line in person.seen if "without one: 3" in line or "'x'" in line]
    assert len(saved(path, todo)) == 1


def test_it_goes_on_where_it_stopped(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    first = Person("1 2 3", "q")
    assert first.sit(path, todo).left == 2
    second = Person("1 2 3", "1 2 3")
    assert second.sit(path, todo).left == 0
    assert second.tasks() == ["Task 1.", "Task 2."]
    third = Person()
    assert third.sit(path, todo, "Bob").left == 0
    assert third.seen == []


def test_what_the_app_ranked_is_not_asked_again_in_the_terminal(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    with Store(path, rules=Rules(0, 0, 0, 0), seed=0) as store:
        store.add_sets(todo, origin="test")
        task = store.claim(ben := store.add_annotator("Ben", "long enough"))
        store.submit(ben, task.id, Verdict(tuple((one.id,) for one in task.completions)))
    person = Person("1 2 3", "1 2 3")
    assert person.sit(path, todo).left == 0
    assert task.prompt.instruction not in person.tasks() and len(person.tasks()) == 2


def test_the_end_of_the_input_ends_the_sitting_and_keeps_what_was_ranked(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    assert Person("1 2 3").sit(path, todo).left == 2
    assert len(saved(path, todo)) == 1


def test_a_skipped_prompt_comes_again_at_the_end(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    person = Person("s", "1 2 3", "1 2 3", "1 2 3")
    assert person.sit(path, todo).left == 0
    assert person.tasks() == ["Task 0.", "Task 1.", "Task 2.", "Task 0."]
    assert any("skipped before" in line for line in person.seen)


def test_a_prompt_that_stays_skipped_holds_up_nothing_and_is_asked_again_another_day(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    person = Person("s", "1 2 3", "1 2 3", "s")
    session = person.sit(path, todo)
    assert session.left == 0 and len(saved(path, todo)) == 2
    with Store(path) as store:
        assert store.standing() == Standing(ranked=2, skipped=1)
    other = Person("1 2 3")
    assert other.sit(path, todo, "Bob").left == 0 and other.tasks() == ["Task 0."]
    assert len(saved(path, todo)) == 3


def test_undo_appends_a_new_revision(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    person = Person("u", "1 2 3", "u", "3 2 1", "1 2 3", "1 2 3", "u", "2 1 3")
    assert person.sit(path, todo).left == 0
    assert any("nothing to go back to" in line for line in person.seen)
    rows = revisions(path)
    numbers = [(int(key == todo[0][0].id), revision) for key, revision, _ in rows]
    assert numbers == [(1, 0), (1, 1), (0, 0), (0, 0), (0, 1)]
    assert rows[1][2] == rows[0][2][::-1]
    assert [ranking.revision for ranking in saved(path, todo)] == [1, 0, 1]


def test_undo_reaches_back_into_an_earlier_sitting_of_the_same_person(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    Person("1 2 3", "q").sit(path, todo)
    person = Person("u", "3 2 1", "q")
    assert person.sit(path, todo).left == 2
    assert person.tasks() == ["Task 1.", "Task 0.", "Task 1."]
    assert saved(path, todo)[0].revision == 1
    other = Person("u", "q")
    other.sit(path, todo, "Bob")
    assert any("nothing to go back to" in line for line in other.seen)


def test_going_back_without_a_new_verdict_leaves_the_old_one(tmp_path):
    todo, path = candidates(), tmp_path / "p.db"
    person = Person("1 2 3", "u", "s", "1 2 3", "1 2 3")
    assert person.sit(path, todo).left == 0
    assert [ranking.revision for ranking in saved(path, todo)] == [0, 0, 0]


def test_the_time_of_a_verdict_is_measured_from_when_its_prompt_was_shown(tmp_path):
    now, todo = iter([10.0, 17.5]), candidates(1)
    Person("nonsense", "1 2 3").sit(tmp_path / "p.db", todo, clock=lambda: next(now))
    assert saved(tmp_path / "p.db", todo)[0].duration_s == 7.5


def test_a_judges_verdict_does_not_count_as_a_persons(tmp_path):
    todo, path = candidates(1), tmp_path / "p.db"
    ((prompt, completions),) = todo
    with Store(path) as store:
        store.add_sets(todo, origin="test")
        tiers = tuple((completion.id,) for completion in completions)
        store.add_rankings([Ranking(prompt.id, tiers, "judge:gold")])
    assert Person("1 2 3").sit(path, todo).left == 0
    assert [ranking.annotator for ranking in saved(path, todo)] == ["Ann"]
    with pytest.raises(UserError, match="--annotator"):
        Person().sit(path, todo, "judge:me")
    with pytest.raises(UserError, match="--annotator"):
        Person().sit(path, todo, " ")


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from alpaca_rlhf.cli.ranking import RankingSession
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.preferences.store import Store
from tests.test_ui import candidates
lines = iter(["1 2 3"])
def ask(question):
    for line in lines:
        return line
    os.kill(os.getpid(), 9)
store = Store({path!r})
store.add_sets(candidates(), origin="test")
RankingSession(candidates(), store, "Ann", ask=ask, say=lambda _: None).run()
"""


def test_a_verdict_survives_a_kill_right_after_it(tmp_path):
    path = tmp_path / "p.db"
    root = str(Path(__file__).parent.parent)
    program = KILLED.format(root=root, path=str(path))
    done = subprocess.run([sys.executable, "-c", program], timeout=60, cwd=root)
    assert done.returncode == -9
    assert len(saved(path, candidates())) == 1
    assert Person("1 2 3", "1 2 3").sit(path, candidates()).left == 0


def sheets() -> list[Sheet]:
    return [Sheet(prompt, tuple(completions)) for prompt, completions in candidates()]


def test_sheets_are_read_back_from_a_run(tmp_path):
    todo = sheets()
    write_instructions(tmp_path / "sample" / "prompts.jsonl", [one.prompt for one in todo])
    rows = [one.to_json() for sheet in todo for one in sheet.completions]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "sample" / "completions.jsonl").write_text(lines)
    assert read_sheets(tmp_path, "sample") == todo
    odd = replace(todo[0].completions[0], text="one line\u2028for JSON\x85")
    line = json.dumps(odd.to_json(), ensure_ascii=False) + "\n"
    (tmp_path / "sample" / "completions.jsonl").write_text(line)
    assert read_sheets(tmp_path, "sample")[0].completions == (odd,)
    (tmp_path / "sample" / "completions.jsonl").write_text(lines[:-9])
    with pytest.raises(UserError, match=r"completions.jsonl:\d+: is not a completion"):
        read_sheets(tmp_path, "sample")


# --- run folders -------------------------------------------------------------------------------


def test_policies_are_listed_in_the_order_of_their_training(tmp_path):
    for stage in ("ppo.2", "ppo.10", "reward", "sft", "ppo", "best_of_k", "best_of_k.2", "sample"):
        (tmp_path / stage / "adapter").mkdir(parents=True)
        if stage != "sample":
            (tmp_path / stage / "adapter" / "adapter_config.json").write_text("{}")
    names = "base sft best_of_k ppo best_of_k.2 ppo.2 ppo.10"
    assert list(run_contents.policies(tmp_path)) == names.split()


def test_facts_are_those_of_the_newest_reward_model(tmp_path):
    assert run_contents.reward_facts(tmp_path) == {}
    stages = ("reward", "reward.2", "reward.10", "reward.old", "rewarding.11")
    ledger = {stage: {"facts": {"of": stage}} for stage in stages}
    (tmp_path / "ledger.json").write_text(json.dumps(ledger))
    assert run_contents.reward_facts(tmp_path) == {"of": "reward.10"}


def test_a_damaged_run_folder_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        run_contents.settings_of(tmp_path)
    (tmp_path / "config.yaml").write_text("sedd: 1\n")
    with pytest.raises(UserError, match=r"config.yaml:1"):
        run_contents.settings_of(tmp_path)
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"provenance.json: is not JSON"):
        run_contents.kind_of(tmp_path)
    with pytest.raises(UserError, match=r"ledger.json"):
        (tmp_path / "ledger.json").write_text("[]")
        run_contents.stages_done(tmp_path)


def test_a_moved_run_is_read_with_its_new_place(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(Loop(out=Path("elsewhere"), seed=4)))
    assert run_contents.settings_of(tmp_path) == Loop(out=tmp_path, seed=4)


# --- chat --------------------------------------------------------------------------------------


class Echo:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.turns: list[int] = []

    def answer(self, policy: str, row: Instruction, turn: int) -> str:
        self.turns.append(turn)
        if "too long" in row.instruction:
            raise UserError("the instruction is too long")
        if "for ever" in row.instruction:
            raise KeyboardInterrupt
        return f"{policy}: {row.instruction}" + (f" / {row.input}" if row.input else "")


def talk(*typed: str) -> tuple[list[str], Echo]:
    person, echo = Person(*typed), Echo()
    said: list[str] = []
    Conversation(echo, ["base", "sft", "ppo"], "ppo", ask=person.ask, say=said.append).run()
    return said, echo


def test_a_conversation():
    said, echo = talk("Name a fruit.", "", "   ", "Name a fruit.", "/quit", "never read")
    assert said == ["ppo: Name a fruit."] * 2
    assert echo.turns == [1, 2]  # asked again, answered anew


class Remembering(Echo):
    """Answers with the number of turns it was shown, and their last reply."""

    def answer(self, policy: str, row: Instruction, turn: int) -> str:
        super().answer(policy, row, turn)
        return f"{policy} {len(row.history)} {row.history[-1:]}"


def test_a_conversation_remembers_where_it_should():
    typed = ["One.", "/input x", "Two.", "this is too long", "/compare Three.", "/compare", "Four."]
    typed += ["/new", "Five.", "/remember", "Six.", "Seven.", "/remember", "Eight."]
    person, said, names = Person(*typed), list[str](), ["sft", "ppo"]
    Conversation(Remembering(), names, "ppo", remember=True, ask=person.ask, say=said.append).run()
    first = "ppo 0 ()"
    second = f"ppo 1 {(('One.', first),)}"
    third = [f"[{name}] {name} 2 {(('Two.' + chr(10) * 2 + 'x', second),)}" for name in names]
    assert said[:3] == [first, second, "the instruction is too long"]
    assert said[3:7] == third * 2  # asked again, it stands where it stood
    assert said[7].startswith("ppo 3 ") and "Three." in said[7]
    assert said[8:10] == ["a new conversation", "ppo 0 ()"]
    assert said[10:13] == ["every instruction stands alone from now on", "ppo 0 ()", "ppo 0 ()"]
    assert said[13:] == ["earlier turns are remembered from now on", "ppo 0 ()"]


def test_a_run_remembers_if_its_sft_saw_conversations(tmp_path):
    assert not run_contents.saw_conversations(tmp_path)
    for facts in ({}, {"conversations": 0}, {"conversations": 3}):
        (tmp_path / "ledger.json").write_text(json.dumps({"sft": {"facts": facts}}))
        assert run_contents.saw_conversations(tmp_path) == (facts == {"conversations": 3})


def test_policies_are_switched_and_compared():
    said, _ = talk(
        "/policy sft", "Hi.", "/compare", "/policy best", "/policy", "/compare Name a cat."
    )
    assert said[:2] == ["base, [sft], ppo", "sft: Hi."]
    assert said[2:5] == ["[base] base: Hi.", "[sft] sft: Hi.", "[ppo] ppo: Hi."]
    assert said[5:7] == ["there is no policy best; there are base, sft, ppo", "base, [sft], ppo"]
    assert said[7] == "[base] base: Name a cat."


def test_an_input_belongs_to_the_next_instruction_only():
    said, _ = talk("/input red, blue", "Sort.", "/compare", "Sort.", "/input x", "/input", "Sort.")
    assert said == [
        "ppo: Sort. / red, blue",
        *(f"[{one}] {one}: Sort. / red, blue" for one in ("base", "sft", "ppo")),
        "ppo: Sort.",
        "ppo: Sort.",
    ]


def test_errors_and_unknown_commands_do_not_end_a_conversation():
    said, _ = talk("this is too long", "go on for ever", "/compere x", "/compare", "/help", "Hi.")
    assert said[0] == "the instruction is too long"
    assert said[1] == "stopped"
    assert said[2] == "/compere x: nothing to do; /help lists the commands"
    assert "Hi." in said[-1] and "/compare TEXT" in said[-2]
    last = talk("/compare")[0]
    assert last == ["/compare: nothing to do; /help lists the commands"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder) -> Path:
    """A run folder with adapters of two policies on the tiny base."""
    import torch

    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base

    out = tmp_path_factory.mktemp("chat") / "run"
    loop = Loop(
        base=str(tiny_folder),
        template="brief",
        out=out,
        lora=Lora(r=4, alpha=8),
        sampling=Sampling(max_new_tokens=12),
    )
    adapters = Adapters(load_base(loop.base), loop.lora, template=loop.template)
    for number, stage in enumerate(("sft", "ppo.2")):
        adapters.add("sft", seed=number)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(number)
            for parameter in adapters.parameters("sft").values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        adapters.save("sft", out / stage / "adapter")
    (out / "config.yaml").write_text(to_yaml(loop))
    return out


def chat(run: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "alpaca_rlhf", "chat", "--run", run, *words, input=typed)


def test_one_prompt_gives_one_answer_and_nothing_else(finished):
    once = chat(finished, "--prompt", "Name a colour.", "--temperature", "0")
    assert (once.returncode, once.stderr) == (0, "")
    assert once.stdout == plain(once.stdout) and once.stdout.strip()
    again = chat(finished, "--prompt", "Name a colour.", "--temperature", "0", "--policy", "PPO.2")
    assert again.stdout == once.stdout  # the last policy is the default one


def test_a_conversation_with_a_run(finished):
    lines = ["Name a colour.", "/policy sft", "Name a colour.", "/compare", "word " * 400, "/quit"]
    done = chat(finished, "--temperature", "0", typed="\n".join(lines) + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "base, sft, ppo.2" in done.stdout.splitlines()[0]
    assert "base, [sft], ppo.2" in done.stdout
    assert all(f"[{one}] " in done.stdout for one in ("base", "ppo.2"))
    assert "the instruction is too long" in done.stdout


def test_turns_that_fill_the_context_leave_it_oldest_first(finished, monkeypatch):
    from alpaca_rlhf.serving import policy_server

    asked = []

    def spy(base, template, row):
        asked.append(row.history)
        return prompt_ids(base, template, row)

    monkeypatch.setattr(policy_server, "prompt_ids", spy)
    settings = run_contents.settings_of(finished)
    made = policy_server.PolicyServer(
        settings, run_contents.policies(finished), SamplingSettings(temperature=0)
    )
    turns = tuple(
        (f"Say {word}.", f"{word} zqj " * 15) for word in ("red", "green", "blue", "lemon")
    )
    made.answer("sft", Instruction("Go on.", history=turns), 1)
    assert asked[0] == turns and 0 < len(asked[-1]) < 4
    assert asked[-1] == turns[-len(asked[-1]) :]
    short = Instruction("Go on.", history=turns[-1:])
    assert made.answer("sft", short, 1) != made.answer("sft", replace(short, history=()), 1)


def test_an_adapter_of_another_base_is_refused_in_one_line(finished, tmp_path, capsys):
    config = (finished / "config.yaml").read_text()
    assert "template: brief" in config
    (tmp_path / "config.yaml").write_text(config.replace("template: brief", "template: alpaca"))
    (tmp_path / "sft").symlink_to(finished / "sft")
    assert cli.main(["chat", "--run", str(tmp_path), "--prompt", "Hi."]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and "template" in output.err and output.out == ""
