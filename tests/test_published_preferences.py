"""The shapes of published preference data, each with its exact meaning."""

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import Reading, holds_rankings, read_pairs, read_rankings
from alpaca_rlhf.data.readers.detection import FORMATS, detect_format
from alpaca_rlhf.data.readers.rows import RowFile
from tests.mutations import tried

Row = dict[str, Any]
USER = {"role": "user", "content": "Why?"}
ASK = [USER]
FIRST, SECOND = ({"role": "assistant", "content": text} for text in ("First.", "Second."))

SHAPES: dict[str, tuple[Row, str, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...], object]] = {
    # columns without the verdict; the verdict; first better; second better; ties; a wrong value
    "GPT-4-LLM": (
        {"user_input": "Why?", "completion_a": "First.", "completion_b": "Second."},
        "preference",
        (1, "1", "a", 1.0, "completion_a"),
        (2, "B", "completion_b"),
        ("tie", 0),
        3,
    ),
    "AlpacaFarm": (
        {"instruction": "Why?", "input": "", "output_1": "First.", "output_2": "Second."},
        "preference",
        (1,),
        (2,),
        (0,),
        "no",
    ),
    "SHP": (
        {"history": "Why?", "human_ref_A": "First.", "human_ref_B": "Second."},
        "labels",
        (1, 1.0),
        (0, 0.0),
        (),
        2,
    ),
    "Arena": (
        {"conversation_a": [*ASK, FIRST], "conversation_b": [*ASK, SECOND]},
        "winner",
        ("model_a",),
        ("model_b",),
        ("tie", "tie (bothbad)", "both_bad"),
        "model_c",
    ),
    "SafeRLHF": (
        {"prompt": "Why?", "response_0": "First.", "response_1": "Second."},
        "better_response_id",
        (0,),
        (1, 1.0),
        (),
        2,
    ),
    "HelpSteer2": (
        {"prompt": "Why?", "response_1": "First.", "response_2": "Second."},
        "preference_strength",
        (-3, -1, -2.0),
        (1, 2, 3),
        (0,),
        4,
    ),
    "HelpSteer3": (
        {"context": ASK, "response1": "First.", "response2": "Second."},
        "overall_preference",
        (-1,),
        (3,),
        (0,),
        "good",
    ),
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SHAPES)
def test_a_verdict_says_which_answer_is_better(tmp_path, name) -> None:
    columns, verdict, first, second, ties, wrong = SHAPES[name]
    rows = [columns | {verdict: value} for value in (*first, *second, *ties)]
    path = write(tmp_path / "a.jsonl", *rows)
    assert detect_format(RowFile(path)).format is FORMATS["completion-ab"]
    assert not holds_rankings(path)
    reading = Reading("rankings")
    pairs = read_pairs(path, reading)
    texts = [("First.", "Second.")] * len(first) + [("Second.", "First.")] * len(second)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == texts
    assert {pair.prompt for pair in pairs} == {Instruction("Why?", source="a.jsonl")}
    assert reading.account.left_out == ({"tie": len(ties)} if ties else {})
    assert not reading.account.unread
    for value in (wrong, None, True, [1]):
        broken = write(tmp_path / "b.jsonl", rows[0], columns | {verdict: value})
        with pytest.raises(UserError) as refusal:
            read_pairs(broken)
        assert str(refusal.value).startswith(f"{broken}:2: `{verdict}` ")


def test_without_a_verdict_only_preference_has_a_default(tmp_path) -> None:
    for name, (columns, *_) in SHAPES.items():
        path = write(tmp_path / "a.jsonl", columns)
        if name in ("GPT-4-LLM", "AlpacaFarm"):
            assert read_pairs(path)[0].chosen == "First."
        else:
            with pytest.raises(UserError):
                read_pairs(path)


