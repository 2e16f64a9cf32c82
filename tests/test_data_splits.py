"""The prompt firewall: whole clusters, stable deals, leaks named."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    EvaluationPrompts,
    Firewall,
    check_disjoint,
    clusters,
    prompt_text,
    read_prompts,
    split_prompts,
)
from tests.test_data_novelty import f1

SIZES = {"sft": 0.4, "rank": 0.3, "ppo": 0.2, "eval": 0.1}


def text(instruction: str) -> Instruction:
    return Instruction(instruction)


def keyed(task: int, phrasing: int) -> Instruction:
    return Instruction(f"phrasing {phrasing} of task {task}")


def key(row: Instruction) -> str | None:
    parts = row.instruction.split()
    return parts[-1] if parts[0] == "phrasing" else None


def random_texts(count: int) -> list[Instruction]:
    rng = random.Random(0)
    rows = [
        text(" ".join(f"w{rng.randrange(400)}" for _ in range(rng.randint(5, 15))))
        for _ in range(count // 2)
    ]
    return rows + [
        text(f"{rng.choice(rows).instruction} extra{i}") for i in range(count - len(rows))
    ]


def test_clusters_join_near_duplicates_transitively() -> None:
    a, b, c = text("a b c d e f g h"), text("a b c d e f g x"), text("a b c d e f y x")
    far = text("p q r s")
    assert clusters([a, far, c, b]) == [[a, c, b], [far]]  # a and c meet only through b
    assert clusters([a, far, c, text("a b c")]) == [[a, c], [far], [text("a b c")]]
    assert clusters([text("..."), text("!"), text("...")]) == [[text("...")] * 2, [text("!")]]


@pytest.mark.parametrize(
    ("symbols", "same", "others"),
    [
        ("👍", "👍\ufe0f", "🎉"),
        ("? ?", "??", "!"),
        ("∑", " ∑ ", "∏"),
    ],
)
def test_prompts_of_symbols_alone_leak_and_are_near_the_same_symbols(symbols, same, others) -> None:
    wall = Firewall()
    wall.note("sft", [text(symbols)])
    assert wall.leak("eval", text(symbols)) is not None
    assert wall.leak("eval", text(same)) is not None
    assert wall.leak("eval", text(others)) is None
    assert wall.leak("eval", text(" ")) is None
    assert clusters([text(symbols), text(others), text(same)]) == [
        [text(symbols), text(same)],
        [text(others)],
    ]
    assert EvaluationPrompts([text(symbols)]).contamination(text(same)) is not None


def test_the_input_counts_as_text() -> None:
    words, numbers = (
        Instruction("Sort these words.", "pear fig plum nut"),
        Instruction("Sort these words.", "7 3 9 1"),
    )
    assert (
        len(clusters([words, numbers])) == 2
        and prompt_text(words) == "Sort these words.\npear fig plum nut"
    )


def test_whole_clusters_and_no_near_duplicate_across_splits() -> None:
    rows = random_texts(400)
    deal = split_prompts(rows, sizes=SIZES, seed=0)
    assert list(deal) == list(SIZES)
    assert sorted(row.id for part in deal.values() for row in part) == sorted(
        row.id for row in rows
    )
    for name, share in SIZES.items():
        assert abs(len(deal[name]) / 400 - share) < 0.12
    for (_, left_rows), (_, right_rows) in combinations(deal.items(), 2):
        for first in left_rows[:40]:
            assert all(
                f1(first.instruction.split(), second.instruction.split()) <= 0.7
                for second in right_rows
            )
    assert check_disjoint(deal) == 0


def test_the_deal_is_a_function_of_the_rows_and_the_seed() -> None:
    rows = random_texts(300)
    deal = split_prompts(rows, sizes=SIZES, seed=0)
    shuffled = random.Random(1).sample(rows, len(rows))
    deal_of_shuffled = split_prompts(shuffled, sizes=SIZES, seed=0)
    assert {name: {row.id for row in part} for name, part in deal.items()} == {
        name: {row.id for row in part} for name, part in deal_of_shuffled.items()
    }
    assert split_prompts(rows, sizes=SIZES, seed=1) != deal


def test_adding_rows_moves_no_other_cluster() -> None:
    rows = random_texts(300)
    before = {
        row.id: name
        for name, part in split_prompts(rows, sizes=SIZES, seed=0).items()
        for row in part
    }
    new_rows = [text(f"unheard{i} of{i} words{i} here{i}") for i in range(100)]
    after = {
        row.id: name
        for name, part in split_prompts(new_rows + rows, sizes=SIZES, seed=0).items()
        for row in part
    }
    assert {row_id: after[row_id] for row_id in before} == before


def test_numbers_are_met_exactly_or_refused() -> None:
    rows = [keyed(task, phrasing) for task in range(200) for phrasing in range(1 + task % 3)]
    sizes = {"sft": 150, "rank": 77, "ppo": 100, "eval": 31}
    deal = split_prompts(rows, sizes=sizes, seed=0, key=key)
    assert {name: len(part) for name, part in deal.items()} == sizes
    assert check_disjoint(deal, key) == 0
    tasks = [{key(row) for row in part} for part in deal.values()]
    assert all(not left_tasks & right_tasks for left_tasks, right_tasks in combinations(tasks, 2))
    with pytest.raises(
        UserError, match=r"399 prompts in 200 groups .* are too few: .*eval lacks \d+ of 300"
    ):
        split_prompts(rows, sizes={**sizes, "eval": 300}, seed=0, key=key)
    with pytest.raises(UserError, match="shares that sum up to 1"):
        split_prompts(rows, sizes={"sft": 0.8, "eval": 0.4}, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_rules_an_evaluation_set(seed) -> None:
    """Seven clusters of 40 among 1,400 prompts: none in eval, which has its share all the same."""
    rows = [keyed(task, 0) for task in range(1120)]
    rows += [keyed(task, phrasing) for task in range(2000, 2007) for phrasing in range(40)]
    whole = split_prompts(rows, sizes=SIZES, seed=seed, key=key)
    largest = max(Counter(key(row) for row in whole["eval"]).values())
    assert largest == 1 and 80 <= len(whole["eval"]) <= 145
    assert sum(map(len, whole.values())) == len(rows)
    counted = {"rank": 300, "ppo": 560, "dev": 100, "eval": 140}
    exact = split_prompts(rows, sizes=counted, seed=seed, key=key)
    assert {name: len(part) for name, part in exact.items()} == counted
    for name in ("eval", "dev"):
        assert max(Counter(key(row) for row in exact[name]).values()) == 1
    free = [
        split_prompts(rows, sizes=SIZES, seed=n, key=key, max_cluster=1.0)["eval"]
        for n in range(20)
    ]
    assert any(max(Counter(key(row) for row in part).values()) == 40 for part in free)


def test_what_has_no_other_place_is_evaluated_on_all_the_same() -> None:
    """Nothing but large clusters, or no other split: the bound gives way."""
    rows = [keyed(task, phrasing) for task in range(40) for phrasing in range(30)]
    assert split_prompts(rows, sizes=SIZES, seed=0, key=key)["eval"]
    alone = split_prompts(rows, sizes={"eval": 600}, seed=0, key=key)["eval"]
    assert len(alone) == 600


def test_left_over_shares_stay_out() -> None:
    rows = [keyed(task, 0) for task in range(1000)]
    deal = split_prompts(rows, sizes={"sft": 0.3, "eval": 0.2}, seed=0, key=key)
    assert abs(len(deal["sft"]) - 300) < 60 and abs(len(deal["eval"]) - 200) < 60


def test_check_disjoint_names_the_first_pair_and_counts() -> None:
    splits = {
        "sft": [text("Name three blue things."), text("Sort the list of words.")],
        "eval": [
            text("Say hello to Ann."),
            text("name three blue things!"),
            text("Sort this list of words."),
        ],
    }
    assert check_disjoint(splits, raise_on_leak=False) == 2
    with pytest.raises(UserError) as caught:
        check_disjoint(splits)
    for part in ("'name three blue things!'", "'eval'", "'Name three blue things.'", "'sft'"):
        assert part in str(caught.value)


def test_firewall() -> None:
    wall = Firewall()
    wall.claim("sft", [text("Name three blue things."), text("Name three blue things.")])
    wall.claim(
        "sft", [text("Name three blue things now.")]
    )  # near-duplicates within a split are its own affair
    assert wall.counts() == {"sft": 2}
    leak = wall.leak("ppo", text("Name three blue things!"))
    assert leak is not None and leak.other_split == "sft" and leak.score == 1
    assert wall.leak("sft", text("Name three blue things!")) is None
    with pytest.raises(
        UserError, match="prompts leak between stages: 'Name three blue things!' of split 'ppo'"
    ):
        wall.claim(
            "ppo", [text("Something else entirely, please."), text("Name three blue things!")]
        )
    assert wall.counts() == {"sft": 2}  # all or none
    wall.claim("ppo", [text("Something else entirely, please.")])
    assert wall.counts() == {"sft": 2, "ppo": 1}


def test_firewall_by_key() -> None:
    wall = Firewall(key)
    wall.claim("sft", [keyed(1, 0), keyed(1, 1)])
    wall.claim("eval", [keyed(11, 0)])  # another task, though the texts are alike
    leak = wall.leak("eval", keyed(1, 2))
    assert leak is not None and "the same task" in str(leak)
    wall.claim("rank", [text("A free text about something.")])
    assert wall.leak("eval", text("A free text about something!")) is not None


def test_thousands_of_prompts_in_phrasings_are_dealt_disjoint() -> None:
    rows = [keyed(task, phrasing) for task in range(3000) for phrasing in range(2)]
    deal = split_prompts(rows, sizes=SIZES, seed=0, key=key)
    assert check_disjoint(deal, key) == 0


def test_real_free_texts(shared: Path) -> None:
    rows = read_prompts(shared / "data" / "dolly_2000.json")
    deal = split_prompts(rows, sizes=SIZES, seed=0)
    assert check_disjoint(deal) == 0
