"""Reading worksheets, with every way in which the originals lost or cut rows."""

import hypothesis
from hypothesis import strategies as st

from alpaca_rlhf.core.prompts import worksheet, worksheet_prompt
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import parse_worksheet


def block(
    number: int,
    instruction: str = "Name a bird.",
    given: str = "<noinput>",
    output: str = "A jay.",
) -> str:
    fields = {"Instruction": instruction, "Input": given, "Output": output}
    return "".join(f"{number}. {name}: {text}\n" for name, text in fields.items()) + "###\n"


def outputs(text: str, **more: bool) -> tuple[list[str | None], list[str]]:
    rows, drops = parse_worksheet(text, 4, **more)
    return [row.output for row in rows], [drop.rule for drop in drops]


def test_a_reply_continues_the_prompt() -> None:
    demos = [Instruction(f"Say {word}.", "", word) for word in ("one", "two", "three")]
    whole = worksheet(
        [*demos, Instruction("Add.", "1 and 2", "3"), Instruction("Greet.", "", "Hello.\nYou!")]
    )
    rows, drops = parse_worksheet(whole.removeprefix(worksheet_prompt(demos)), 4)
    assert [(row.instruction, row.input, row.output, row.source) for row in rows] == [
        ("Add.", "1 and 2", "3", "self_instruct"),
        ("Greet.", "", "Hello.\nYou!", "self_instruct"),
    ]
    assert not drops


def test_the_teacher_may_write_the_head_again() -> None:
    assert outputs(block(4) + block(5)) == (["A jay.", "A jay."], [])
    assert outputs(block(4).removeprefix("4. Instruction:")) == (["A jay."], [])


def test_markdown_headings_inside_an_output_neither_cut_nor_shift() -> None:
    markdown = "# T\n### Section\ntext\n###\nmore ### text\n### 5. not a head"
    assert outputs(block(4, output=markdown) + block(5) + block(6)) == (
        [markdown, "A jay.", "A jay."],
        [],
    )


def test_numbers_that_the_original_took_for_stop_strings_stay_in_the_output() -> None:
    said = "It was built in 2020.\n20. The last point.\n16. Another."
    assert outputs(block(4, output=said) + block(5)) == ([said, "A jay."], [])


def test_case_is_kept() -> None:
    rows, _ = parse_worksheet(block(4, "Explain NASA to Ann."), 4)
    assert rows[0].instruction == "Explain NASA to Ann."


def test_a_cut_last_block_is_dropped_wherever_the_cut_falls() -> None:
    text = block(4) + block(5, output="The end is here.")
    for at in range(len(block(4)) + 1, len(text) - len("\n")):
        rows, drops = outputs(text[:at])
        if text[:at].endswith("###"):
            assert (rows, drops) == (["A jay.", "The end is here."], [])
        else:
            assert (rows, drops) == (["A jay."], ["cut"]), text[:at]


def test_a_teacher_that_ended_by_itself_need_not_close_the_last_block() -> None:
    text = (block(4) + block(5)).removesuffix("\n###\n")
    assert outputs(text, finished=True) == (["A jay.", "A jay."], [])
    assert outputs(text) == (["A jay."], ["cut"])
    assert outputs(block(4) + "5.", finished=True) == (["A jay."], ["fields"])


def test_wrong_numbers_cost_one_block() -> None:
    assert outputs(block(4) + block(7) + block(8)) == (["A jay.", "A jay."], ["number"])
    assert outputs(block(1) + block(2)) == (["A jay."], ["number"])


def test_missing_merged_and_empty_fields() -> None:
    missing = "4. Instruction: Name a bird.\n4. Output: A jay.\n###\n"
    assert outputs(missing + block(5)) == (["A jay."], ["fields"])
    foreign = block(4).replace("4. Input", "5. Input")
    assert outputs(foreign + block(5)) == (["A jay."], ["fields"])
    assert outputs(block(4).replace("###\n", "") + block(5) + block(6)) == (["A jay."], ["merged"])
    assert outputs(block(4, output="") + block(5, instruction=" ")) == ([], ["empty", "empty"])
    assert outputs("") == ([], ["cut"]) and outputs("", finished=True) == ([], ["fields"])


def test_no_input_variants_become_an_empty_input() -> None:
    for given in ("<noinput>", "<no input>", "None", "N/A", "No input required.", ""):
        rows, _ = parse_worksheet(block(4, given=given), 4)
        assert rows[0].input == ""
    rows, _ = parse_worksheet(block(4, given="\na, b\nc"), 4)
    assert rows[0].input == "a, b\nc"


def test_windows_line_ends() -> None:
    assert outputs((block(4) + block(5)).replace("\n", "\r\n")) == (["A jay.", "A jay."], [])


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.text("#\n45. InstrucoOuput:a", max_size=200), st.booleans())
def test_any_text_is_parsed_without_an_error(text: str, finished: bool) -> None:
    rows, drops = parse_worksheet(text, 4, finished=finished)
    assert all(row.instruction and row.output for row in rows)
    assert all(drop.rule and drop.detail for drop in drops)
