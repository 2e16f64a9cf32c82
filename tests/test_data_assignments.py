"""Splits that stay as they are when rows are added, and evaluation sets that are kept out."""

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    EvaluationPrompts,
    SplitAssignment,
    check_disjoint,
    deal,
    drop_reason,
    files_of,
    prompt_text,
    read_assignments,
    read_instructions,
    read_prompts,
    tokens,
    write_assignments,
    write_instructions,
)
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Inputs, Loop, Rank
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources import source_of
from tests.test_data_novelty import f1

SHARES = {"sft": 0.4, "rank": 0.2, "ppo": 0.3, "eval": 0.1}
WRITTEN = ("sft", "rank", "ppo", "dev", "eval")
"""The splits of the command."""


def row(instruction: str, output: str | None = "yes") -> Instruction:
    return Instruction(instruction, "", output)


def places(assigned: list[SplitAssignment]) -> dict[str, str]:
    return {assignment.texts[-1]: assignment.split for assignment in assigned}


def near(text_a: str, text_b: str) -> bool:
    return f1(text_a.split(), text_b.split()) > 0.7


few_words = st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=6).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(few_words, max_size=14), st.lists(few_words, max_size=14), st.integers(0, 9))
def test_no_two_splits_come_near_and_what_was_assigned_stays(earlier, later, seed) -> None:
    """The texts are so short and alike that clusters meet all the time."""
    before = deal(map(row, earlier), shares=SHARES, seed=seed)
    assert not before.drops  # nothing is between splits before there are any
    assert {assignment.texts[-1] for assignment in before.assigned} == set(earlier)
    after = deal(map(row, earlier + later), before.assigned, shares=SHARES, seed=seed)
    assert after.assigned[: len(before.assigned)] == before.assigned
    where = places(after.assigned)
    dropped = {drop.row.instruction for drop in after.drops}
    assert where.keys() | dropped == {*earlier, *later} and not where.keys() & dropped
    for text_a, text_b in combinations(where, 2):
        assert where[text_a] == where[text_b] or not near(text_a, text_b)
    for text in dropped:  # each lies near something that has a place
        assert any(near(text, text_b) for text_b in where) or len(dropped) > 1
    reversed_order = deal(
        map(row, (earlier + later)[::-1]), before.assigned, shares=SHARES, seed=seed
    )
    assert places(reversed_order.assigned) == where  # the order of the rows does not matter
    third = deal(map(row, earlier + later), after.assigned, shares=SHARES, seed=seed)
    assert third.assigned == after.assigned and dropped == {d.row.instruction for d in third.drops}


def test_a_row_between_two_splits_is_dropped_and_names_both() -> None:
    a, b = "a b c d e f g h i j", "i j k l m n o p q r"
    earlier = [SplitAssignment("1", "sft", (a,)), SplitAssignment("2", "rank", (b,))]
    joins_a, joins_b = "a b c d e f g h i x", "y j k l m n o p q r"
    dealt = deal([row(joins_a), row(joins_b)], earlier, shares=SHARES)
    assert places(dealt.assigned) == {a: "sft", b: "rank", joins_a: "sft", joins_b: "rank"}
    wide = "a b c d e f g h i j k l m n"
    narrow = [
        SplitAssignment("1", "sft", ("a b c d e f g h i j",)),
        SplitAssignment("2", "ppo", ("e f g h i j k l m n",)),
    ]
    dealt = deal([row(wide)], narrow, shares=SHARES)
    assert [assignment.id for assignment in dealt.assigned] == ["1", "2"]
    (drop,) = dealt.drops
    assert drop.rule == "between splits" and "of sft" in drop.detail and "of ppo" in drop.detail


def test_new_rows_that_link_two_splits_are_parted() -> None:
    """x lies near sft's, y near rank's, and x and y near each other: only one of them can stay."""
    first, x, y, last = (" ".join("abcdefghijklmnop"[at : at + 10]) for at in (0, 2, 4, 6))
    earlier = [SplitAssignment("1", "sft", (first,)), SplitAssignment("2", "rank", (last,))]
    assert near(first, x) and near(x, y) and near(y, last)
    assert not near(first, y) and not near(x, last)
    dealt = deal([row(x), row(y)], earlier, shares=SHARES)
    stays, leaves = sorted((x, y), key=lambda text: row(text).id)
    assert places(dealt.assigned)[stays] == ("sft" if stays == x else "rank")
    assert [drop.row.instruction for drop in dealt.drops] == [leaves]


