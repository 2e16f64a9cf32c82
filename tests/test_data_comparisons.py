"""Reading pairs and ranking trees."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import read_pairs, read_rankings
from alpaca_rlhf.data.readers.comparisons import pair_to_json
from alpaca_rlhf.data.readers.ranked import ranking_list


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_hh_dialogues_part_at_the_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: Sing.\n\nAssistant:"
    single_turn = {
        "chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!",
        "rejected": "\n\nHuman: Hi.\n\nAssistant: He",
    }
    path = write(
        tmp_path / "a.jsonl",
        {"chosen": f"{start} La la.", "rejected": f"{start} La no."},
        single_turn,
    )
    long, short = read_pairs(path)
    assert long.prompt == Instruction("Sing.", source="a.jsonl", history=(("Hi.", "Hello!"),))
    assert (long.chosen, long.rejected) == ("La la.", "La no.")
    assert short.prompt == Instruction("Hi.", source="a.jsonl")  # a single question stands as it is
    assert (short.chosen, short.rejected, short.group) == ("Hello!", "He", short.prompt.id)


def test_turns_without_text_and_turns_in_a_row_make_a_dialogue_that_alternates(tmp_path) -> None:
    """People's dialogues have both: nothing of what was said is lost, and no file is refused."""
    start = "\n\nHuman: Hi.\n\nHuman: You there?\n\nAssistant:\n\nHuman: Well?"
    start += "\n\nAssistant: Yes.\n\nHuman: Sing.\n\nAssistant:"
    path = write(tmp_path / "a.jsonl", {"chosen": f"{start} La.", "rejected": f"{start} No."})
    (pair,) = read_pairs(path)
    history = (("Hi.\n\nYou there?\n\nWell?", "Yes."),)
    assert pair.prompt == Instruction("Sing.", source="a.jsonl", history=history)


def test_pairs_and_rankings_keep_history_and_system_on_their_way_through_a_file(tmp_path) -> None:
    columns = {"instruction": "c", "history": [["a", "b"]], "system": "s"}
    prompt = Instruction("c", source="file", history=(("a", "b"),), system="s")
    row = {**columns, "source": "file"}
    pairs = write(tmp_path / "a.jsonl", {**row, "chosen": "x", "rejected": "y"})
    (pair,) = read_pairs(pairs)
    assert pair.prompt == prompt
    assert read_pairs(write(tmp_path / "b.jsonl", pair_to_json(pair))) == [pair]
    two = {"completion_a": "x", "completion_b": "y", "preference": 2, **row}
    (second,) = read_pairs(write(tmp_path / "c.jsonl", two))
    assert (second.prompt, second.chosen) == (prompt, "y")
    ranked = ranking_list({**row, "responses": ["x", "y"], "ranks": [0, 1]}, "file")
    assert ranked.prompt == prompt
    assert ranking_list(json.loads(json.dumps(ranked.to_json())), "file") == ranked


@pytest.mark.parametrize("swapped", [False, True])
def test_a_dialogue_that_is_the_beginning_of_the_other_is_refused(tmp_path, swapped) -> None:
    """They answer different prompts, whichever of them is the longer one."""
    texts = ["\n\nHuman: Hi.\n\nAssistant:", " Hello!\n\nHuman: Sing.\n\nAssistant: La."]
    row = {"chosen": "".join(texts), "rejected": texts[0]}
    if swapped:
        row = {"chosen": row["rejected"], "rejected": row["chosen"]}
    with pytest.raises(UserError, match="do not answer the same prompt"):
        read_pairs(write(tmp_path / "a.jsonl", row))


def test_conversations_messages_and_plain_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Why?"},
            ],
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": ""},
        },
        {
            "prompt": [{"role": "user", "content": "Why?"}],
            "chosen": [{"role": "assistant", "content": "So."}],
            "rejected": "No.",
        },
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
    )
    first, *same, last = read_pairs(path)
    assert first.prompt == Instruction("Why?", source="a.jsonl", system="Be brief.")
    assert first.rejected == ""
    assert [(pair.prompt.instruction, pair.chosen, pair.rejected) for pair in same] == [
        ("Why?", "So.", "No.")
    ] * 2
    assert last.prompt == Instruction("Add.", "1 2", source="a.jsonl")


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        (
            {"prompt": "a", "chosen": "b"},
            "expected columns `chosen` and `rejected`; columns here: chosen, prompt",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
        ({"chosen": "b", "rejected": "c"}, "two dialogues"),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: d",
            },
            "part before their last answer",
        ),
        ({"conversations": [], "chosen": "b", "rejected": "c"}, "end with the human's turn"),
        (
            {"conversations": [{"from": "owl", "value": "u"}], "chosen": "b", "rejected": "c"},
            "who speaks",
        ),
        (
            {"conversations": [{"from": "human"}], "chosen": "b", "rejected": "c"},
            "must be text, got null",
        ),
        (
            {"prompt": "a", "chosen": {"role": "user", "content": "b"}, "rejected": "c"},
            "assistant's message",
        ),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "must be one answer"),
    ],
)
def test_broken_pairs(tmp_path: Path, row: object, fragment: str) -> None:
    good = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    path = write(tmp_path / "a.jsonl", good, row)
    with pytest.raises(UserError, match=r"a\.jsonl:2: ") as caught:
        read_pairs(path)
    assert fragment in str(caught.value)


