"""Conversations from files: OpenAI's and ShareGPT's columns, and what is wrong with broken ones."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    answered_prompts,
    check_disjoint,
    clusters,
    prompt_text,
    read_instructions,
    read_prompts,
    write_instructions,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)


def openai(*turns: tuple[str, str], **columns: object) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **columns}


def sharegpt(*turns: tuple[str, str], **columns: object) -> dict:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **columns}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_last_reply_is_the_output_and_earlier_pairs_are_the_history(tmp_path: Path) -> None:
    turns = [("user", " Name a colour.\n"), ("assistant", "Blue."), ("user", "Why?")]
    turns += [("assistant", "So.\n"), ("user", "Sort."), ("assistant", "a b")]
    names = {"user": "human", "assistant": "gpt"}
    path = lines(
        tmp_path / "a.jsonl",
        openai(*turns, prompt="a column beside", prompt_id="7"),
        sharegpt(*((names[role], text) for role, text in turns), source="forum"),
        openai(*turns[:2]),
    )
    history = ((" Name a colour.\n", "Blue."), ("Why?", "So.\n"))
    assert read_instructions(path) == [
        Instruction("Sort.", "", "a b", "a.jsonl", history),
        Instruction("Sort.", "", "a b", "forum", history),
        Instruction(" Name a colour.\n", "", "Blue.", "a.jsonl"),
    ]


def test_a_system_text_stands_apart(tmp_path: Path) -> None:
    system, ask, say = ("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")
    path = lines(
        tmp_path / "a.jsonl",
        openai(system, ask, say),
        openai(system, ask, say, ask, say),
        sharegpt(("human", "Why?"), ("gpt", "So."), system="Be brief."),
        openai(("system", " "), ask, say),
    )
    first, longer, column, empty = read_instructions(path)
    assert first == column == Instruction("Why?", "", "So.", "a.jsonl", system="Be brief.")
    assert longer.history == (("Why?", "So."),) and longer.system == "Be brief."
    assert empty == Instruction("Why?", "", "So.", "a.jsonl")
    assert len({first.id, longer.id, empty.id}) == 3


ASK, SAY = ("user", "Why?"), ("assistant", "So.")


def test_a_content_may_come_in_parts_of_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "input_text", "text": "y?"}]
    path = lines(tmp_path / "a.jsonl", openai(("user", parts), SAY))
    assert read_instructions(path) == [Instruction("Why?", "", "So.", "a.jsonl")]


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("Why?", "has a part that is text; give an object with `type` and `text`"),
        (None, "has a part that is null; give an object"),
        ({"type": "image_url", "image_url": "a.png"}, "has a part of type 'image_url'"),
        ({"type": "text", "text": 7}, "a part of a message in column `messages`"),
    ],
)
def test_a_part_that_is_no_text_is_named(tmp_path: Path, part: object, why: str) -> None:
    path = lines(tmp_path / "a.jsonl", openai(("user", [part]), SAY))
    with pytest.raises(UserError, match=re.escape(why)):
        read_instructions(path)


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        (openai(ASK), "the conversation has no assistant turn: there is no reply to learn from"),
        (openai(ASK, SAY, ASK), "the conversation ends with the user's turn: there is no reply"),
        (openai(ASK, ASK, SAY), "two user turns in a row"),
        (openai(ASK, SAY, SAY), "two assistant turns in a row"),
        (openai(ASK, ("assistant", " \n")), "an empty reply"),
        (openai(ASK, ("assistant", ""), ASK, SAY), "an empty reply"),
        (openai(("user", ""), SAY), "an empty user turn"),
        (openai(SAY, ASK, SAY), "starts with the assistant"),
        (openai(ASK, ("tool", "42"), SAY), "'tool' is unknown"),
        (sharegpt(("human", "Why?"), ("owl", "u")), "'owl' is unknown"),
        (openai(ASK, ("system", "Be brief."), SAY), "or one that is not its first"),
        (openai(("system", "a"), ASK, SAY, system="b"), "a second system turn"),
        (openai(("system", "a")), "no turns"),
        (openai(), "no turns"),
        ({"messages": "Why?"}, "column `messages` must be a list of messages, got text"),
        ({"messages": ["Why?"]}, "must be an object, got text"),
        (openai(ASK, ("assistant", None)), "must be text, got null"),
        ({"messages": [{"content": "Why?"}]}, "must say who speaks"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "`history` must be a list of"),
        ({"instruction": "a", "output": "b", "history": "c"}, "`history` must be a list of"),
        ({"instruction": "a", "output": "b", "history": [["c", " "]]}, "`history` is empty"),
        ({"instruction": "a", "output": "b", "history": [["c", 1]]}, "must be text, got a number"),
    ],
)
def test_broken_conversations_are_named_by_line(tmp_path: Path, row: object, fragment: str) -> None:
    path = lines(tmp_path / "a.jsonl", openai(ASK, SAY), row, openai(ASK, SAY))
    with pytest.raises(UserError) as caught:
        read_instructions(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and fragment in message and "\n" not in message
    assert "(1 of 3 rows broken)" in message


def test_rows_without_an_answer_are_counted_in_one_line(tmp_path: Path) -> None:
    good = {"instruction": "Go.", "output": "Gone."}
    path = lines(tmp_path / "a.jsonl", good, good | {"output": ""}, openai(ASK), openai(ASK))
    with pytest.raises(UserError) as caught:
        read_instructions(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: the output is empty or absent") and "\n" not in message
    assert "(3 of 4 rows broken: 2 x the conversation has no assistant turn" in message


def test_a_prompt_may_be_a_conversation_that_waits(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", openai(ASK, SAY, ("user", "Go on.")), openai(ASK))
    assert read_prompts(path) == [
        Instruction("Go on.", "", None, "a.jsonl", (("Why?", "So."),)),
        Instruction("Why?", "", None, "a.jsonl"),
    ]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Instruction,
            TEXT,
            st.text(st.characters(exclude_categories=["Cs"])),
            TEXT,
            TEXT,
            st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
        ),
        min_size=1,
    )
)
def test_written_conversations_come_back_as_they_were(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_instructions(path, rows)
    assert read_instructions(path) == rows
    columns = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert [Instruction.from_json(row_columns) for row_columns in columns] == rows
    assert [("history" in row_columns) for row_columns in columns] == [
        bool(row.history) for row in rows
    ]


# --- near-duplicates -----------------------------------------------------------------------------

LONG = "Tell me what the old grey owl eats at night"
MORE = "And what does she do all day long up in that tree"
TALK = Instruction("Thanks.", "", "Bye.", history=((LONG, "Mice."), (MORE, "Nothing.")))


def test_a_conversation_is_compared_by_all_that_the_user_said() -> None:
    assert prompt_text(TALK) == f"{LONG}\n{MORE}\nThanks."
    same_last_turn = Instruction(
        "Thanks.", history=(("How do I get to the station from here", "Left."),)
    )
    assert len(clusters([TALK, same_last_turn])) == 2  # only their last turns are the same


def test_a_prompt_that_any_reply_of_a_conversation_answers_is_a_leak() -> None:
    assert [prompt_text(prompt) for prompt in answered_prompts([TALK])] == [
        LONG,
        f"{LONG}\n{MORE}",
        f"{LONG}\n{MORE}\nThanks.",
    ]
    assert [prompt.output for prompt in answered_prompts([TALK])] == ["Mice.", "Nothing.", "Bye."]
    opening = Instruction(LONG + "?")
    assert check_disjoint({"sft": [TALK], "eval": [opening]}) == 0  # the whole is far from it
    with pytest.raises(UserError, match="near-duplicates"):
        check_disjoint({"sft": answered_prompts([TALK]), "eval": [opening]})