def test_about_the_shares_that_were_asked_for() -> None:
    rows = [row(f"one{i} two{i} three{i} four{i}") for i in range(2000)]
    counts = Counter(assignment.split for assignment in deal(rows, shares=SHARES).assigned)
    for name, share in SHARES.items():
        assert abs(counts[name] / 2000 - share) < 0.04
    only = deal(rows[:50], shares={**dict.fromkeys(SHARES, 0.0), "ppo": 3})
    assert {assignment.split for assignment in only.assigned} == {"ppo"}
    other_seed = deal(rows, shares=SHARES, seed=1)
    assert places(other_seed.assigned) != places(deal(rows, shares=SHARES).assigned)


@pytest.mark.parametrize("output", ["yes", None])
def test_no_cluster_rules_the_evaluation(output) -> None:
    """83 phrasings of one task among 400, whatever the seed: the evaluation has none of them."""
    rows = [row(f"w{i} x{i} y{i} z{i} v{i}", output) for i in range(317)]
    cluster = [row(f"identify which of a b c d e f g h i j is {i}", output) for i in range(83)]
    for seed in range(8):
        dealt = places(deal(rows + cluster, shares=SHARES, seed=seed).assigned)
        assert len({dealt[one.instruction] for one in cluster}) == 1
        assert dealt[cluster[0].instruction] != "eval"
    only = {"sft": 1.0, "rank": 0.0, "ppo": 0.0, "eval": 1.0}
    dealt = places(deal([row("a b c", None), *cluster], shares=only).assigned)
    assert dealt[cluster[0].instruction] in (("sft", "eval") if output else ("eval",))


def test_prompts_without_outputs_never_fill_sft() -> None:
    rows = [row(f"one{i} two{i} three{i} four{i}", output=None) for i in range(300)]
    counts = Counter(assignment.split for assignment in deal(rows, shares=SHARES).assigned)
    assert counts["sft"] == 0 and counts["rank"] and counts["ppo"] and counts["eval"]
    with pytest.raises(UserError, match="no output to learn from"):
        deal(rows, shares={"sft": 1.0, "rank": 0.0, "ppo": 0.0, "eval": 0.0})


def test_a_conversation_is_near_what_each_of_its_turns_is_near() -> None:
    opening = "tell me all about the mice of this house"
    conversation = Instruction(
        "and what do they eat at night", "", "Cheese.", "", ((opening, "They are."),)
    )
    dealt = deal([conversation, row(opening)], shares=SHARES)
    assert len({assignment.split for assignment in dealt.assigned}) == 1
    for seed in range(20):  # whatever the dealing
        splits = {
            assignment.split
            for assignment in deal([conversation, row(opening)], shares=SHARES, seed=seed).assigned
        }
        assert len(splits) == 1


def test_files_of() -> None:
    rows = [
        row("a", "1"),
        row("a", "2"),
        row("a", "1"),
        row("a", None),
        row("b", "1"),
        row("b", "2"),
    ]
    assigned = [
        SplitAssignment(rows[0].id, "sft", ("a",)),
        SplitAssignment(rows[4].id, "eval", ("b",)),
    ]
    files, drops = files_of([*rows, row("c")], assigned, SHARES)
    assert files == {"sft": rows[:2], "rank": [], "ppo": [], "eval": [rows[4]]}
    assert [drop.rule for drop in drops] == ["repeated", "no output", "repeated"]


def test_assignments_are_read_back_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "assignments.jsonl"
    assert read_assignments(path) == []
    assignment = SplitAssignment("1", "sft", ("a line\u2028end \n 字", "b"))
    write_assignments(path, [assignment, SplitAssignment("2", "ppo", ("c",))])
    assert read_assignments(path) == [assignment, SplitAssignment("2", "ppo", ("c",))]
    for damage in ('{"id": "1"}\n', "[1]\n", "{\n", '{"id": 1, "split": "sft", "texts": []}\n'):
        path.write_text(path.read_text().splitlines(keepends=True)[0] + damage)
        with pytest.raises(UserError, match=r"assignments.jsonl:\d: is not an assignment"):
            read_assignments(path)
        write_assignments(path, [assignment])


HELD = "Write a short letter to the mayor of our town about the noise of the new motorway."


def test_evaluation_sets_are_kept_out() -> None:
    held = EvaluationPrompts(
        [Instruction(HELD), Instruction("Sort the words.", "pear fig plum nut")]
    )
    assert len(held) == 2
    near_it = held.contamination(row(HELD.replace("noise", "smell")))
    assert near_it is not None and near_it.score > 0.7 and near_it.near == Instruction(HELD).id
    long = "Here is what I thought of in the night, please tell me what you think: " * 5
    copied = held.contamination(Instruction("Answer.", long + " ".join(HELD.split()[:13])))
    assert copied is not None and "shares 'write a short letter" in copied.detail
    assert held.contamination(Instruction("Answer.", long + " ".join(HELD.split()[:12]))) is None
    assert held.contamination(Instruction("Sort the words.", "seven eight nine ten")) is None
    assert held.contamination(Instruction("Sort these words.", "pear fig plum nut")) is not None
    talk = Instruction("and now something else", "", "yes", "", ((HELD, "Dear mayor"),))
    assert held.contamination(talk) is not None  # SFT would learn from that turn
    assert EvaluationPrompts([]).contamination(row(HELD)) is None


