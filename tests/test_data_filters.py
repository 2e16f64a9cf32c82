"""Each rule drops what it names and nothing like it."""

from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import RULES, drop_reason, read_instructions, rule_set
from alpaca_rlhf.data.generation import is_no_input

FINE = Instruction("Name three things that are blue.", "", "The sky, the sea and a jay.")


def row(
    instruction: str = FINE.instruction, given: str = "", output: str | None = FINE.output
) -> Instruction:
    return Instruction(instruction, given, output)


def rule(one: Instruction, name: str) -> str | None:
    drop = drop_reason(one, rule_set(name))
    assert drop is None or (drop.row == one and drop.detail)
    return drop.rule if drop else None


@pytest.mark.parametrize("name", RULES)
def test_a_fine_row_passes_everywhere(name: str) -> None:
    assert rule(FINE, name) is None
    assert rule(row("Explain the map's purpose to them.".replace("map", "cap")), name) is None


@pytest.mark.parametrize(
    ("one", "name", "want"),
    [
        (row("Name three things."), "alpaca", "length"),
        (row("word " * 150), "alpaca", None),
        (row("word " * 151), "alpaca", "length"),
        (row("Describe the IMAGE in words."), "self-instruct", "words"),
        (row("Describe an imaginary friend you had."), "self-instruct", None),
        (row("Name the music you like."), "self-instruct", None),
        (row("Name the music you like."), "alpaca", "words"),
        (row("Say where to go to now."), "alpaca", "words"),
        (row("Write a program to add numbers."), "alpaca", "program"),
        (row("Write a program to add numbers."), "strict", None),
        (row("- Name three blue things."), "alpaca", "punctuation"),
        (row("Éclair or cake, which one?"), "alpaca", "not_ascii"),
        (row("Éclair or cake, which one?"), "strict", None),
        (row("请说出三种蓝色的东西。"), "strict", None),
        (row("请说出三种蓝色的东西。"), "alpaca", "length"),
        (row(output=" "), "alpaca", "empty_output"),
        (row(output=None), "strict", None),
        (row(given="abc", output="abc"), "self-instruct", "echo"),
        (row(given="abc", output="abc"), "alpaca", None),
        (row(output=FINE.instruction), "strict", "echo"),
        (row(output="Here they are:"), "self-instruct", "colon"),
        (row(given="The list:"), "strict", "colon"),
        (row(output="N/A"), "strict", "not_available"),
        (row(given="No input required."), "strict", "no_input_marker"),
        (row(output="Sky.\n5. Instruction: Name a cat."), "strict", "merged"),
        (row(output="Sky.\n### Response:\nSea."), "strict", "merged"),
        (row(output="# Sky\n### Sea\nBoth."), "strict", None),
        (row(given="https://example.org/a"), "strict", "url"),
        (row(output="The sky\x07."), "strict", "control"),
        (row(output="Tabs\tand\nlines pass."), "strict", None),
        (row(output="As an AI language model, I like the sky."), "strict", "refusal"),
        (row(output="I'm sorry, but no."), "strict", "refusal"),
        (row(output="很抱歉\uff0c我无法回答。"), "strict", "refusal"),
        (row(output="the sea " * 20), "strict", "repetition"),
    ],
)
def test_rules(one: Instruction, name: str, want: str | None) -> None:
    assert rule(one, name) == want


def test_unknown_set() -> None:
    with pytest.raises(UserError, match="choose from self-instruct, alpaca, strict"):
        rule_set("lenient")


def test_no_input_variants() -> None:
    for text in (
        "<noinput>",
        "<No Input>",
        "noinput",
        "No input required.",
        "N/A",
        "none",
        "(no-input)",
        "",
        " ",
    ):
        assert is_no_input(text), text
    for text in ("no", "None of the birds fly.", "nothing", "No input file was found", "<input>"):
        assert not is_no_input(text), text


def test_not_all_seeds_of_alpaca_pass_its_own_filters(shared: Path) -> None:
    seeds = read_instructions(shared / "data" / "self_instruct_seed_tasks_175.jsonl")
    dropped = [drop.rule for seed in seeds if (drop := drop_reason(seed, rule_set("alpaca")))]
    assert sorted(dropped) == [
        "length",
        "length",
        "program",
        "words",
    ]  # so seeds are never filtered
