"""Recipes: the demonstrations each shows, the order of its requests, and the rows that stay."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import EVOLUTIONS
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    Drop,
    GenerationProgress,
    Reply,
    StepName,
    Teacher,
    generate,
    read_events,
    requests,
)
from tests.generation import SEEDS, AnyTeacher, run, settings


def asks(folder: Path) -> list:
    return [one for _, one in requests(folder)]


def test_self_instruct_shows_six_seeds_and_two_of_its_own_from_the_second_round_on(tmp_path: Path):
    run(tmp_path, "self-instruct")
    seeds = {row.instruction for row in SEEDS}
    own: set[str] = set()
    closed: set[str] = set()
    rounds = 0
    for at, one in enumerate(found := asks(tmp_path)):
        if one.ask.step != "propose":
            continue
        if at == 0 or found[at - 1].ask.step != "propose":
            closed, rounds = set(own), rounds + 1
        shown = [line.partition(". ")[2] for line in one.ask.prompt.splitlines()[1:-1]]
        assert len(shown) == len(set(shown)) == 8
        machine = [text for text in shown if text not in seeds]
        assert set(machine) <= closed, "a round never shows what it has made itself"
        assert len(machine) == (0 if rounds == 1 else 2)
        own |= {row.instruction for row in one.kept}
    assert rounds >= 3


def test_every_task_is_classified_and_then_instantiated_accordingly(tmp_path: Path):
    made = run(tmp_path, "self-instruct")
    proposed: dict[str, str] = {}
    answers: dict[str, bool] = {}
    for one in asks(tmp_path):
        about = one.ask.about.instruction if one.ask.about else ""
        if one.ask.step == "propose":
            proposed |= {row.id: row.instruction for row in one.kept}
            assert all(row.output is None for row in one.kept)
        elif one.ask.step == "classify":
            assert about in proposed.values() and about not in answers
            answers[about] = one.reply.text.strip().lower().startswith("yes")
        else:
            first = "Given the classification task definition"
            assert one.ask.prompt.startswith(first) == answers.pop(about)
            assert len(one.kept) <= 5
    assert {row.instruction for row in made.rows} <= set(proposed.values())
    by_task = [row.instruction for row in made.rows]
    assert any(by_task.count(one) > 1 for one in by_task), "several instances a task"
    assert len({(row.id, row.output) for row in made.rows}) == len(made.rows) == 200


def test_evolved_tasks_may_resemble_their_ancestors_and_nobody_else(tmp_path: Path):
    words = "Describe {} large birds in the garden of my old aunt near the sea"
    seeds = [Instruction(words.format("three"), "", "So."), Instruction("Sing.", "", "La.")]

    class Deepens(AnyTeacher):
        def reply(self, prompt: str, rng) -> Reply:
            if prompt.startswith("Below"):
                return Reply("Well.")
            parent = prompt.partition("#The Given Prompt#:\n")[2].partition("\n#Rew")[0]
            return Reply(parent + " slowly" if parent != "Sing." else words.format("four"))

    given = settings("evol", target=12)
    made = generate(Deepens(), seeds, given, seed=3, folder=tmp_path)
    assert {row.output for row in made.rows} == {"Well."}
    assert all(row.instruction.startswith("Describe three") for row in made.rows)
    cousins = [drop for drop in made.drops if drop.rule == "duplicate"]
    assert any(drop.row.instruction.startswith("Describe four") for drop in cousins if drop.row)
    again = [row for row in made.rows if row.instruction.count("slowly") > 1]
    assert again, "what was made evolves again"
    ways = {way for one in asks(tmp_path) for way in EVOLUTIONS if way in one.ask.prompt}
    assert ways == set(EVOLUTIONS)


def test_evolutions_that_say_nothing_new_are_dropped(tmp_path: Path):
    rules = {drop.rule for drop in run(tmp_path, "evol").drops}
    assert {"marker", "empty", "cut"} <= rules

    class Echo(AnyTeacher):
        def reply(self, prompt: str, rng) -> Reply:
            parent = prompt.partition("#The Given Prompt#:\n")[2].partition("\n#Rew")[0]
            return Reply(f"#Rewritten Prompt#: {parent.upper()}!")

    with pytest.raises(UserError, match=r"dropped by: unchanged 5000\)"):
        run(tmp_path / "echo", "evol", Echo())


def test_a_teacher_may_be_told_what_each_request_is_for(tmp_path: Path):
    steps: list[StepName] = []

    class Stepped(AnyTeacher):
        def at(self, step: StepName) -> Teacher:
            steps.append(step)
            return self

    made = run(tmp_path / "told", "self-instruct", Stepped())
    assert set(steps) == {"propose", "classify", "instances"}
    assert made.rows == run(tmp_path / "not", "self-instruct").rows


def test_too_few_seed_tasks(tmp_path: Path):
    with pytest.raises(UserError, match=r"--generate\.recipe self-instruct shows 8 tasks, got 7"):
        generate(AnyTeacher(), SEEDS[:7], settings("self-instruct"), seed=1, folder=tmp_path)
    with pytest.raises(UserError, match="no seed tasks"):
        generate(AnyTeacher(), [], settings("evol"), seed=1, folder=tmp_path)


def test_filters_are_chosen_by_name(tmp_path: Path):
    class Linked(AnyTeacher):
        def worksheet(self, rng) -> str:
            return super().worksheet(rng).replace("Done.", "See https://example.org now.")

    kept = {}
    for name in ("alpaca", "strict"):
        given = replace(settings("alpaca", target=50), filters=name)
        made = generate(Linked(), SEEDS, given, seed=1, folder=tmp_path / name)
        kept[name] = [row for row in made.rows if "https" in (row.output or "")]
        rules = {drop.rule for drop in made.drops}
        assert ("url" in rules) == (name == "strict")
    assert kept["alpaca"] and not kept["strict"]


def test_every_dropped_row_is_kept_with_its_nearest_neighbour(tmp_path: Path):
    made = run(tmp_path, "alpaca")
    known: Sequence[Instruction] = [*SEEDS, *made.rows]
    drops = [drop for drop in made.drops if drop.row is not None]
    assert len(drops) > 20 and all(drop.rule and drop.detail for drop in drops)
    ids = {row.id for row in known}
    assert all(drop.near in ids and 0 < drop.score <= 1 for drop in drops if drop.near)
    assert sum(bool(drop.near) for drop in drops) > len(drops) / 2


@dataclass(frozen=True)
class Told(Reply):
    """A reply that says more, as those of a paid teacher do."""

    usd: float | None = None
    error: str | None = None


def test_requests_that_were_given_up_give_nothing_and_are_counted(tmp_path: Path):
    """The fields of a reply beyond its text are kept in its event; a failed one holds no row."""

    class Paid(AnyTeacher):
        def reply(self, prompt: str, rng) -> Reply:
            one = super().reply(prompt, rng)
            if rng.random() < 0.2:
                return Told("", error="500 after 6 tries")
            return Told(one.text, one.finish_reason, one.tokens, usd=0.25)

    seen: list[GenerationProgress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alpaca_rlhf.data.generation.history.Reply", Told)
        made = run(tmp_path, "alpaca", Paid(), progress=seen.append)
        assert run(tmp_path, "alpaca", Paid()).rows == made.rows, "replayed"
    events = [event for _, event in read_events(tmp_path)]
    bad = [event for event in events if "error" in event]
    assert bad and all(not one["kept"] and not one["dropped"] for one in bad)
    assert all(one["usd"] == 0.25 for one in events if one not in bad)
    assert (seen[-1].failed, seen[-1].usd) == (len(bad), 0.25 * (len(events) - len(bad)))
    assert json.loads((tmp_path / "manifest.json").read_text())["counts"]["failed"] == len(bad)


# --- answers to given prompts ---------------------------------------------------------------------


PROMPTS = [Instruction(f"Name {n} birds.", output="never shown") for n in ("two", "three", "four")]


@dataclass
class Answering:
    """Answers the k-th request with the k-th text; those in brackets are cut."""

    texts: Sequence[str]
    name: str = "answering"

    def __post_init__(self) -> None:
        self.prompts: list[str] = []
        self.steps: list[str] = []

    def at(self, step: StepName) -> Teacher:
        self.steps.append(step)
        return self

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        self.prompts += prompts
        texts = self.texts[first : first + len(prompts)]
        return [Reply(text, "length" if text.startswith("(") else "eos", 3) for text in texts]


def answered(folder: Path, teacher: Teacher, **changes: object):
    chosen = replace(settings("answers", target=9), attempts=3, batch_size=2, **changes)
    return generate(
        teacher,
        PROMPTS,
        chosen,
        seed=0,
        folder=folder,
        rules=(),
        accept=lambda row: None if "wren" in (row.output or "") else Drop("not met", "no wren"),
    )


def test_a_prompt_is_answered_anew_until_an_answer_passes(tmp_path: Path):
    teacher = Answering(["a wren", "an owl", "(a wren", "a tit", " two wrens \n", "", "a wren"])
    made = answered(tmp_path, teacher)
    two, three, four = (row.instruction for row in PROMPTS)
    assert teacher.prompts == [two, three, four, three, four, three]
    assert set(teacher.steps) == {"reply"}
    assert [(row.instruction, row.output) for row in made.rows] == [
        (two, "a wren"),
        (four, "two wrens"),
    ]
    assert made.drops.counts == {"not met": 2, "cut": 1, "empty": 1}


def test_it_ends_where_every_prompt_has_an_answer_or_the_target_is_reached(tmp_path: Path):
    assert answered(tmp_path / "all", Answering(["a wren"] * 9)).requests == 3
    with pytest.raises(UserError, match=r"0 of 9 rows accepted .*not met 9"):
        answered(tmp_path / "none", Answering(["an owl"] * 9))


def test_a_resumed_pass_asks_only_what_was_not_asked(tmp_path: Path):
    texts = ["an owl", "a wren", "an owl", "a wren", "a wren"]
    calm = answered(tmp_path / "calm", Answering(texts))

    class Leaving(Answering):
        def complete(self, prompts, *, seed, first):
            if first >= 3:
                raise KeyboardInterrupt
            return super().complete(prompts, seed=seed, first=first)

    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path / "run", Leaving(texts))
    again = Answering(texts)
    assert answered(tmp_path / "run", again).rows == calm.rows
    assert len(again.prompts) == 2
