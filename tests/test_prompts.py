"""Prompt text, to the character."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca_rlhf.core.prompts import (
    TEMPLATES,
    blocks,
    chat_messages,
    lead,
    marked,
    render,
    worksheet,
    worksheet_prompt,
    worksheet_question,
)
from alpaca_rlhf.core.records import Instruction

SORT = Instruction("Sort the words.", "pear, fig", "fig, pear")
NAME = Instruction("Name a colour.", output="Red.\nOr blue.")


def test_alpaca_is_stanfords_text():
    assert render("alpaca", SORT) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSort the words.\n\n### Input:\npear, fig\n\n### Response:"
    )
    assert render("alpaca", NAME) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a colour.\n\n### Response:"
    )


def test_brief_has_headings_only():
    assert render("brief", SORT) == (
        "### Instruction: Sort the words.\n\n### Input: pear, fig\n\n### Response:"
    )
    assert render("brief", NAME) == "### Instruction: Name a colour.\n\n### Response:"


def test_only_brief_has_its_completion_on_the_line_of_the_heading():
    assert [lead(template) for template in TEMPLATES] == [" ", "", ""]


@given(text=st.text(), material=st.text())
def test_braces_and_anything_else_pass_through(text, material):
    row = Instruction(text + "{input}", material + "{instruction}")
    for template, gap in (("brief", " "), ("alpaca", "\n")):
        assert f"### Instruction:{gap}{text}{{input}}\n\n" in render(template, row)
        assert f"### Input:{gap}{material}{{instruction}}\n\n" in render(template, row)


def test_the_output_never_leaks_into_the_prompt():
    for template in ("brief", "alpaca"):
        assert "fig, pear" not in render(template, SORT)
    assert "fig, pear" not in str(chat_messages(SORT))
    assert "fig, pear" not in worksheet_question([NAME], SORT)


def test_chat_is_one_user_turn():
    assert chat_messages(SORT) == [{"role": "user", "content": "Sort the words.\n\npear, fig"}]
    assert chat_messages(NAME) == [{"role": "user", "content": "Name a colour."}]


TALK = dataclasses.replace(SORT, history=(("Name a colour.", "Red."), ("Why?", "So.")))


def test_a_conversation_has_a_block_before_each_reply():
    assert blocks("brief", TALK) == (
        "### Instruction: Name a colour.\n\n### Response:",
        "\n\n### Instruction: Why?\n\n### Response:",
        "\n\n### Instruction: Sort the words.\n\n### Input: pear, fig\n\n### Response:",
    )
    assert blocks("alpaca", TALK) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a colour.\n\n### Response:",
        "\n\n### Instruction:\nWhy?\n\n### Response:",
        "\n\n### Instruction:\nSort the words.\n\n### Input:\npear, fig\n\n### Response:",
    )
    for template in ("brief", "alpaca"):
        assert blocks(template, SORT) == (render(template, SORT),)
    with pytest.raises(ValueError, match="tokenizer"):
        blocks("chat", TALK)


def test_a_chat_has_every_turn():
    assert chat_messages(TALK) == [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Sort the words.\n\npear, fig"},
    ]


def test_what_carries_loss_is_marked():
    assert marked([("a", False), ("b</s>", True), ("", False)]) == "a[[b</s>]]"


def test_what_render_refuses():
    assert TEMPLATES == ("brief", "alpaca", "chat")
    with pytest.raises(ValueError, match="tokenizer"):
        render("chat", SORT)
    with pytest.raises(ValueError, match="no template 'alpacca'; there are brief, alpaca, chat"):
        render("alpacca", SORT)


SHEET = (
    "1. Instruction: Sort the words.\n1. Input: pear, fig\n1. Output: fig, pear\n###\n"
    "2. Instruction: Name a colour.\n2. Input: <noinput>\n2. Output: Red.\nOr blue.\n###\n"
)


def test_worksheet():
    assert worksheet([SORT, NAME]) == SHEET
    assert worksheet([SORT, NAME], next_number=7) == SHEET + "7. Instruction:"
    assert worksheet_prompt([SORT, NAME]) == SHEET + "3. Instruction:"
    assert worksheet([]) == ""
    assert worksheet_prompt([]) == "1. Instruction:"


def test_worksheet_question_stops_where_the_answer_starts():
    asked = Instruction("Add\n 2  and 3.")
    assert worksheet_question([SORT, NAME], asked) == (
        SHEET + "3. Instruction: Add 2 and 3.\n3. Input: <noinput>\n3. Output:"
    )


def test_worksheet_shows_solved_tasks_only():
    with pytest.raises(ValueError, match="has no output"):
        worksheet([SORT, Instruction("Add 2 and 3.")])