def test_an_evaluation_is_a_rule_for_filters() -> None:
    rule = EvaluationPrompts([Instruction(HELD)]).rule()
    drop = drop_reason(row(HELD.upper()), [rule])
    assert drop is not None and drop.rule == "contaminated" and "mayor" in drop.detail
    assert drop_reason(row("Name three colours."), [rule]) is None


def split(*arguments: object) -> int:
    return cli.main(["split", *map(str, arguments)])


def write(path: Path, texts: list[str]) -> Path:
    write_instructions(path, map(row, texts))
    return path


def read(out: Path) -> dict[str, list[str]]:
    files = {}
    for name in WRITTEN:
        lines = (out / f"{name}.jsonl").read_text().splitlines()
        files[name] = [json.loads(line)["instruction"] for line in lines]
    return files


def everything(parts: dict[str, list[str]]) -> list[str]:
    return [text for texts in parts.values() for text in texts]


def test_the_command_adds_rows_and_leaves_the_rest_where_it_was(tmp_path, capsys) -> None:
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(300)}" for _ in range(8)) for _ in range(120)]
    out, first = tmp_path / "a folder", write(tmp_path / "first.jsonl", texts[:80])
    assert split("--data", first, "--out", out) == 0
    before = read(out)
    assert sorted(everything(before)) == sorted(texts[:80]) and all(before.values())
    output = capsys.readouterr().out
    assert f"{len(before['sft'])} rows" in output and f"--inputs.splits '{out}'" in output
    later = write(tmp_path / "more.jsonl", [*texts[80:], texts[0] + " again"])
    assert split("--data", first, later, "--out", out, "--shares.sft", 0, "--seed", 7) == 0
    after = read(out)
    assert all(set(before[name]) <= set(after[name]) for name in WRITTEN)
    home = next(name for name in WRITTEN if texts[0] in before[name])
    assert texts[0] + " again" in after[home]
    assert len(everything(after)) == 121
    assert "80 prompts were assigned before" in capsys.readouterr().out


