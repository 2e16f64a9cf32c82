"""Self-instruct: exact counts, honest drops, and kills that leave no trace in the result."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import Drop, GenerationProgress, GenerationResult, Reply, generate
from alpaca_rlhf.data.generation import EventStore, read_events
from alpaca_rlhf.settings import Generate

MADE_OTHERWISE = r"events-00000\.jsonl:\d+: made with other seed tasks"
SETTINGS = Generate(target=60, demonstrations=3, batch_size=4, max_requests=200)
VERBS = "Name List Draft Count Sort Compare Describe Explain Rewrite Add".split()
NOUNS = [
    f"{size} {thing}"
    for size in "small large old new".split()
    for thing in "birds cars hats suns".split()
]
SEEDS = [
    Instruction(f"Tell me about seed number {i}.", "", f"It is {i}.", "seed") for i in range(8)
]


class FakeTeacher:
    """A fixed function of (seed, request number), with every kind of bad row in it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.prompts: list[str] = []

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        self.asked.extend(range(first, first + len(prompts)))
        self.prompts.extend(prompts)
        return [
            self.reply(random.Random(f"{seed}:{number}"))
            for number in range(first, first + len(prompts))
        ]

    def reply(self, rng: random.Random) -> Reply:
        text = ""
        for number in range(4, 4 + rng.randint(1, 4)):
            words = [
                rng.choice(VERBS),
                *(rng.choice(NOUNS) for _ in range(3)),
                f"x{rng.randrange(99)}",
            ]
            number = 9 if rng.random() < 0.1 else number
            output = rng.choice(["Done.", "# A\n### B\nin 2020.", "", "句子 ✓"])
            text += f"{number}. Instruction: {' '.join(words)}\n{number}. Input: <noinput>\n"
            text += f"{number}. Output: {output}\n###\n"
        text = text[rng.choice([0, 0, 15]) :]
        if rng.random() < 0.2:
            return Reply(text[: rng.randrange(len(text))], "length", 64)
        return Reply(text, "eos", len(text) // 4)


def run(folder: Path, teacher: FakeTeacher | None = None, **more) -> GenerationResult:
    given = {"settings": SETTINGS, "seed": 1, "folder": folder, **more}
    return generate(teacher or FakeTeacher(), SEEDS, given.pop("settings"), **given)


def test_exactly_the_target_and_every_row_accounted_for(tmp_path: Path) -> None:
    teacher, seen = FakeTeacher(), []
    made = run(tmp_path, teacher, progress=seen.append)
    assert len(made.rows) == 60 and made.requests == len(teacher.asked)
    assert teacher.asked == list(range(made.requests)) and made.requests % 4 == 0
    assert {"surplus", "empty", "number", "cut"} <= {drop.rule for drop in made.drops}
    assert all(row.source == "self_instruct" and row.output for row in made.rows)
    events = [event for _, event in read_events(tmp_path)]
    assert [event["request"] for event in events] == teacher.asked
    assert [row for event in events for row in event["kept"]] == [
        row.to_json() for row in made.rows
    ]
    assert sum(len(event["dropped"]) for event in events) == len(made.drops)
    assert sum(event["tokens"] for event in events) == made.tokens
    last: GenerationProgress = seen[-1]
    assert (last.kept, last.target, last.requests, last.replayed) == (60, 60, made.requests, 0)
    assert sum(last.dropped.values()) == len(made.drops)
    assert [one.requests for one in seen] == list(range(4, made.requests + 1, 4))


def test_prompts_show_seeds_by_seed_and_request_number(tmp_path: Path) -> None:
    teachers = [FakeTeacher() for _ in range(3)]
    run(tmp_path / "a", teachers[0])
    run(
        tmp_path / "b",
        teachers[1],
        settings=Generate(target=60, demonstrations=3, batch_size=7, max_requests=200),
    )
    run(tmp_path / "c", teachers[2], seed=2)
    first, second, other = (teacher.prompts for teacher in teachers)
    shared = min(len(first), len(second))
    assert first[:shared] == second[:shared] != other[:shared]
    for prompt in first:
        shown = [seed.instruction for seed in SEEDS if seed.instruction in prompt]
        assert len(shown) == 3 and prompt.endswith("\n4. Instruction:")


def test_duplicates_of_seeds_and_of_rows_are_dropped_with_their_neighbour(tmp_path: Path) -> None:
    class Copycat(FakeTeacher):
        def reply(self, rng: random.Random) -> Reply:
            row = "{0}. Instruction: {1}\n{0}. Input: <noinput>\n{0}. Output: Yes.\n###\n"
            return Reply(
                row.format(4, "Tell me about seed number 99.")
                + row.format(5, f"Name a bird{rng.random()} now!")
            )

    made = run(tmp_path, Copycat(), settings=Generate(target=1, batch_size=1, max_requests=5))
    drop, *_ = made.drops
    assert (drop.rule, drop.near) == ("duplicate", SEEDS[0].id) and drop.score == pytest.approx(
        5 / 6
    )
    assert drop.row is not None and drop.row.instruction.endswith("99.")


def test_hooks_are_asked_after_the_filters_and_before_novelty(tmp_path: Path) -> None:
    asked: list[str] = []

    def accept(row: Instruction) -> Drop | None:
        asked.append("accept")
        return Drop("caller", "has no x1") if "x1" not in row.instruction else None

    def novel(row: Instruction) -> Drop | None:
        asked.append("novel")
        return None

    made = run(
        tmp_path,
        settings=Generate(target=5, batch_size=4, max_requests=500),
        accept=accept,
        novel=novel,
    )
    assert all("x1" in row.instruction for row in made.rows)
    assert asked.count("novel") == 5 and asked.count("accept") > 5
    assert all(drop.row is not None for drop in made.drops if drop.rule == "caller")


def test_rules_can_be_chosen(tmp_path: Path) -> None:
    class Short(FakeTeacher):
        def reply(self, rng: random.Random) -> Reply:
            return Reply(f" Bird{rng.random()}?\n4. Input: <noinput>\n4. Output: Jay.\n###\n")

    settings = Generate(target=3, batch_size=2, max_requests=4)
    assert len(run(tmp_path / "none", Short(), settings=settings, rules=()).rows) == 3
    with pytest.raises(
        UserError, match=r"0 of 4 rows accepted in 4 requests \(dropped by: length 4\)"
    ) as caught:
        run(tmp_path / "alpaca", Short(), settings=settings)
    assert str(tmp_path / "alpaca" / "events-00000.jsonl") in str(caught.value)


def test_too_few_requests_give_what_there_is(tmp_path: Path) -> None:
    made = run(tmp_path, settings=Generate(target=1000, batch_size=4, max_requests=6))
    assert made.requests == 6 and 0 < len(made.rows) < 1000


def test_too_few_seeds(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--generate\.demonstrations 3 needs as many seed tasks, got 2"
    ):
        generate(FakeTeacher(), SEEDS[:2], SETTINGS, seed=0, folder=tmp_path)


def test_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    teacher, seen = FakeTeacher(), []
    assert run(tmp_path, teacher, progress=seen.append) == first
    told = [one.replayed for one in seen]
    assert teacher.asked == [] and told == list(range(4, first.requests + 1, 4))


def test_events_of_another_run_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "events-00000.jsonl").read_bytes()
    manifest = (tmp_path / "manifest.json").read_bytes()
    for other, want in (
        ({"seed": 2}, r"manifest\.json: made with seed 1"),
        (
            {"settings": Generate(recipe="evol")},
            r"manifest\.json: made with --generate\.recipe",
        ),
        ({"settings": Generate(target=30, batch_size=4)}, MADE_OTHERWISE),
        ({"rules": ()}, MADE_OTHERWISE),
    ):
        more = {"accept": lambda row: Drop("no", "never")} if "rules" in other else other
        with pytest.raises(UserError, match=want):
            run(tmp_path, **more)
    with pytest.raises(UserError, match=r"manifest\.json: made with other seed tasks"):
        generate(FakeTeacher(), SEEDS[1:], SETTINGS, seed=1, folder=tmp_path)
    assert (tmp_path / "events-00000.jsonl").read_bytes() == before
    assert (tmp_path / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    "line", [b"[]\n", b"not json\n", b'{"request": 0}\n', b'{"text": 3, "tokens": "a"}\n']
)
def test_damaged_events_are_refused(tmp_path: Path, line: bytes) -> None:
    with EventStore(tmp_path) as store:
        store.describe(counts={})
    (tmp_path / "events-00000.jsonl").write_bytes(line)
    with pytest.raises(UserError, match=r"events-00000\.jsonl:1: "):
        run(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "file" / "below")


def test_a_torn_tail_anywhere_in_the_file_is_cut_and_made_again(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    path = tmp_path / "whole" / "events-00000.jsonl"
    data = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10]
    rng = random.Random(0)
    for cut in [
        0,
        1,
        ends[0],
        ends[0] - 1,
        ends[4],
        len(data) - 1,
        *(rng.randrange(len(data)) for _ in range(8)),
    ]:
        path.write_bytes(data[:cut])
        teacher = FakeTeacher()
        assert run(tmp_path / "whole", teacher) == whole
        assert path.read_bytes() == data
        assert teacher.asked == list(
            range(sum(end <= cut for end in ends), len(ends))
        )  # nothing twice