def node(role: str, text: str, *replies: dict, **columns: object) -> dict:
    return {"role": role, "text": text, "replies": list(replies), **columns}


def test_a_tree_gives_a_ranking_for_every_ranked_human_turn(tmp_path: Path) -> None:
    deeper = node(
        "prompter",
        "And why?",
        node("assistant", "worse", rank=1),
        node("assistant", "best", rank=0),
        node("assistant", "also worse", rank=1),
        node("assistant", "nobody ranked this"),
        node("assistant", "gone", rank=2, deleted=True),
    )
    root = node(
        "prompter",
        "What?",
        node("assistant", "This.", deeper, rank=1),
        node("assistant", "That.", rank=0),
    )
    lone = node("prompter", "Alone?", node("assistant", "Yes.", rank=0))
    path = write(tmp_path / "a.jsonl", {"prompt": root}, {"prompt": lone}, {"prompt": root})
    rankings = read_rankings(path)
    assert [ranking.annotator for _, _, ranking in rankings] == [
        "oasst",
        "oasst",
        "oasst-2",
        "oasst-2",
    ]
    (first, answers, order), (second, later_answers, ties) = rankings[:2]
    assert first.instruction == "What?"
    assert second == Instruction("And why?", source="a.jsonl", history=(("What?", "This."),))
    texts = {completion.id: completion.text for completion in [*answers, *later_answers]}
    assert [[texts[completion] for completion in tier] for tier in order.tiers] == [
        ["That."],
        ["This."],
    ]
    assert [[texts[completion] for completion in tier] for tier in ties.tiers] == [
        ["best"],
        ["worse", "also worse"],
    ]


def test_replies_with_the_same_text_stay_apart(tmp_path: Path) -> None:
    root = node(
        "prompter", "What?", node("assistant", "This.", rank=1), node("assistant", "This.", rank=0)
    )
    ((_, answers, ranking),) = read_rankings(write(tmp_path / "a.jsonl", {"prompt": root}))
    assert len({completion.id for completion in answers}) == 2 and len(ranking.tiers) == 2


@pytest.mark.parametrize(
    "tree",
    [
        {"text": "no tree"},
        {"prompt": {"role": "prompter", "text": 3}},
        {
            "prompt": node(
                "prompter",
                "a",
                node("assistant", "b", rank="first"),
                node("assistant", "c", rank=1),
            )
        },
        {"prompt": {"role": "prompter", "text": "a", "replies": ["b"]}},
    ],
)
def test_broken_trees(tmp_path: Path, tree: dict) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:1: "):
        read_rankings(write(tmp_path / "a.jsonl", tree))


def test_real_pairs(shared: Path) -> None:
    hh = read_pairs(shared / "data" / "hh_harmless_pairs_1156.jsonl.gz")
    assert len(hh) == 1156
    assert not any("\n\nHuman:" in pair.chosen + pair.rejected for pair in hh)
    assert all(pair.prompt.instruction.split("\n\n")[-1] for pair in hh)
    assert len(read_pairs(shared / "data" / "dpo_en_300.json")) == 300


def test_real_trees(shared: Path) -> None:
    rankings = read_rankings(shared / "data" / "oasst_en_100_tree.jsonl.gz")
    assert len(rankings) == 212
    assert sum(bool(prompt.history) for prompt, _, _ in rankings) == 113
    for prompt, answers, ranking in rankings:
        assert ranking.prompt_id == prompt.id
        assert {completion for tier in ranking.tiers for completion in tier} == {
            completion.id for completion in answers
        }
        assert all(len(better) == len(worse) == 1 for better, worse in pairwise(ranking.tiers))