def test_the_command_keeps_an_evaluation_out_and_says_what_it_left_out(tmp_path, capsys) -> None:
    rows = write(tmp_path / "rows.jsonl", [HELD, "Name three colours.", "Say hello to Ann."])
    held = write(tmp_path / "held.jsonl", [HELD])
    assert split("--data", rows, "--against", held, "--out", tmp_path / "out") == 0
    assert sorted(everything(read(tmp_path / "out"))) == [
        "Name three colours.",
        "Say hello to Ann.",
    ]
    (drop,) = map(json.loads, (tmp_path / "out" / "drops.jsonl").read_text().splitlines())
    assert drop["rule"] == "contaminated" and drop["row"]["instruction"] == HELD
    assert "left out 1: contaminated 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["--data", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--data", "rows.jsonl", "--shares.sft", "-1"], "--shares.sft must be >= 0"),
        (
            ["--data", "rows.jsonl", "--against", "rows.jsonl"],
            "--against rows.jsonl: no row is left",
        ),
        (["--data", "rows.jsonl", "--out", "rows.jsonl"], "--out rows.jsonl: is a file"),
        (["--data", "rows.jsonl", "--shares", "1"], "--shares"),
    ],
)
def test_what_the_command_refuses(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", ["Name three colours."])
    assert split(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_file_is_lost_to_the_command(tmp_path, capsys) -> None:
    rows = write(tmp_path / "rows.jsonl", ["Name three colours.", "Say hello to Ann."])
    foreign = tmp_path / "mine"
    text_before = write(foreign / "sft.jsonl", ["Something that I wrote myself."]).read_text()
    assert split("--data", rows, "--out", foreign) == 2
    assert "holds sft.jsonl but no assignments.jsonl" in capsys.readouterr().err
    assert (foreign / "sft.jsonl").read_text() == text_before
    out = tmp_path / "out"
    assert split("--data", rows, "--out", out) == 0
    assert split("--data", out / "sft.jsonl", "--out", out) == 2
    assert "is written anew by this command" in capsys.readouterr().err
    assert len(everything(read(out))) == 2
    fewer = write(tmp_path / "fewer.jsonl", ["Say hello to Ann."])
    assert split("--data", fewer, "--out", out) == 0
    assert "1 prompts assigned before are not among these rows" in capsys.readouterr().out
    assert len(read_assignments(out / "assignments.jsonl")) == 2


def test_real_splits_are_disjoint(shared: Path, tmp_path: Path) -> None:
    """All of Alpaca's subset; 25 prompts of each split against all of the others, brute force."""
    assert split("--data", shared / "data" / "alpaca_17k.jsonl.gz", "--out", tmp_path) == 0
    parts = {name: read_prompts(tmp_path / f"{name}.jsonl") for name in WRITTEN}
    assert sum(map(len, parts.values())) == 17387
    assert len(read_instructions(tmp_path / "sft.jsonl")) == len(parts["sft"])  # all have outputs
    tokens_of_split = {
        name: [tokens(prompt_text(row)) for row in rows] for name, rows in parts.items()
    }
    rng = random.Random(0)
    compared = 0
    for name, split_tokens in tokens_of_split.items():
        others = [
            (text, Counter(text))
            for other_name, texts in tokens_of_split.items()
            if other_name != name
            for text in texts
        ]
        for text in rng.sample(split_tokens, 25):
            bag = Counter(text)
            for other_tokens, other_bag in others:
                # An LCS is never longer than the shorter text, nor than the words in common.
                enough = 0.3 * (len(text) + len(other_tokens))
                if min(len(text), len(other_tokens)) <= enough:
                    continue
                if (bag & other_bag).total() > enough:
                    compared += 1
                    assert f1(text, other_tokens) <= 0.7
    assert compared > 10


def folder_of_splits(out: Path) -> Path:
    rng = random.Random(0)
    for name, count in (("sft", 20), ("rank", 40), ("ppo", 40), ("eval", 30)):
        texts = [" ".join(f"{name}{rng.randrange(300)}" for _ in range(8)) for _ in range(count)]
        write(out / f"{name}.jsonl", texts)
    return out


def settings_of(folder: Path, rounds: int = 1, **inputs: Path) -> Loop:
    return Loop(
        inputs=Inputs(splits=folder, judge="human", **inputs),
        rounds=rounds,
        rank=Rank(prompts=10),
        ppo=PPO(batch_size=4, minibatch_size=4, micro_batch_size=4),
        best_of_k=BestOfK(prompts=12),
        evaluate=Evaluate(prompts=25),
    )


def test_a_loop_takes_its_rows_and_prompts_from_a_folder_of_splits(tmp_path: Path) -> None:
    loop = settings_of(folder_of_splits(tmp_path), rounds=2)
    source = source_of(loop)
    sizes = {"rank": 10, "ppo": 12, "rank.2": 10, "ppo.2": 12, "eval": 25}
    assert {name: len(source.prompts(name)) for name in source.names()} == sizes
    for name in sizes:
        instructions = {prompt.instruction for prompt in source.prompts(name)}
        assert all(text.startswith(name.partition(".")[0]) for text in instructions)
    for first_round, second_round in (("rank", "rank.2"), ("ppo", "ppo.2")):
        first_ids = {row.id for row in source.prompts(first_round)}
        assert not first_ids & {row.id for row in source.prompts(second_round)}
    assert len(source.seeds()) == 20 and order(loop)[0] == ("sft", 1)
    assert set(loop.inputs.files()) == {f"splits.{name}" for name in SHARES}
    with pytest.raises(UserError, match=r"rank.jsonl: 40 prompts .* rank.* lacks"):
        source_of(settings_of(tmp_path, rounds=5))
    (tmp_path / "ppo.jsonl").unlink()
    with pytest.raises(UserError, match=r"ppo.jsonl: no such file"):
        source_of(loop)
    for name in ("data", "seeds", "prompts"):
        with pytest.raises(ValueError, match=f"--inputs.{name}: --inputs.splits gives rows"):
            settings_of(tmp_path, **{name: tmp_path / "x.jsonl"})


def test_training_on_a_cluster_that_another_stage_has_is_refused_with_the_pair(
    tmp_path: Path,
) -> None:
    """Someone has copied a prompt of `ppo` into `sft`, one word of eight changed."""
    folder = folder_of_splits(tmp_path)
    source = source_of(settings_of(folder))
    ppo_text = source.prompts("ppo")[0].instruction
    changed = " ".join([*ppo_text.split()[:-1], "other"])
    sft = read_instructions(folder / "sft.jsonl")
    write_instructions(folder / "sft.jsonl", [*sft, row(changed)])
    source = source_of(settings_of(folder))
    splits = {"sft": source.seeds(), **{name: source.prompts(name) for name in source.names()}}
    with pytest.raises(UserError, match="prompts leak between stages") as caught:
        check_disjoint(splits)
    assert repr(ppo_text) in str(caught.value) and repr(changed) in str(caught.value)


def test_real_rows_near_an_evaluation(shared: Path) -> None:
    rows = read_prompts(shared / "data" / "selfinstruct_user_oriented_252.jsonl")
    held = EvaluationPrompts(rows)
    assert all(held.contamination(row) is not None for row in rows)
    dolly = read_prompts(shared / "data" / "dolly_2000.json")
    assert sum(held.contamination(row) is not None for row in dolly) < 20