def test_posts_in_a_csv_are_text(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("history,human_ref_A,human_ref_B,labels\nWhy?,First.,Second.,0\n")
    (pair,) = read_pairs(path)
    assert (pair.prompt.instruction, pair.chosen) == ("Why?", "Second.")


def test_a_strength_is_the_margin(tmp_path) -> None:
    columns, verdict, *_ = SHAPES["HelpSteer2"]
    rows = [columns | {verdict: value} for value in (-3, 2)]
    pairs = read_pairs(write(tmp_path / "a.jsonl", *rows, rows[0] | {"margin": 0.5}))
    assert [pair.margin for pair in pairs] == [3.0, 2.0, 0.5]


def test_conversations_that_went_apart_are_left_out_and_counted(tmp_path) -> None:
    """Each model of a battle went on with its own answers: there is no one prompt."""
    more = {"role": "user", "content": "And?"}
    apart = {"conversation_a": [USER, FIRST, more, FIRST], "winner": "model_a"}
    apart["conversation_b"] = [USER, SECOND, more, SECOND]
    alike = {"conversation_a": [USER, FIRST, more, FIRST], "winner": "model_b"}
    alike["conversation_b"] = [USER, FIRST, more, SECOND]
    path = write(tmp_path / "a.jsonl", apart, alike | {"turn": 2, "model_a": "x", "model_b": "y"})
    reading = Reading("rankings")
    (pair,) = read_pairs(path, reading)
    assert pair.prompt.history == (("Why?", "First."),) and pair.chosen == "Second."
    assert reading.account.left_out == {"unusable": 1}
    assert set(reading.account.unread) == {"turn", "model_a", "model_b"}
    code, said, _ = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 0 and "1  `conversation_a` and `conversation_b` part before" in said


def test_answers_with_ranks_are_a_ranking(tmp_path) -> None:
    """Nectar: rank 1 is the best, the prompt is a transcript, `source` a list."""
    answers = [
        {"answer": text, "model": "m", "rank": rank}
        for text, rank in zip("abcd", (2.0, 1.0, 2.0, 4.0), strict=True)
    ]
    row = {"prompt": "\n\nHuman: Hi.\n\nAssistant: Ho.\n\nHuman: Why?\n\nAssistant: "}
    row |= {"answers": answers, "turns": 2, "num_responses": 4, "source": ["x", "y"]}
    unranked = row | {"answers": [*answers[:2], {"answer": "z", "model": "m", "rank": None}]}
    path = write(tmp_path / "a.jsonl", row, unranked)
    assert detect_format(RowFile(path)).format is FORMATS["ranking-list"] and holds_rankings(path)
    reading = Reading("rankings")
    (prompt, completions, ranking), (_, two, _) = read_rankings(path, reading)
    assert (prompt.instruction, prompt.history) == ("Why?", (("Hi.", "Ho."),))
    assert prompt.source == "x, y" and len(two) == 2
    texts = {completion.id: completion.text for completion in completions}
    assert [[texts[name] for name in tier] for tier in ranking.tiers] == [["b"], ["a", "c"], ["d"]]
    assert reading.account.omitted == {"without a rank": 1}
    assert set(reading.account.unread) == {"turns", "num_responses", "answers[].model"}
    for wrong in ("first", True, [1]):
        changed = [answers[0] | {"rank": wrong}, *answers[1:]]
        broken = write(tmp_path / "b.jsonl", row, row | {"answers": changed})
        with pytest.raises(
            UserError, match=r"b\.jsonl:2: `rank` of an answer in `answers` must be"
        ):
            read_rankings(broken)


def test_answers_that_nothing_orders_are_no_ranking(tmp_path) -> None:
    row = {"question": "Who?", "context": "Ann is.", "answers": {"text": ["Ann"]}}
    for answers in (row["answers"], ["Ann", "Bob"], [{"answer": "Ann"}]):
        assert not holds_rankings(write(tmp_path / "a.jsonl", row | {"answers": answers}))
    ranked = {"prompt": "Who?", "answers": ["Ann", "Bob"], "ranks": [1, 0]}
    ((_, _, ranking),) = read_rankings(write(tmp_path / "a.jsonl", ranked))
    assert len(ranking.tiers) == 2
